"""`Network`, the base class of every network: the settings that all share, and the methods that make the layers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from emnist_jax.models.convolution import forward_convolution, matmul_convolution


class Network(nn.Module):
    """A classifier of images.

    A subclass defines `__call__(images, train)`: float images `[B, *input_shape]` -> float32 logits
    `[B, num_classes]`. If a network has a reference implementation, its layers keep their names there, with "_" for
    "." and "/": `training.weights` then matches weights by name. The last layer is always "head".

    Attributes:
      num_classes: Width of the last layer.
      input_shape: Height, width and channels of its images, as in the source.
      activation: Key of ACTIVATIONS.
      initializer: Key of INITIALIZERS.
      batch_norm_momentum: Weight of the running average's old value (1 - PyTorch's momentum).
      batch_norm_epsilon: Added to the variance.
      sync_batch_norm: Whether BatchNorm averages over the mesh axis.
      axis_name: Mesh axis over which the batch is split, or None outside `shard_map`.
      dtype: Of the computation; `head_dtype` is that of the last layer.
      convolution: Key of CONVOLUTIONS.
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
    def for_inference(self) -> "Network":
        """The same network, with the convolutions that are fastest without gradients."""
        return self.clone(convolution="forward") if self.convolution == "matmul" else self

    @property
    def dropout_places(self) -> list[str]:
        """Keys of `config.model.dropout` that do something here."""
        names = [field.name for field in dataclasses.fields(self)]
        return sorted(name.removesuffix("_dropout") for name in names if name.endswith("_dropout"))

    @property
    def head_dtype(self) -> jnp.dtype:
        """Dtype of the last layer's computation: at least float32."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def conv(
        self,
        x,
        features: int,
        size: int,
        *,
        padding: int | str | Sequence[tuple[int, int]] = 0,
        stride: int = 1,
        bias: bool = False,
        groups: int = 1,
        dtype: jnp.dtype | None = None,
        name: str,
    ):
        """`size` x `size` convolution.

        Args:
          x: `[B, H, W, C]`.
          features: Number of output channels.
          size: Side of the kernel.
          padding: Pixels on every side, or before and after along H and W, or "SAME" as in TensorFlow.
          stride: Along H and W.
          bias: Whether it has a bias.
          groups: Number of groups of channels; C makes it depthwise.
          dtype: Of the computation; None is the network's.
          name: Of the layer.
        """
        build = INITIALIZERS[self.initializer][0]
        # Keras computes the fans of a depthwise kernel from [h, w, C, 1]; ours is [h, w, 1, C].
        swapped = groups == x.shape[-1] > 1 and self.initializer in ("keras", "efficientnet")
        axes = {"in_axis": -1, "out_axis": -2} if swapped else {}
        return nn.Conv(
            features,
            (size, size),
            (stride, stride),
            padding,
            feature_group_count=groups,
            use_bias=bias,
            dtype=dtype or self.dtype,
            conv_general_dilated=CONVOLUTIONS[self.convolution],
            name=name,
            kernel_init=build(**axes),
            bias_init=self._bias_init(size * size * x.shape[-1] // groups),
        )(x)

    def dense(self, x, features: int, name: str, *, bias: bool = True, dtype: jnp.dtype | None = None):
        return nn.Dense(
            features,
            use_bias=bias,
            dtype=dtype or self.dtype,
            name=name,
            kernel_init=INITIALIZERS[self.initializer][1](),
            bias_init=self._bias_init(x.shape[-1]),
        )(x)

    def logits(self, x, *, bias: bool = True):
        """The last layer, if it is dense: `[B, F]` -> `[B, num_classes]`."""
        return self.dense(x, self.num_classes, "head", bias=bias, dtype=self.head_dtype)

    def _bias_init(self, fan_in: int) -> Callable:
        if self.initializer != "pytorch":
            return nn.initializers.zeros
        bound = 1 / math.sqrt(fan_in)
        return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)

    def batch_norm(self, x, train: bool, name: str):
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


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's place in the global batch, not on the number of devices.

    Attributes:
      rate: Fraction of the activations that are dropped.
      axis_name: Mesh axis over which the batch is split, or None.
      whole_examples: Whether an example is dropped as a whole (stochastic depth).
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
        # Each random word gives two 16-bit numbers: drawing them is most of dropout's cost.
        shape = (1,) * (x.ndim - 1) if self.whole_examples else x.shape[1:]
        size = math.prod(shape)
        words = jax.vmap(lambda key: jax.random.bits(key, ((size + 1) // 2,)))(keys)
        numbers = lax.bitcast_convert_type(words, jnp.uint16).reshape(len(x), -1)[:, :size].reshape(-1, *shape)
        return jnp.where(numbers >= round(self.rate * 2**16), x / (1 - self.rate), 0)


ACTIVATIONS: dict[str, Callable] = {
    "elu": nn.elu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.3),  # the slope of Keras' layer
    "relu": nn.relu,
    "relu6": nn.relu6,
    "swish": nn.swish,
    "tanh": nn.tanh,
}

# `conv_general_dilated` of `nn.Conv`; None is XLA's.
CONVOLUTIONS: dict[str, Callable | None] = {
    "xla": None,
    "matmul": matmul_convolution,
    "forward": forward_convolution,
}

_scaling = nn.initializers.variance_scaling

# Name -> builders of the initial kernels of convolutions and of dense layers. Initial biases are 0, except "pytorch"'s.
INITIALIZERS: dict[str, tuple[Callable, Callable]] = {
    "keras": (partial(_scaling, 1, "fan_avg", "uniform"),) * 2,  # Keras' default, Glorot
    "pytorch": (partial(_scaling, 1 / 3, "fan_in", "uniform"),) * 2,  # PyTorch's default, within +-1/sqrt(fan in)
    "he": (partial(_scaling, 2, "fan_out", "normal"), partial(_scaling, 1 / 3, "fan_in", "uniform")),
    "efficientnet": (
        partial(_scaling, 2, "fan_out", "truncated_normal"),
        partial(_scaling, 1 / 3, "fan_out", "uniform"),
    ),
}
