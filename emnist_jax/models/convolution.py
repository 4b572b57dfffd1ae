"""Convolutions that are faster on CPUs than XLA's."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def matmul_convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    feature_group_count: int = 1,
    **unused,
) -> jax.Array:
    """Convolution as one slice for each kernel position and one matrix product.

    It is several times faster than XLA's convolution on CPUs, above all inside a loop. `nn.Conv` takes it as
    `conv_general_dilated`. It has no dilation.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, C / groups, features]`.
      window_strides: Stride along H and W.
      padding: "SAME", "VALID" or the pixels before and after, along H and W.
      feature_group_count: Number of groups.
      **unused: Other arguments of `nn.Conv`.

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
    # Narrow matrix products are slow. Above 16 features, four times as many take longer.
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
    # One batch of matrix products, one for each group: XLA transposes the least.
    patches = jnp.concatenate([x.reshape(-1, groups, channels).swapaxes(0, 1) for x in slices], axis=-1)
    kernels = kernel.reshape(height * width * channels, groups, features // groups).swapaxes(0, 1)
    return (patches @ kernels).swapaxes(0, 1).reshape(*slices[0].shape[:3], features)


def forward_convolution(inputs: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    """Convolution for inference: XLA's, which is fast outside of loops, unless matrix products are faster.

    They are if the channels are few and grouped by two pixels, if the kernel is one pixel or larger than the image, and
    if there are groups. Arguments and result are those of `matmul_convolution`.
    """
    height, width, channels, features = kernel.shape
    few = channels <= 8 and features <= 16
    larger = height > inputs.shape[1] or width > inputs.shape[2]
    if few or larger or height == width == 1 or kwargs.get("feature_group_count", 1) > 1:
        return matmul_convolution(inputs, kernel, *args, **kwargs)
    return lax.conv_general_dilated(inputs, kernel, *args, **kwargs)


def _by_two_rows_and_columns(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution with 2x2 pixels taken as one, for odd square kernels, stride 1 and no padding.

    Channels and features become four times as many, and the kernel smaller. A 3x3 kernel takes 1.8 times the
    arithmetic, but its products are wide, and less than half as much is copied.
    """
    size, _, channels, features = kernel.shape
    inputs = jnp.pad(inputs, ((0, 0), (0, inputs.shape[1] % 2), (0, inputs.shape[2] % 2), (0, 0)))
    batch, height, width, _ = inputs.shape
    blocks = inputs.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    # One shifted kernel for each of the four outputs of a block.
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
