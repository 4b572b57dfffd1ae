"""Random affine and elastic warps with one interpolation, and brightness, on the device.

Elastic distortion as in Simard et al., "Best Practices for Convolutional Neural Networks Applied to Visual
Document Analysis" (2003): white noise, smoothed by a Gaussian, displaces every pixel.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates


def warp(image: jax.Array, matrix: jax.Array, shift: jax.Array, displacement: jax.Array) -> jax.Array:
    """Warps one image about its centre, by bilinear interpolation; outside it lies 0.

    Args:
      image: `[H, W]`.
      matrix: `[2, 2]`, maps offsets (down, right) from the centre in the output to those in the input.
      shift: `[2]`, moves the output down and right, in pixels.
      displacement: `[2, H, W]`, added to the input coordinates, in pixels.

    Returns:
      `[H, W]`.
    """
    centre = (jnp.array(image.shape, image.dtype)[:, None, None] - 1) / 2
    offsets = jnp.indices(image.shape, image.dtype) - centre - shift[:, None, None]
    # Two products rather than a matrix one: on GPUs that may round to TF32, and the identity must be exact.
    coordinates = matrix[:, 0, None, None] * offsets[0] + matrix[:, 1, None, None] * offsets[1]
    return map_coordinates(image, list(coordinates + centre + displacement), order=1)


def affine_matrix(rotation: jax.Array, shear: jax.Array, zoom: jax.Array) -> jax.Array:
    """Returns the `[2, 2]` matrix for `warp` that zooms, shears along the rows, then rotates.

    Args:
      rotation: Radians, counter-clockwise as seen.
      shear: Radians by which the vertical leans.
      zoom: Factor; above 1 enlarges.
    """
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    # The inverse of rotation @ shear @ zoom, in (down, right) offsets.
    unrotate = jnp.array([[cos, sin], [-sin, cos]])
    lean = jnp.tan(shear)
    # unshear = [[1, 0], [-lean, 1]]
    return jnp.stack([unrotate[0], unrotate[1] - lean * unrotate[0]]) / zoom


def smoothing_matrix(size: int, sigma: float) -> np.ndarray:
    """Returns the `[size, size]` Gaussian smoother that keeps white noise at unit variance."""
    offsets = np.subtract.outer(np.arange(size), np.arange(size))
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    return (kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32)


def augment(images: jax.Array, keys: jax.Array, config) -> jax.Array:
    """Augments each image by its own key; with all ranges 0 it returns the images themselves.

    Args:
      images: `[B, H, W]` in 0 to 1.
      keys: `[B]` random keys.
      config: The section `config.augmentation`.

    Returns:
      `[B, H, W]` in 0 to 1.
    """
    limits = np.array(
        [
            np.radians(config.max_rotation_degrees),
            np.radians(config.max_shear_degrees),
            config.max_zoom_fraction,
            config.max_shift_pixels,
            config.max_shift_pixels,
            config.max_brightness_fraction,
        ],
        np.float32,
    )
    height, width = images.shape[1:]

    def augment_one(image, key):
        affine_key, elastic_key = jax.random.split(key)
        values = limits * jax.random.uniform(affine_key, limits.shape, minval=-1, maxval=1)
        displacement = jnp.zeros((2, height, width))
        if config.elastic_displacement_pixels:
            down, right = (smoothing_matrix(n, config.elastic_smoothness_pixels) for n in (height, width))
            noise = jax.random.normal(elastic_key, (2, height, width))
            displacement = config.elastic_displacement_pixels * (down @ noise @ right.T)
        if warps:
            image = warp(image, affine_matrix(values[0], values[1], 1 + values[2]), values[3:5], displacement)
        return jnp.clip(image * (1 + values[5]), 0, 1) if config.max_brightness_fraction else image

    warps = np.any(limits[:5]) or config.elastic_displacement_pixels
    if not warps and not config.max_brightness_fraction:
        return images
    return jax.vmap(augment_one)(images, keys)
