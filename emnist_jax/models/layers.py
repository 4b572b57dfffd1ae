"""What every network is made of: convolutions, BatchNorm, dropout and the sources' initial weights.

`Network` holds the settings that all networks share; its methods make the layers. Where a network has a
reference implementation, its layers have the names they have there, with "_" for "." and "/", so that `weights` can
carry weights over; the last layer is "head".
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

ACTIVATIONS: dict[str, Callable] = {
    "elu": nn.elu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.3),  # Keras' default slope
    "relu": nn.relu,
    "relu6": nn.relu6,
    "swish": nn.swish,
    "tanh": nn.tanh,
}

_scaling = nn.initializers.variance_scaling

# Name -> builders of the initial kernels of convolutions and of dense layers. Biases are zero but for "pytorch".
INITIALIZERS: dict[str, tuple[Callable, Callable]] = {
    "keras": (partial(_scaling, 1, "fan_avg", "uniform"),) * 2,  # Keras' default, Glorot
    "pytorch": (partial(_scaling, 1 / 3, "fan_in", "uniform"),) * 2,  # PyTorch's default: +-1/sqrt(fan in)
    "he": (partial(_scaling, 2, "fan_out", "normal"), partial(_scaling, 1 / 3, "fan_in", "uniform")),
    "efficientnet": (
        partial(_scaling, 2, "fan_out", "truncated_normal"),
        partial(_scaling, 1 / 3, "fan_out", "uniform"),
    ),
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
    `nn.Conv(conv_general_dilated=...)`, without dilation.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, C / groups, features]`.
      window_strides: Stride along H and W.
      padding: "SAME", "VALID" or the pixels before and after, along H and W.
      feature_group_count: Number of groups.
      **unused: What else `nn.Conv` passes.

    Returns:
      `[B, H', W', features]`.
    """
    height, width, channels, features = kernel.shape
    groups = feature_group_count
    down, right = window_strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], (height, width), window_strides, padding)
    inputs = jnp.pad(inputs, ((0, 0), *map(tuple, padding), (0, 0)))
    rows = (inputs.shape[1] - height) // down + 1
    columns = (inputs.shape[2] - width) // right + 1
    # Narrow matrix products are slow: 16 features is where four times as many no longer pay.
    if height == width and height % 2 and height > 1 and down == right == groups == 1 and features <= 16:
        return _by_two_rows_and_columns(inputs, kernel)[:, :rows, :columns]
    slices = [
        inputs[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        for i in range(height)
        for j in range(width)
    ]
    if groups == 1:
        return jnp.concatenate(slices, axis=-1) @ kernel.reshape(height * width * channels, features)
    if channels == 1 and features == groups:
        kernels = kernel.reshape(height * width, features)
        return sum(x * kernels[i] for i, x in enumerate(slices))
    # One matrix product for each group; as a batch of them, XLA has the least to transpose.
    patches = jnp.concatenate([x.reshape(-1, groups, channels).swapaxes(0, 1) for x in slices], axis=-1)
    kernels = kernel.reshape(height * width * channels, groups, features // groups).swapaxes(0, 1)
    return (patches @ kernels).swapaxes(0, 1).reshape(*slices[0].shape[:3], features)


def _by_two_rows_and_columns(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution, unpadded, stride 1, odd square kernel, over 2x2 pixels as one.

    Four times the channels and features of a smaller kernel: 1.8 times the arithmetic for 3x3, but wide
    products and less than half the copying.
    """
    size, _, channels, features = kernel.shape
    inputs = jnp.pad(inputs, ((0, 0), (0, inputs.shape[1] % 2), (0, inputs.shape[2] % 2), (0, 0)))
    batch, height, width, _ = inputs.shape
    blocks = inputs.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    # One kernel for each of the four outputs of a block, shifted to it.
    shifted = [jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)]
    half = (size + 1) // 2
    kernels = jnp.stack(shifted, -2).reshape(half, 2, half, 2, channels, 4 * features).swapaxes(1, 2)
    outputs = matmul_convolution(
        blocks.reshape(batch, height // 2, width // 2, 4 * channels),
        kernels.reshape(half, half, 4 * channels, 4 * features),
        (1, 1),
        "VALID",
    )
    rows, columns = outputs.shape[1:3]
    outputs = outputs.reshape(batch, rows, columns, 2, 2, features).swapaxes(2, 3)
    return outputs.reshape(batch, 2 * rows, 2 * columns, features)


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's place in the global batch, not on the number of devices.

    Attributes:
      rate: Fraction of the activations that are dropped.
      axis_name: Mesh axis over which the batch is split, or None.
      whole_examples: Drops all of an example or nothing of it (stochastic depth).
    """

    rate: float
    axis_name: str | None
    whole_examples: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or not self.rate:
            return x
        first = lax.axis_index(self.axis_name) * len(x) if self.axis_name else 0
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), first + jnp.arange(len(x)))
        # Two 16-bit numbers from each random word: random numbers are most of dropout's cost.
        shape = (1,) * (x.ndim - 1) if self.whole_examples else x.shape[1:]
        size = math.prod(shape)
        words = jax.vmap(lambda key: jax.random.bits(key, ((size + 1) // 2,)))(keys)
        numbers = lax.bitcast_convert_type(words, jnp.uint16).reshape(len(x), -1)[:, :size].reshape(-1, *shape)
        return jnp.where(numbers >= round(self.rate * 2**16), x / (1 - self.rate), 0)


class Network(nn.Module):
    """A classifier of images, with the settings that all of them share.

    A subclass defines `__call__(images, train)`: float images `[B, *input_shape]` -> float32 logits
    `[B, num_classes]`.

    Attributes:
      num_classes: Width of the last layer.
      input_shape: Height, width and channels that the source fed it.
      activation: Key of ACTIVATIONS.
      initializer: Key of INITIALIZERS.
      batch_norm_momentum: Weight of the running average's old value (1 - PyTorch's momentum).
      batch_norm_epsilon: Added to the variance.
      sync_batch_norm: Whether BatchNorm averages over the mesh axis.
      axis_name: Mesh axis over which the batch is split, or None outside `shard_map`.
      dtype: Of the computation; the layer named "head" is at least float32.
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

    @property
    def dropout_places(self) -> list[str]:
        """Keys of `config.model.dropout` that do something here."""
        names = [field.name for field in dataclasses.fields(self)]
        return sorted(name.removesuffix("_dropout") for name in names if name.endswith("_dropout"))

    def conv(
        self,
        x,
        features: int,
        size: int,
        padding: int | str | Sequence[tuple[int, int]] = 0,
        stride: int = 1,
        bias: bool = False,
        groups: int = 1,
        name=None,
    ):
        """`size` x `size` convolution.

        Args:
          x: `[B, H, W, C]`.
          features: Channels that it returns.
          size: Side of the kernel.
          padding: Pixels on every side, or before and after along H and W, or "SAME" as TensorFlow has it.
          stride: Along H and W.
          bias: Whether there is one.
          groups: Number of groups of channels; C makes it depthwise.
          name: Of the layer.
        """
        build = INITIALIZERS[self.initializer][0]
        # Fans are those of Keras' depthwise kernels, [h, w, C, 1] where ours are [h, w, 1, C].
        swapped = groups == x.shape[-1] > 1 and self.initializer in ("keras", "efficientnet")
        axes = {"in_axis": -1, "out_axis": -2} if swapped else {}
        return nn.Conv(
            features,
            (size, size),
            (stride, stride),
            padding,
            feature_group_count=groups,
            use_bias=bias,
            dtype=self._layer_dtype(name),
            conv_general_dilated=matmul_convolution if self.convolution == "matmul" else None,
            name=name,
            kernel_init=build(**axes),
            bias_init=self._bias_init(size * size * x.shape[-1] // groups),
        )(x)

    def dense(self, x, features: int, name=None, bias: bool = True):
        return nn.Dense(
            features,
            use_bias=bias,
            dtype=self._layer_dtype(name),
            name=name,
            kernel_init=INITIALIZERS[self.initializer][1](),
            bias_init=self._bias_init(x.shape[-1]),
        )(x)

    def _layer_dtype(self, name):
        return jnp.promote_types(self.dtype, jnp.float32) if name == "head" else self.dtype

    def _bias_init(self, fan_in: int) -> Callable:
        if self.initializer != "pytorch":
            return nn.initializers.zeros
        bound = 1 / math.sqrt(fan_in)
        return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)

    def batch_norm(self, x, train: bool, name=None):
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            dtype=self.dtype,
            axis_name=self.axis_name if self.sync_batch_norm else None,
            name=name,
        )(x)

    def dropout(self, x, rate: float, train: bool, whole_examples: bool = False):
        return Dropout(rate, self.axis_name, whole_examples)(x, train)

    def activate(self, x):
        return ACTIVATIONS[self.activation](x)
