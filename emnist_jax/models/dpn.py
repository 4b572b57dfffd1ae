"""Dual Path Networks 68 and 92 (arXiv 1707.01629) as timm builds them.

Each block adds to the first channels (the residual path) and appends to the others (the dense path). timm's code names
an ELU before the head, but builds a ReLU, as ours does. Its head is a 1x1 convolution, ours is dense. The last stage
sees 1x1 of 32x32 pixels.
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
      bottleneck: Channels of the grouped convolution in the first stage; each next stage doubles them.
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
        size = self.stem_size
        name = "features_conv1_1"
        x = self.conv(x, self.stem_features, size, padding=size // 2, stride=self.stem_stride, name=f"{name}_conv")
        x = self.activate(self.batch_norm(x, train, f"{name}_bn"))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, (blocks, growth) in enumerate(zip(self.blocks, self.growth, strict=True)):
            name = f"features_conv{i + 2}"
            x = self._block(x, i, growth, 2 if i else 1, True, train, f"{name}_1")
            for j in range(2, blocks + 1):
                x = self._block(x, i, growth, 1, False, train, f"{name}_{j}")
        x = self.activate(self.batch_norm(x, train, "features_conv5_bn_ac_bn"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)

    def _block(self, x, stage: int, growth: int, stride: int, project: bool, train: bool, name: str):
        width, bottleneck = self.width * 2**stage, self.bottleneck * 2**stage
        shortcut = x
        if project:
            shortcut = self._conv(x, width + 2 * growth, 1, train, f"{name}_c1x1_w_s{stride}", stride)
        x = self._conv(x, bottleneck, 1, train, f"{name}_c1x1_a")
        x = self._conv(x, bottleneck, 3, train, f"{name}_c3x3_b", stride, 32)
        x = self._conv(x, width + growth, 1, train, f"{name}_c1x1_c")
        (shortcut, dense_shortcut), (x, dense) = (jnp.split(y, [width], axis=-1) for y in (shortcut, x))
        return jnp.concatenate([shortcut + x, dense_shortcut, dense], axis=-1)

    def _conv(self, x, features: int, size: int, train: bool, name: str, stride: int = 1, groups: int = 1):
        x = self.activate(self.batch_norm(x, train, f"{name}_bn"))
        return self.conv(x, features, size, padding=size // 2, stride=stride, groups=groups, name=f"{name}_conv")
