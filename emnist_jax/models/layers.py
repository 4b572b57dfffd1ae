"""What every network is made of: convolutions, BatchNorm, dropout and the sources' initial weights.

`Network` holds the settings that all networks share; its methods make the layers. The weights follow the
source's framework: Keras (Glorot uniform, zero biases) or PyTorch (uniform in +-1/sqrt(fan in), biases too).
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

ACTIVATIONS: dict[str, Callable] = {
    "elu": nn.elu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.3),  # Keras' default slope
    "relu": nn.relu,
    "swish": nn.swish,
    "tanh": nn.tanh,
}


def matmul_convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    feature_group_count: int = 1,
    **unused,
) -> jax.Array:
    """Convolution as one slice for each kernel position and one matrix product.

    XLA's CPU convolution is several times slower than this, above all inside a loop. A drop-in for
    `nn.Conv(conv_general_dilated=...)`, without dilation or groups.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, C, features]`.
      window_strides: Stride along H and W.
      padding: "SAME", "VALID" or the pixels before and after, along H and W.
      feature_group_count: As `lax.conv_general_dilated`; other than 1 goes to it.

    Returns:
      `[B, H', W', features]`.
    """
    if feature_group_count != 1:
        return lax.conv_general_dilated(
            inputs, kernel, window_strides, padding, feature_group_count=feature_group_count, **unused
        )
    height, width, channels, features = kernel.shape
    down, right = window_strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], (height, width), window_strides, padding)
    inputs = jnp.pad(inputs, ((0, 0), *map(tuple, padding), (0, 0)))
    rows = (inputs.shape[1] - height) // down + 1
    columns = (inputs.shape[2] - width) // right + 1
    patches = jnp.concatenate(
        [
            inputs[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
            for i in range(height)
            for j in range(width)
        ],
        axis=-1,
    )
    return patches @ kernel.reshape(height * width * channels, features)


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's place in the global batch, not on the number of devices.

    Attributes:
      rate: Fraction of the activations that are dropped.
      axis_name: Mesh axis over which the batch is split, or None.
    """

    rate: float
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or not self.rate:
            return x
        first = lax.axis_index(self.axis_name) * len(x) if self.axis_name else 0
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), first + jnp.arange(len(x)))
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), 0)


class Network(nn.Module):
    """A classifier of images, with the settings that all of them share.

    A subclass defines `__call__(images, train)`: float images `[B, *input_shape]` -> float32 logits
    `[B, num_classes]`.

    Attributes:
      num_classes: Width of the last layer.
      input_shape: Height, width and channels that the source fed it.
      activation: Key of ACTIVATIONS.
      initializer: "keras" or "pytorch".
      batch_norm_momentum: Weight of the running average's old value (1 - PyTorch's momentum).
      batch_norm_epsilon: Added to the variance.
      sync_batch_norm: Whether BatchNorm averages over the mesh axis.
      axis_name: Mesh axis over which the batch is split, or None outside `shard_map`.
      dtype: Of the computation.
      convolution: "xla" or "matmul".
    """

    num_classes: int
    input_shape: tuple[int, int, int] = (28, 28, 1)
    activation: str = "relu"
    initializer: str = "pytorch"
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    sync_batch_norm: bool = True
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    convolution: str = "xla"

    def initializers(self, fan_in: int) -> dict:
        if self.initializer == "keras":
            return {"kernel_init": nn.initializers.glorot_uniform()}
        bound = 1 / math.sqrt(fan_in)
        return {
            "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            "bias_init": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
        }

    def conv(self, x, features: int, size: int, padding=0, stride: int = 1, bias: bool = False, name=None):
        """`size` x `size` convolution; `padding` in pixels on every side."""
        return nn.Conv(
            features,
            (size, size),
            (stride, stride),
            padding,
            use_bias=bias,
            dtype=self.dtype,
            conv_general_dilated=matmul_convolution if self.convolution == "matmul" else None,
            name=name,
            **self.initializers(size * size * x.shape[-1]),
        )(x)

    def dense(self, x, features: int, name=None):
        return nn.Dense(features, dtype=self.dtype, name=name, **self.initializers(x.shape[-1]))(x)

    def batch_norm(self, x, train: bool, name=None):
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            dtype=self.dtype,
            axis_name=self.axis_name if self.sync_batch_norm else None,
            name=name,
        )(x)

    def dropout(self, x, rate: float, train: bool):
        return Dropout(rate, self.axis_name)(x, train)

    def activate(self, x):
        return ACTIVATIONS[self.activation](x)
