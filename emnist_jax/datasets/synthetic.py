"""Stand-ins for the EMNIST sets that need no download: rendered characters with random distortions.

The 62 characters come from matplotlib's text fonts (DejaVu, STIX, Computer Modern) in three stroke widths. Each image
gets its own affine and elastic distortion (Simard et al. 2003, "Best practices for convolutional neural networks
applied to visual document analysis"). As in EMNIST, images are white on black, the longer side of a character is about
22 of 28 pixels, and the small letters that EMNIST merges share a class with their capitals. Real handwriting is harder:
an accuracy on these sets shows that a program works, not how well a network reads.

An image depends on the set's name, the seed, the split, and the versions of numpy, Pillow and the fonts.
"""

import pathlib
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from emnist_jax import errors
from emnist_jax.datasets import official

CLASS_NAMES = {
    "synthetic/balanced": official.MERGED,
    "synthetic/bymerge": official.MERGED,
    "synthetic/byclass": official.BY_CLASS,
    "synthetic/letters": official.CAPITALS,
    "synthetic/digits": official.DIGITS,
    "synthetic/mnist": official.DIGITS,
}

_TRAIN_PER_CLASS = 400
_TEST_PER_CLASS = 100
# More than ByClass has on average. 62 classes of this size take a gigabyte.
_MOST_PER_CLASS = 20_000

# matplotlib's text fonts, without the bold ones, as pens are thin.
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic"),
    *("cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
_FONT_PIXELS = 96
_STROKE_PIXELS = (0, 2, 4)  # Added to the outline on each side, at _FONT_PIXELS.

_SIZE = 28
# Glyphs have twice the final resolution. The distortion samples from them.
_GLYPH_SIZE = 2 * _SIZE
_GLYPH_EXTENT = 44
# Knots per side of the grid whose random displacements make the elastic distortion.
_KNOTS = 5
_CHUNK = 512


def render(
    name: str, train_per_class: int | None, test_per_class: int | None, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    """Renders a set.

    Args:
      name: One of `CLASS_NAMES`.
      train_per_class: Training images of each class, including those for validation; None for 400.
      test_per_class: Test images of each class; None for 100.
      seed: Selects one of the possible sets; not negative.

    Returns:
      The training split, the test split (uint8 `[N, 28, 28]` and int32 `[N]`, classes mixed), and the number of
      validation images, which are the last training rows: a fifth of each class, rounded down.

    Raises:
      UserError: A count is below 1 or above 20,000, or the seed is below 0.
    """
    train_per_class = _TRAIN_PER_CLASS if train_per_class is None else train_per_class
    test_per_class = _TEST_PER_CLASS if test_per_class is None else test_per_class
    if (
        not 1 <= min(train_per_class, test_per_class) <= max(train_per_class, test_per_class) <= _MOST_PER_CLASS
        or seed < 0
    ):
        raise errors.UserError(
            f"--config.dataset.train_per_class and test_per_class must be 1 to {_MOST_PER_CLASS:,}, and seed at "
            f"least 0; got {train_per_class}, {test_per_class} and {seed}"
        )
    class_names = CLASS_NAMES[name]
    num_classes = len(class_names)
    glyphs, glyphs_of_class = _glyphs(class_names)
    train_rng, test_rng = np.random.default_rng([zlib.crc32(name.encode()), seed]).spawn(2)

    validation_per_class = train_per_class // 5
    classes = np.arange(num_classes, dtype=np.int32)
    fit_labels = np.repeat(classes, train_per_class - validation_per_class)
    validation_labels = np.repeat(classes, validation_per_class)
    # They are mixed separately, so that the validation rows have the same number of images of each class.
    train_labels = np.concatenate([train_rng.permutation(fit_labels), train_rng.permutation(validation_labels)])
    test_labels = test_rng.permutation(np.repeat(classes, test_per_class))
    train_images = _distorted(glyphs, glyphs_of_class[train_labels], train_rng)
    test_images = _distorted(glyphs, glyphs_of_class[test_labels], test_rng)
    return (
        (train_images, train_labels),
        (test_images, test_labels),
        num_classes * validation_per_class,
    )


def _glyphs(class_names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Draws every character of the classes in every font and stroke width.

    Returns:
      Glyphs, uint8 `[G, 56, 56]`, and the ranges (first, one past the last) of the glyphs of each class' two
      characters, `[num_classes, 2, 2]`. If a class has one character, both ranges are its.
    """
    import matplotlib

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", _FONT_PIXELS) for name in _FONTS]
    pairs = [(name, name if name.lower() in class_names else name.lower()) for name in class_names]
    glyphs, ranges = [], {}
    for character in sorted({character for pair in pairs for character in pair}):
        start = len(glyphs)
        glyphs += [_glyph(character, font, width) for font in fonts for width in _STROKE_PIXELS]
        ranges[character] = (start, len(glyphs))
    return np.stack(glyphs), np.array([[ranges[character] for character in p] for p in pairs])


def _glyph(character: str, font: ImageFont.FreeTypeFont, stroke_pixels: int) -> np.ndarray:
    """Draws a character, scaled and centred by its bounding box: uint8 `[56, 56]`."""
    canvas = Image.new("L", (2 * _FONT_PIXELS, 2 * _FONT_PIXELS))
    ImageDraw.Draw(canvas).text(
        (_FONT_PIXELS, _FONT_PIXELS),
        character,
        fill=255,
        font=font,
        anchor="mm",
        stroke_width=stroke_pixels,
    )
    glyph = canvas.crop(canvas.getbbox())
    scale = _GLYPH_EXTENT / max(glyph.size)
    glyph = glyph.resize([max(1, round(scale * side)) for side in glyph.size], Image.Resampling.BOX)
    framed = Image.new("L", (_GLYPH_SIZE, _GLYPH_SIZE))
    framed.paste(glyph, [(_GLYPH_SIZE - side) // 2 for side in glyph.size])
    return np.asarray(framed.filter(ImageFilter.GaussianBlur(1)))


def _distorted(glyphs: np.ndarray, ranges: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws one image for each row of `ranges` (`[N, 2, 2]`): uint8 `[N, 28, 28]`."""
    chunks = [_distort(glyphs, ranges[start : start + _CHUNK], rng) for start in range(0, len(ranges), _CHUNK)]
    return np.concatenate(chunks)


def _distort(glyphs: np.ndarray, ranges: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(ranges)
    first, last = ranges[np.arange(n), rng.integers(2, size=n)].T
    chosen = rng.integers(first, last)

    angle = np.deg2rad(rng.normal(0, 8, n))
    shear = rng.normal(0, 0.15, n)
    zoom_y, zoom_x = rng.uniform(0.8, 1.1, (2, n))
    shift = rng.normal(0, 0.8, (2, n, 1, 1))
    # Displacement of each pixel: random at the knots, smooth between them.
    pixels = np.arange(_SIZE)
    knots = np.linspace(0, _SIZE - 1, _KNOTS)
    weights = np.exp(-0.5 * ((pixels[:, None] - knots) / (knots[1] * 0.6)) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    field = weights @ rng.normal(0, 0.9, (2, n, _KNOTS, _KNOTS)) @ weights.T

    # The place in the glyph that each pixel of the image shows, in pixels.
    centre = (_SIZE - 1) / 2
    y = pixels[:, None] - centre - shift[0] + field[0]
    x = pixels - centre - shift[1] + field[1]
    sin, cos, shear, zoom_y, zoom_x = (v[:, None, None] for v in (np.sin(angle), np.cos(angle), shear, zoom_y, zoom_x))
    y, x = (cos * y - sin * x) / zoom_y, (sin * y + cos * x) / zoom_x
    x = x + shear * y
    scale = _GLYPH_SIZE / _SIZE
    # Places outside of the glyph are clipped to its border, which is black.
    y, x = (np.clip(scale * (v + centre) + 0.5, 0, _GLYPH_SIZE - 1.001) for v in (y, x))
    row, column = y.astype(np.int64), x.astype(np.int64)
    y, x = y - row, x - column
    flat = glyphs.reshape(-1)
    at = (chosen[:, None, None] * _GLYPH_SIZE + row) * _GLYPH_SIZE + column
    top = flat[at] * (1 - x) + flat[at + 1] * x
    bottom = flat[at + _GLYPH_SIZE] * (1 - x) + flat[at + _GLYPH_SIZE + 1] * x
    # Strokes saturate, as in EMNIST.
    gain = rng.uniform(0.9, 1.4, (n, 1, 1))
    return np.clip(gain * (top * (1 - y) + bottom * y), 0, 255).astype(np.uint8)
