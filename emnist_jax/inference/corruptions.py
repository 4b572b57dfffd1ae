"""What pens, scanners and hands do to an image, in a few strengths: `CORRUPTIONS`. Two runs make the same pixels."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage import util

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A change of images, in one strength.

    Attributes:
      name: What is done, e.g. "rotation".
      amount: How much of it, in `unit`.
      unit: E.g. "degrees".
      change: Makes of uint8 `[N, 28, 28]`, the amount and a random generator other images of the same shape and dtype.
    """

    name: str
    amount: float
    unit: str
    change: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the changed images, uint8 `[N, 28, 28]`: always the same ones of the same images."""
        return self.change(images, self.amount, np.random.default_rng(0))


def shifted(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Shifts images uint8 `[N, 28, 28]` by whole pixels; what comes in is black."""
    return ndimage.shift(images, (0, down, right), order=0)


def _noise(images: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return _as_uint8(util.random_noise(images, "gaussian", rng, var=deviation**2))


def _blur(images: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return _as_uint8(ndimage.gaussian_filter(images / 255, (0, deviation, deviation)))


def _rotation(images: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Turns each image to the left or to the right."""
    changed, clockwise = np.empty_like(images), rng.random(len(images)) < 0.5
    for rows, angle in ((clockwise, -degrees), (~clockwise, degrees)):
        changed[rows] = ndimage.rotate(images[rows], angle, axes=(2, 1), reshape=False, order=1)
    return changed


def _shift(images: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Shifts each image up, down, to the left or to the right."""
    changed, direction = np.empty_like(images), rng.integers(len(NEIGHBOURS), size=len(images))
    for i, (down, right) in enumerate(NEIGHBOURS):
        changed[direction == i] = shifted(images[direction == i], down * pixels, right * pixels)
    return changed


def _thinner(images: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    return ndimage.grey_erosion(images, (1, pixels + 1, pixels + 1))


def _thicker(images: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    return ndimage.grey_dilation(images, (1, pixels + 1, pixels + 1))


def _as_uint8(images: np.ndarray) -> np.ndarray:
    return np.round(255 * images).astype(np.uint8)


CORRUPTIONS = tuple(
    Corruption(name, amount, unit, change)
    for name, unit, change, amounts in (
        ("noise", "of full brightness", _noise, (0.1, 0.2, 0.4)),
        ("blur", "pixels", _blur, (0.5, 1, 1.5)),
        ("rotation", "degrees", _rotation, (10, 20, 30)),
        ("thinner strokes", "pixels", _thinner, (1, 2)),
        ("thicker strokes", "pixels", _thicker, (1, 2)),
        ("shift", "pixels", _shift, (1, 2, 4)),
    )
    for amount in amounts
)
