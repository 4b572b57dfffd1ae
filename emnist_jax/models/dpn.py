"""Dual Path Networks 68 and 92 (arXiv 1707.01629) as timm builds them.

The first channels are a residual path, to which each block adds; the rest a dense path, to which it appends. timm's
code names an ELU before the head, yet builds a ReLU there, as here. Its head is a 1x1 convolution, ours dense.

Trainable parameters at 224x224x3 and 1,000 classes: DPN-68 12,611,602, DPN-92 37,668,392. At 32x32x3 and 47 classes:
11,817,753 and 35,105,775; the last stage has 1x1 pixels.
"""

import flax.linen as nn
import jax.numpy as jnp

from emnist_jax.models.layers import Network


class DPN(Network):
    """Dual Path Network; the defaults are DPN-68.

    Attributes:
      blocks: Number of blocks of each stage.
      growth: Channels that a block appends to the dense path, for each stage.
      width: Channels of the residual path in the first stage; each next stage doubles them.
      bottleneck: Channels of the grouped convolution in the first stage, likewise.
      stem_features: Channels of the first convolution.
      stem_size: Side of its kernel.
      stem_stride: Its stride.
      head_dropout: Before the head.
    """

    blocks: tuple[int, ...] = (3, 4, 12, 3)
    growth: tuple[int, ...] = (16, 32, 32, 64)
    width: int = 64
    bottleneck: int = 128
    stem_features: int = 10
    stem_size: int = 3
    stem_stride: int = 2
    head_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (32, 32, 3)
    batch_norm_epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x, train: bool):
        name = "features_conv1_1"
        x = self.conv(x, self.stem_features, self.stem_size, self.stem_size // 2, self.stem_stride, name=f"{name}_conv")
        x = self.activate(self.batch_norm(x, train, f"{name}_bn"))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, (blocks, growth) in enumerate(zip(self.blocks, self.growth, strict=True)):
            name = f"features_conv{i + 2}"
            x = self._block(x, i, growth, 2 if i else 1, True, train, f"{name}_1")
            for j in range(2, blocks + 1):
                x = self._block(x, i, growth, 1, False, train, f"{name}_{j}")
        x = self.activate(self.batch_norm(x, train, "features_conv5_bn_ac_bn"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.dense(x, self.num_classes, "head")

    def _block(self, x, stage: int, growth: int, stride: int, project: bool, train: bool, name: str):
        width, bottleneck = self.width * 2**stage, self.bottleneck * 2**stage
        shortcut = x
        if project:
            shortcut = self._conv(x, width + 2 * growth, 1, train, f"{name}_c1x1_w_s{stride}", stride)
        x = self._conv(x, bottleneck, 1, train, f"{name}_c1x1_a")
        x = self._conv(x, bottleneck, 3, train, f"{name}_c3x3_b", stride, 32)
        x = self._conv(x, width + growth, 1, train, f"{name}_c1x1_c")
        residual = shortcut[..., :width] + x[..., :width]
        return jnp.concatenate([residual, shortcut[..., width:], x[..., width:]], axis=-1)

    def _conv(self, x, features: int, size: int, train: bool, name: str, stride: int = 1, groups: int = 1):
        x = self.activate(self.batch_norm(x, train, f"{name}_bn"))
        return self.conv(x, features, size, size // 2, stride, groups=groups, name=f"{name}_conv")
