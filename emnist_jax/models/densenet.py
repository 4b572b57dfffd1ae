"""DenseNet-BC (Densely Connected Convolutional Networks, arXiv 1608.06993) as `keras.applications` builds it.

The EMNIST Balanced study's variants have ELU instead of ReLU, average pooling in the stem, and dropout before the
head. The stem and the pool reduce 32x32 pixels to 8x8. The last of four blocks sees 1x1.
"""

import flax.linen as nn
import jax.numpy as jnp

from emnist_jax.models.layers import Network


class DenseNet(Network):
    """DenseNet-BC; the defaults are the study's final network (layer_4_1).

    Attributes:
      blocks: Number of layers of each dense block.
      growth: Channels that each layer adds.
      compression: Share of the channels that a transition keeps.
      stem_stride: Stride of the first convolution.
      stem_padding: Zeros around the input of the first convolution, in pixels.
      max_pool: Whether the stem pools by the maximum (DenseNet-121) or by the average (the study).
      stem_dropout: After the first convolution (the study's dropout_5).
      convolution_dropout: After each convolution inside the dense blocks (dropout_4).
      block_dropout: After each dense block (dropout_2).
      transition_dropout: After each transition (dropout_3).
      head_dropout: Before the head (dropout_1).
    """

    blocks: tuple[int, ...] = (3, 6, 12, 6)
    growth: int = 32
    compression: float = 0.5
    stem_stride: int = 2
    stem_padding: int = 3
    max_pool: bool = False
    stem_dropout: float = 0.0
    convolution_dropout: float = 0.0
    block_dropout: float = 0.0
    transition_dropout: float = 0.0
    head_dropout: float = 0.3
    input_shape: tuple[int, int, int] = (32, 32, 1)
    activation: str = "elu"
    initializer: str = "keras"
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1.001e-5

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 64, 7, padding=self.stem_padding, stride=self.stem_stride, name="conv1_conv")
        x = self.activate(self.batch_norm(x, train, "conv1_bn"))
        x = self.dropout(x, self.stem_dropout, train)
        # As in Keras, the padding is 0 for the maximum too. This matters if the activation can be negative.
        pool = nn.max_pool if self.max_pool else nn.avg_pool
        x = pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        for i, layers in enumerate(self.blocks, 2):
            for j in range(1, layers + 1):
                name = f"conv{i}_block{j}"
                y = self.activate(self.batch_norm(x, train, f"{name}_0_bn"))
                y = self.conv(y, 4 * self.growth, 1, name=f"{name}_1_conv")
                y = self.dropout(y, self.convolution_dropout, train)
                y = self.activate(self.batch_norm(y, train, f"{name}_1_bn"))
                y = self.conv(y, self.growth, 3, padding=1, name=f"{name}_2_conv")
                y = self.dropout(y, self.convolution_dropout, train)
                x = jnp.concatenate([x, y], axis=-1)
            x = self.dropout(x, self.block_dropout, train)
            if i <= len(self.blocks):
                x = self.activate(self.batch_norm(x, train, f"pool{i}_bn"))
                x = self.conv(x, int(x.shape[-1] * self.compression), 1, name=f"pool{i}_conv")
                x = nn.avg_pool(x, (2, 2), (2, 2))
                x = self.dropout(x, self.transition_dropout, train)
        x = self.activate(self.batch_norm(x, train, "bn"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)
