"""LeNet-5 (LeCun et al., 1998) as the EMNIST Balanced study built it in Keras, on 28x28x3 images.

65,151 parameters with the dense head, 65,104 with the RBF head. The study's summary table pairs the count of
the one (65,104) with the accuracy of the other (86.9 %).
"""

import flax.linen as nn
import jax.numpy as jnp

from emnist_jax.models.layers import Network


class RBF(nn.Module):
    """Log of Gaussian radial basis functions, `-||x - c||^2`: `[B, F]` -> `[B, features]`.

    The study's layer gives `exp(-||x - c||^2)` to Keras' cross-entropy, which divides it by its sum over the
    classes: the same probabilities as softmax over this logarithm, without the underflow.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        centres = self.param("centres", nn.initializers.glorot_uniform(), (self.features, x.shape[-1]))
        return -jnp.square(x[:, None] - centres).sum(-1)


class LeNet5(Network):
    """LeNet-5.

    Attributes:
      rbf: RBF head with trainable centres in place of the dense one.
      head_dropout: Before the head.
    """

    rbf: bool = False
    head_dropout: float = 0.5
    input_shape: tuple[int, int, int] = (28, 28, 3)
    initializer: str = "keras"

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.activate(self.conv(x, 6, 5, 2, bias=True, name="c1"))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = self.activate(self.conv(x, 16, 5, bias=True, name="c3"))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = self.activate(self.conv(x, 120, 5, bias=True, name="c5"))
        x = self.activate(self.dense(x.reshape(len(x), -1), 84, "f6"))
        x = self.dropout(x, self.head_dropout, train).astype(self._layer_dtype("head"))
        return RBF(self.num_classes, name="head")(x) if self.rbf else self.dense(x, self.num_classes, "head")
