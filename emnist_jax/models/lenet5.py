"""LeNet-5 (LeCun et al., 1998) as the EMNIST Balanced study built it in Keras, on 28x28x3 images."""

import flax.linen as nn
import jax.numpy as jnp

from emnist_jax.models.layers import Network


class RBF(nn.Module):
    """Logarithm of Gaussian radial basis functions, `-||x - c||^2`: `[B, F]` -> `[B, features]`.

    The study's layer returns `exp(-||x - c||^2)`, and Keras' cross-entropy divides it by its sum over the classes.
    Softmax of the logarithm gives the same probabilities and does not underflow.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        centres = self.param("centres", nn.initializers.glorot_uniform(), (self.features, x.shape[-1]))
        return -jnp.square(x[:, None] - centres).sum(-1)


class LeNet5(Network):
    """LeNet-5.

    Attributes:
      rbf: Whether the head is an RBF layer with trainable centres or a dense layer.
      head_dropout: Before the head.
    """

    rbf: bool = False
    head_dropout: float = 0.5
    input_shape: tuple[int, int, int] = (28, 28, 3)
    initializer: str = "keras"

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.activate(self.conv(x, 6, 5, padding=2, bias=True, name="c1"))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = self.activate(self.conv(x, 16, 5, bias=True, name="c3"))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = self.activate(self.conv(x, 120, 5, bias=True, name="c5"))
        x = self.activate(self.dense(x.reshape(x.shape[0], -1), 84, "f6"))
        x = self.dropout(x, self.head_dropout, train)
        return RBF(self.num_classes, name="head")(x.astype(self.head_dtype)) if self.rbf else self.logits(x)
