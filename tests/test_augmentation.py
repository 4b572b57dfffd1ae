"""Tests of the warps: against scipy and numpy, in direction, range, size and smoothness."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import scipy.ndimage

from emnist_jax import study
from emnist_jax.config import base
from emnist_jax.training import augmentation

SHAPES = [(28, 28), (32, 32), (28, 32)]  # the last one shows swapped axes

# Compiling is most of the time.
FAST = {"xla_backend_optimization_level": 0}
augment = jax.jit(augmentation.augment, static_argnames="config", compiler_options=FAST)
warp = jax.jit(jax.vmap(augmentation.warp))
affine_matrix = jax.jit(jax.vmap(augmentation.affine_matrix))


def settings(**changes) -> ml_collections.FrozenConfigDict:
    """Returns the base config's section with `changes`, frozen so that jit takes it."""
    section = base().augmentation
    for key, value in changes.items():
        section[key] = value
    return ml_collections.FrozenConfigDict(section)


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def pictures(count: int, shape=(28, 28)) -> np.ndarray:
    """Returns smooth noise inside and on the border, and a letter F, which no rotation or mirror keeps."""
    noise = np.random.default_rng(0).random((count, *shape))
    images = 0.2 * scipy.ndimage.gaussian_filter(noise, (0, 0.7, 0.7)) + 0.1 * noise
    for rows, columns in (
        (slice(5, 23), slice(8, 11)),
        (slice(5, 8), slice(8, 21)),
        (slice(13, 16), slice(8, 17)),
    ):
        images[:, rows, columns] = 0.7 + 0.3 * noise[:, rows, columns]
    return images.astype(np.float32)


def ramps(count: int, shape) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` images whose pixels are their row, and their column, as fractions of the size.

    Bilinear interpolation is exact on them, so that a warped ramp tells from where each pixel came.
    """
    rows, columns = np.indices(shape) / np.reshape(shape, (2, 1, 1))
    return tuple(np.broadcast_to(x, (count, *shape)).astype(np.float32) for x in (rows, columns))


def origins(config, count: int, shape=(28, 32)) -> np.ndarray:
    """Returns `[count, 2, H, W]`, the place (row, column) that each pixel of an augmented image came from."""
    warped = [augment(ramp, keys(count), config) for ramp in ramps(count, shape)]
    return np.stack(warped, 1).astype(np.float64) * np.reshape(shape, (2, 1, 1))


def recover(config, count: int = 400) -> dict[str, np.ndarray]:
    """Returns the rotations, shears, zooms and shifts that `augment` chose, from warped ramps."""
    places = origins(config, count)
    centre = (np.array(places.shape[2:]) - 1) / 2
    row, column = np.int32(centre)  # the pixel up and left of the centre
    inverse = np.stack(
        [
            places[:, :, row + 1, column] - places[:, :, row, column],
            places[:, :, row, column + 1] - places[:, :, row, column],
        ],
        axis=-1,
    )
    origin_of_centre = places[:, :, row : row + 2, column : column + 2].mean((2, 3))
    shifts = np.linalg.solve(inverse, (centre - origin_of_centre)[..., None])[..., 0]
    forward = np.linalg.inv(inverse)
    zooms = np.sqrt(np.linalg.det(forward))
    # rotation @ [[1, 0], [lean, 1]], in (down, right)
    rotations = np.arctan2(-forward[:, 0, 1], forward[:, 1, 1])
    cos, sin = np.cos(rotations), np.sin(rotations)
    leans = (-sin * forward[:, 0, 0] + cos * forward[:, 1, 0]) / zooms
    return {
        "rotation": np.degrees(rotations),
        "shear": np.degrees(np.arctan(-leans)),
        "zoom": zooms - 1,
        "down": shifts[:, 0],
        "right": shifts[:, 1],
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_warp_equals_scipy(shape):
    count = 12
    rng = np.random.default_rng(1)
    rotation, shear = rng.uniform(-np.pi, np.pi, count), rng.uniform(-0.7, 0.7, count)
    zoom, shift = rng.uniform(0.5, 1.6, count), rng.uniform(-4, 4, (count, 2))
    images = pictures(count, shape)
    matrices = affine_matrix(*(jnp.asarray(x, jnp.float32) for x in (rotation, shear, zoom)))
    warped = warp(images, matrices, jnp.asarray(shift, jnp.float32), jnp.zeros((count, 2, *shape)))
    for i in range(count):
        # In x to the right and y up: enlarge, lean and turn, counter-clockwise where positive.
        enlarge = np.eye(2) * zoom[i]
        lean = np.array([[1, -np.tan(shear[i])], [0, 1]])
        turn = np.array([[np.cos(rotation[i]), -np.sin(rotation[i])], [np.sin(rotation[i]), np.cos(rotation[i])]])
        to_xy = np.array([[0, 1], [-1, 0]])  # from (down, right)
        inverse = np.linalg.inv(np.linalg.inv(to_xy) @ turn @ lean @ enlarge @ to_xy)
        centre = (np.array(shape) - 1) / 2
        expected = scipy.ndimage.affine_transform(
            images[i].astype(np.float64),
            inverse,
            centre - inverse @ (centre + shift[i]),
            order=1,
            mode="grid-constant",
        )
        np.testing.assert_allclose(warped[i], expected, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_is_exact(shape):
    images = pictures(3, shape)
    nothing = jnp.zeros((3, 2, *shape))
    warped = warp(images, jnp.tile(jnp.eye(2), (3, 1, 1)), jnp.zeros((3, 2)), nothing)
    np.testing.assert_array_equal(warped, images)
    matrices = affine_matrix(jnp.zeros(3), jnp.zeros(3), jnp.ones(3))
    np.testing.assert_array_equal(warp(images, matrices, jnp.zeros((3, 2)), nothing), images)


def test_no_augmentation_returns_the_images_themselves():
    images = jnp.asarray(pictures(2))
    assert augmentation.augment(images, keys(2), base().augmentation) is images


def test_whole_shift_moves_exactly():
    images = pictures(1)
    warped = warp(images, jnp.eye(2)[None], jnp.array([[2.0, -3.0]]), jnp.zeros((1, 2, 28, 28)))[0]
    expected = np.zeros((28, 28), np.float32)
    expected[2:, :-3] = images[0, :-2, 3:]
    np.testing.assert_array_equal(warped, expected)


def test_displacement_is_added_to_the_place_in_the_input():
    images = pictures(1)
    displacement = jnp.zeros((1, 2, 28, 28)).at[0, 0, 10, 7].set(3.0).at[0, 1, 10, 8].set(-2.0)
    warped = warp(images, jnp.eye(2)[None], jnp.zeros((1, 2)), displacement)[0]
    expected = images[0].copy()
    expected[10, 7], expected[10, 8] = images[0, 13, 7], images[0, 10, 6]
    np.testing.assert_array_equal(warped, expected)


@pytest.mark.parametrize("quarters", [1, 2, -1])
def test_rotation_is_counter_clockwise(quarters):
    images = pictures(1)
    matrix = affine_matrix(jnp.full(1, quarters * jnp.pi / 2), jnp.zeros(1), jnp.ones(1))
    warped = warp(images, matrix, jnp.zeros((1, 2)), jnp.zeros((1, 2, 28, 28)))[0]
    np.testing.assert_allclose(warped, np.rot90(images[0], quarters), atol=1e-4)


def test_zoom_above_one_enlarges():
    image = np.zeros((1, 28, 28), np.float32)
    image[0, 9:19, 9:19] = 1
    matrix = affine_matrix(jnp.zeros(1), jnp.zeros(1), jnp.full(1, 1.5))
    warped = warp(image, matrix, jnp.zeros((1, 2)), jnp.zeros((1, 2, 28, 28)))
    np.testing.assert_allclose(warped.sum(), 1.5**2 * image.sum(), rtol=0.03)


RANGES = {
    "rotation": ("max_rotation_degrees", 40.0),
    "shear": ("max_shear_degrees", 20.0),
    "zoom": ("max_zoom_fraction", 0.25),
    "down": ("max_shift_pixels", 3.0),
    "right": ("max_shift_pixels", 3.0),
}


@pytest.mark.parametrize("names", [("rotation",), ("shear",), ("zoom",), ("down", "right"), tuple(RANGES)])
def test_ranges_are_uniform_and_respected(names):
    found = recover(settings(**dict(RANGES[name] for name in names)))
    for name, values in found.items():
        limit = RANGES[name][1]
        if name not in names:
            np.testing.assert_allclose(values, 0, atol=1e-3 * limit, err_msg=name)
            continue
        assert np.abs(values).max() <= 1.001 * limit, name
        assert values.max() > 0.95 * limit and values.min() < -0.95 * limit, name
        np.testing.assert_allclose(values.std(), limit / np.sqrt(3), rtol=0.1, err_msg=name)
    chosen = [found[name] for name in names]
    correlations = np.atleast_2d(np.corrcoef(chosen)) - np.eye(len(names))
    assert np.abs(correlations).max() < 0.2, "drawn together"


@pytest.mark.parametrize(("pixels", "sigma", "margin"), [(0.5, 4.0, 3), (0.5, 2.0, 3), (0.25, 1.0, 2)])
def test_elastic_displacement(pixels, sigma, margin):
    """Its root mean square is the config's, and two pixels' correlation that of noise behind a Gaussian."""
    config = settings(elastic_displacement_pixels=pixels, elastic_smoothness_pixels=sigma)
    inside = (..., slice(margin, -margin), slice(margin, -margin))
    displacement = (origins(config, 600) - np.indices((28, 32)))[inside]
    np.testing.assert_allclose(np.sqrt(np.square(displacement).mean((0, 2, 3))), pixels, rtol=0.05)
    for axis in (2, 3):
        first, second = (np.take(displacement, range(s, s + 20), axis) for s in (0, 2))
        correlation = (first * second).mean() / pixels**2
        np.testing.assert_allclose(correlation, np.exp(-(2**2) / (4 * sigma**2)), atol=0.08, err_msg=str(axis))
    assert np.abs((displacement[:, 0] * displacement[:, 1]).mean()) < 0.1 * pixels**2, "axes move together"


def test_elastic_displacement_is_as_large_at_the_border():
    displacement = origins(settings(elastic_displacement_pixels=0.2), 600) - np.indices((28, 32))
    for border in (displacement[:, :, 1, 1:-1], displacement[:, :, -2, 1:-1], displacement[:, :, 1:-1, 1]):
        np.testing.assert_allclose(np.sqrt(np.square(border).mean()), 0.2, rtol=0.1)


def test_brightness_multiplies_and_stays_in_range():
    config = settings(max_brightness_fraction=0.4)
    images = pictures(300) * 0.6
    bright = np.asarray(augment(images, keys(300), config))
    factors = bright.sum((1, 2)) / images.sum((1, 2))
    np.testing.assert_allclose(bright, images * factors[:, None, None], atol=1e-6)
    assert 0.6 <= factors.min() < 0.63 and 1.37 < factors.max() <= 1.4001
    white = np.asarray(augment(np.ones((300, 28, 28), np.float32), keys(300), config))
    np.testing.assert_allclose(white[:, 0, 0], np.minimum(factors, 1), rtol=1e-5)


EVERYTHING = dict(
    max_rotation_degrees=10.0,
    max_shear_degrees=10.0,
    max_shift_pixels=2.0,
    elastic_displacement_pixels=1.0,
    max_zoom_fraction=0.1,
    max_brightness_fraction=0.1,
)


def test_every_example_has_its_own_key():
    config = settings(**EVERYTHING)
    same = np.repeat(pictures(1), 4, axis=0)
    batch = augment(same, keys(4), config)
    for i in range(4):
        alone = augment(same[:1], keys(4)[i : i + 1], config)
        np.testing.assert_allclose(batch[i], alone[0], atol=1e-4)
        assert all(np.abs(batch[i] - batch[j]).max() > 0.05 for j in range(i))
    np.testing.assert_array_equal(batch, augment(same, keys(4), config))


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_the_study_s_stacks(shape):
    """aug_1 rotation, aug_2 + shift, aug_3 + distortion, aug_4 + zoom, aug_5 + brightness."""
    images = previous = pictures(6, shape)
    stack = {}
    for added, _ in study.AUGMENTATIONS.values():
        stack[added] = EVERYTHING[added]
        augmented = np.asarray(augment(images, keys(6), settings(**stack)))
        assert augmented.shape == images.shape and augmented.dtype == np.float32
        assert np.isfinite(augmented).all() and augmented.min() >= 0 and augmented.max() <= 1
        for before in (images, previous):
            assert np.abs(augmented - before).max((1, 2)).min() > 0.01, added
        np.testing.assert_allclose(augmented.mean((1, 2)), images.mean((1, 2)), rtol=0.35)
        previous = augmented
