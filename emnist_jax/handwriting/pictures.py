"""Pictures as people make them -> ink: `open_picture` and `ink_of`.

A picture is a photo, a scan or a drawing: any size and mode, dark on light or light on dark, under uneven light.
"""

import contextlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from skimage import measure
from skimage.filters import threshold_otsu

from emnist_jax.errors import UserError, first_line

# What a picture may be given as: a path, the content of a file, or an array `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or
# `[H, W, 4]`.
Picture = str | os.PathLike | bytes | Image.Image | np.ndarray

MOST_PIXELS = 100_000_000
# Content may come from anywhere: no format, such as EPS, that Pillow starts another program for.
_CONTENT_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Larger pictures are reduced: a character has enough pixels then, too.
_LONG_SIDE = 1600
# Ink must differ from its background by this much of the brightness, and by so many standard deviations of it.
_LEAST_CONTRAST = 0.06
_LEAST_SEPARATION = 4.0
# Of the ink's strength, below which a pixel is background: smears, noise, JPEG's ringing.
_FAINT = 0.2
# A sheet of paper covers this much of the picture. Of its convex hull, this much is without ink, unlike a 0 that has
# corners, and this much lies inside of its outline, unlike an H.
_LEAST_PAPER, _LEAST_COVERED, _LEAST_FILLED = 0.05, 0.65, 0.9
# If the picture cuts it off, it has more than four corners. Its sides bend by this much of their length.
_MOST_CORNERS, _CROOKED = 6, 0.03


def open_picture(picture: Picture) -> np.ndarray:
    """Returns the brightness of a picture, upright: float32 `[H, W]` in 0 to 1, at most 1,600 pixels long.

    Raises:
      UserError: It cannot be read, is no picture, or has more than `MOST_PIXELS`.
    """
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # Pillow's, about metadata and large pictures
            if isinstance(picture, np.ndarray):
                image = _from_array(picture)
            elif isinstance(picture, Image.Image):
                image = picture
            elif isinstance(picture, bytes):
                image = stack.enter_context(Image.open(io.BytesIO(picture), formats=_CONTENT_FORMATS))
            else:
                if Path(picture).is_dir():
                    raise ValueError("it is a folder; name its files")
                if not Path(picture).is_file():  # opening a FIFO would wait for ever
                    raise FileNotFoundError("there is no such file")
                image = stack.enter_context(Image.open(picture))
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} are more than {MOST_PIXELS:,} pixels")
            if image is not picture:
                image.draft(None, (_LONG_SIDE, _LONG_SIDE))  # JPEG: decodes no more than is needed
            return _brightness(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UserError("no picture in a known format, such as PNG or JPEG") from error
    # A damaged file shows as many kinds of exception.
    except Exception as error:
        known = isinstance(error, ValueError | FileNotFoundError) and str(error)
        raise UserError(str(error) if known else f"cannot be read: {first_line(error)}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4) or not array.size:
        raise ValueError(f"an array of shape {array.shape} is no picture")
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("an array of floats must lie between 0 and 1")
        array = np.round(255 * array).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = np.round(255 / max(array.max(), 1) * array).astype(np.uint8)  # cameras fill 10 to 16 of the bits
    elif array.dtype != np.uint8:
        raise ValueError(f"an array of {array.dtype} is no picture; pass bool, uint8, uint16, or floats in 0 to 1")
    return Image.fromarray(array)


def _brightness(image: Image.Image) -> np.ndarray:
    if image.mode in ("1", "P", "PA"):  # Pillow reduces these by leaving out pixels
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    image.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.BOX)
    if image.mode.startswith(("I", "F")):  # 10 to 32 bits, whose range the file does not say
        values = np.asarray(image, np.float32)
        finite = np.isfinite(values)
        if not finite.any():
            raise ValueError("none of its values is finite")
        values = np.where(finite, values, np.median(values[finite]))
        return np.clip(values / max(float(values.max()), 1e-30), 0, 1)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        values, alpha = np.asarray(image.convert("L"), np.float32) / 255, np.asarray(image)[..., 3] / np.float32(255)
        # What is drawn on a transparent ground is seen on paper of the other brightness.
        paper = 1.0 if (values * alpha).sum() < 0.5 * alpha.sum() else 0.0
        return values * alpha + paper * (1 - alpha)
    return np.asarray(image.convert("L"), np.float32) / 255


def ink_of(brightness: np.ndarray) -> np.ndarray:
    """Tells ink from its background, whichever of them is darker.

    If what stands out is a sheet of paper with holes, as on a table, the ink is what stands out on the paper.

    Args:
      brightness: float `[H, W]` in 0 to 1.

    Returns:
      float32 `[H, W]`: 0 where there is no ink, 1 where there is, between them at edges. All 0 if there is none.
    """
    band = max(round(0.05 * min(brightness.shape)), 1)
    border = np.ones_like(brightness, bool)
    border[band:-band, band:-band] = False
    ink = _ink_within(np.ones_like(border), brightness, np.median(brightness[border]))
    paper = _paper(ink)
    if paper is None:
        return ink
    on_paper = _ink_within(paper, brightness, np.median(brightness[paper]))
    return on_paper if on_paper.any() else ink


def _paper(ink: np.ndarray) -> np.ndarray | None:
    """Returns where the largest piece of ink is, bool `[H, W]`, if it is a sheet of paper with holes, and else None."""
    labels = measure.label(ink > 0.5)
    sizes = np.bincount(labels.reshape(-1))[1:]
    if not sizes.size or sizes.max() < _LEAST_PAPER * ink.size:
        return None
    (largest,) = measure.regionprops((labels == 1 + sizes.argmax()).astype(np.uint8))
    area = largest.area_convex
    if largest.area < _LEAST_COVERED * area or largest.area_filled < _LEAST_FILLED * area:
        return None
    outline = max(measure.find_contours(np.pad(largest.image_convex, 1), 0.5), key=len)
    first = np.abs(outline - outline.mean(0)).sum(1).argmax()  # a corner
    outline = np.concatenate([outline[first:-1], outline[: first + 1]])
    if len(measure.approximate_polygon(outline, _CROOKED * np.sqrt(area))) > 1 + _MOST_CORNERS:
        return None
    paper = np.zeros_like(ink, bool)
    paper[largest.slice] = largest.image_convex
    paper = ndimage.binary_erosion(paper, iterations=max(round(0.01 * min(ink.shape)), 2), border_value=1)
    return paper if paper.any() else None


def _ink_within(mask: np.ndarray, brightness: np.ndarray, background: float) -> np.ndarray:
    """Returns the ink of a part of a picture, 0 elsewhere.

    The background's brightness is a quadratic surface, as of a lamp beside the paper, fitted to what is not ink.

    Args:
      mask: bool `[H, W]`, the part.
      brightness: float `[H, W]`.
      background: A first guess of the background's brightness.
    """
    height, width = brightness.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    y, x, values = y[mask], x[mask], brightness[mask].astype(np.float64)
    surface = np.stack([np.ones_like(y), y, x, y * y, x * y, x * x], -1)
    thin = slice(None, None, max(values.size // 20_000, 1))
    background = np.full_like(values, background)
    ink = np.zeros_like(brightness, np.float32)
    for terms in (1, 3, 6, 6):
        difference = np.abs(values - background)
        if difference.max() < _LEAST_CONTRAST:
            return ink
        paper = (difference <= _otsu(difference))[thin]
        if paper.mean() < 0.3:  # too little to fit a surface to
            break
        factors, *_ = np.linalg.lstsq(surface[thin, :terms][paper], values[thin][paper], rcond=None)
        background = surface[:, :terms] @ factors
    difference = values - background
    is_ink = np.abs(difference) > _otsu(np.abs(difference))
    strength = np.maximum(difference * np.sign(difference[is_ink].sum()), 0)
    is_ink = strength > _otsu(strength) if strength.max() else np.zeros_like(is_ink)
    if not is_ink.any() or is_ink.all():
        return ink
    level, noise = np.median(strength[is_ink]), strength[~is_ink].std()
    if level >= max(_LEAST_CONTRAST, _LEAST_SEPARATION * noise):
        ink[mask] = np.clip((strength / level - _FAINT) / (1 - _FAINT), 0, 1)
    return ink


def _otsu(values: np.ndarray) -> float:
    """Returns Otsu's threshold; two-tone pictures have values that differ by rounding alone, too little for it."""
    return threshold_otsu(np.round(values, 6))
