"""ResNet-50 v1 (Deep Residual Learning for Image Recognition, arXiv 1512.03385) as `keras.applications` builds it.

Keras' differs from torchvision's: its convolutions have biases, and the first 1x1 convolution of a stage has the
stride. The stem reduces 32x32 pixels to 8x8. The last stage sees 1x1.
"""

import flax.linen as nn
import jax.numpy as jnp

from emnist_jax.models.layers import Network


class ResNet(Network):
    """ResNet v1 of bottleneck blocks; the defaults are ResNet-50 on the study's input.

    Attributes:
      blocks: Number of blocks of each stage.
      stem_stride: Stride of the first convolution.
      head_dropout: Before the head (0.5 in the study's run).
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem_stride: int = 2
    head_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (32, 32, 3)
    initializer: str = "keras"
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1.001e-5

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 64, 7, padding=3, stride=self.stem_stride, bias=True, name="conv1_conv")
        x = self.activate(self.batch_norm(x, train, "conv1_bn"))
        # As in Keras, the padding is 0, not nn.max_pool's -inf. This matters if the activation can be negative.
        x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        for i, blocks in enumerate(self.blocks):
            for j in range(1, blocks + 1):
                x = self._block(x, 64 * 2**i, 2 if j == 1 and i else 1, train, f"conv{i + 2}_block{j}")
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)

    def _block(self, x, features: int, stride: int, train: bool, name: str):
        shortcut = x
        if x.shape[-1] != 4 * features:
            shortcut = self.conv(x, 4 * features, 1, stride=stride, bias=True, name=f"{name}_0_conv")
            shortcut = self.batch_norm(shortcut, train, f"{name}_0_bn")
        x = self.conv(x, features, 1, stride=stride, bias=True, name=f"{name}_1_conv")
        x = self.activate(self.batch_norm(x, train, f"{name}_1_bn"))
        x = self.conv(x, features, 3, padding=1, bias=True, name=f"{name}_2_conv")
        x = self.activate(self.batch_norm(x, train, f"{name}_2_bn"))
        x = self.conv(x, 4 * features, 1, bias=True, name=f"{name}_3_conv")
        return self.activate(shortcut + self.batch_norm(x, train, f"{name}_3_bn"))
