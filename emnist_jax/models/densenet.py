"""DenseNet-BC of the EMNIST Balanced study, in all its variants.

Densely Connected Convolutional Networks (arXiv 1608.06993) as `keras.applications.densenet` builds it, with
ELU for ReLU, average pooling in the stem, dropout before the head, and 32x32 inputs.
"""

import flax.linen as nn
import jax.numpy as jnp

from emnist_jax.models.layers import Network


class DenseNet(Network):
    """DenseNet-BC; the defaults are the study's final network (layer_4_1), 2,152,667 parameters.

    Attributes:
      blocks: Number of layers of each dense block.
      growth: Channels that each layer adds.
      compression: Share of the channels that a transition keeps.
      stem_padding: Zeros around the input of the first convolution, in pixels.
      stem_dropout: After the first convolution (the study's dropout_5).
      convolution_dropout: After each convolution inside the dense blocks (dropout_4).
      block_dropout: After each dense block (dropout_2).
      transition_dropout: After each transition (dropout_3).
      head_dropout: Before the head (dropout_1).
    """

    blocks: tuple[int, ...] = (3, 6, 12, 6)
    growth: int = 32
    compression: float = 0.5
    stem_padding: int = 3
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
        x = self.conv(x, 64, 7, self.stem_padding, stride=2, name="stem_conv")
        x = self.activate(self.batch_norm(x, train, "stem_norm"))
        x = self.dropout(x, self.stem_dropout, train)
        x = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, layers in enumerate(self.blocks, 1):
            for j in range(1, layers + 1):
                name = f"block{i}_layer{j}"
                y = self.activate(self.batch_norm(x, train, f"{name}_norm1"))
                y = self.conv(y, 4 * self.growth, 1, name=f"{name}_conv1")
                y = self.dropout(y, self.convolution_dropout, train)
                y = self.activate(self.batch_norm(y, train, f"{name}_norm2"))
                y = self.conv(y, self.growth, 3, 1, name=f"{name}_conv2")
                y = self.dropout(y, self.convolution_dropout, train)
                x = jnp.concatenate([x, y], axis=-1)
            x = self.dropout(x, self.block_dropout, train)
            if i < len(self.blocks):
                x = self.activate(self.batch_norm(x, train, f"transition{i}_norm"))
                x = self.conv(x, int(x.shape[-1] * self.compression), 1, name=f"transition{i}_conv")
                x = nn.avg_pool(x, (2, 2), (2, 2))
                x = self.dropout(x, self.transition_dropout, train)
        x = self.activate(self.batch_norm(x, train, "final_norm"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.dense(x, self.num_classes, "head")
