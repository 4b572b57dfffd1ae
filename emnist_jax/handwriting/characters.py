"""Ink -> characters in reading order -> 28 x 28 images as the data sets have them.

MNIST's images: the character in a box of 20 x 20 pixels, its centre of mass in the middle
(http://yann.lecun.com/exdb/mnist). EMNIST's: blurred, cut out, centred in a square with a border of 2 pixels, and
reduced with bicubic interpolation (Cohen et al. 2017, https://arxiv.org/abs/1702.05373, section II).
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import measure, morphology

from emnist_jax.errors import UserError
from emnist_jax.handwriting import pictures

SIZE = 28
MOST_CHARACTERS = 500


# Of the longest piece's length: what is shorter is dirt.
_SPECK = 0.06
# So many of the largest pieces may be frames or edges.
_MOST_FRAMES = 10


@dataclasses.dataclass(frozen=True)
class Character:
    """A character of a picture.

    Attributes:
      image: As the network sees it, uint8 `[28, 28]`, white on black.
      box: Where it is: top, left, bottom and right, in pixels of the picture's brightness.
      line: Its line, from 0 on.
      after_space: Whether a space comes before it.
    """

    image: np.ndarray
    box: tuple[int, int, int, int]
    line: int = 0
    after_space: bool = False


@dataclasses.dataclass
class _Part:
    """A connected piece of ink, or several that are one character."""

    labels: list[int]
    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def length(self) -> int:
        return max(self.height, self.width)

    def holds(self, other: "_Part") -> bool:
        return (
            self.top <= other.top
            and self.left <= other.left
            and self.bottom >= other.bottom
            and self.right >= other.right
        )


def image_of(picture: pictures.Picture, style: str) -> np.ndarray:
    """Brings a picture of one character into the form of the data sets: all its ink, cut out and centred.

    Args:
      picture: Of any size and brightness.
      style: "mnist" or "emnist".

    Returns:
      uint8 `[28, 28]`, white on black.

    Raises:
      UserError: The picture cannot be read, or holds no ink.
    """
    return one_character(pictures.ink_of(pictures.open_picture(picture)), style).image


def one_character(ink: np.ndarray, style: str) -> Character:
    """Takes all ink of a picture as one character.

    Args:
      ink: float `[H, W]`, from `pictures.ink_of`.
      style: "mnist" or "emnist".

    Raises:
      UserError: There is no ink.
    """
    labels, parts = _parts(ink)
    return _character(ink, labels, _merged(parts), style)


def characters(ink: np.ndarray, style: str) -> list[Character]:
    """Cuts a picture of a word, a line or several lines into its characters, in reading order.

    Characters that touch each other are not separated.

    Args:
      ink: float `[H, W]`, from `pictures.ink_of`.
      style: "mnist" or "emnist".

    Raises:
      UserError: There is no ink.
    """
    labels, parts = _parts(ink)
    if len(parts) > MOST_CHARACTERS:
        raise UserError(f"there are {len(parts):,} pieces of ink: more than {MOST_CHARACTERS} characters are not read")
    found = []
    for number, line in enumerate(_lines(_broken_merged(parts))):
        gaps = [right.left - left.right for left, right in zip(line, line[1:], strict=False)]
        height = np.median([part.height for part in line])
        wide = max(0.4 * height, min(2 * np.median(gaps or [0]), 1.5 * height))
        for part, gap in zip(line, [0, *gaps], strict=True):
            character = _character(ink, labels, part, style)
            found.append(dataclasses.replace(character, line=number, after_space=bool(gap > wide)))
    return found


def _parts(ink: np.ndarray) -> tuple[np.ndarray, list[_Part]]:
    """Returns the connected pieces of ink, and each pixel's label, without specks, frames, rules and the table."""
    labels = measure.label(ink > 0.5, connectivity=2)
    boxes = enumerate(ndimage.find_objects(labels), 1)
    parts = [_Part([label], y.start, x.start, y.stop, x.stop) for label, (y, x) in boxes]
    if not parts:
        raise UserError("no character was found: nothing stands out from the background")
    for part in sorted(parts, key=lambda part: -part.height * part.width)[:_MOST_FRAMES]:
        others = [other for other in parts if other is not part]
        framed = any(part.holds(other) and other.length >= _SPECK * part.length for other in others)
        beside = any(other.height >= 0.15 * len(ink) for other in others)
        if framed and _is_frame(labels, part) or beside and _is_edge(labels, part):
            parts = others
    for part in sorted(parts, key=lambda part: -part.width)[:_MOST_FRAMES]:
        if _is_rule(labels, part, parts):
            parts.remove(part)
    most = max(part.length for part in parts)
    parts = [part for part in parts if part.length >= _SPECK * most]
    return labels, parts


def _is_frame(labels: np.ndarray, part: _Part) -> bool:
    """Tells whether a piece is a rectangle drawn around others: it runs along all four sides of its box."""
    cut = labels[part.top : part.bottom, part.left : part.right] == part.labels[0]
    depth = max(round(0.1 * min(cut.shape)), 1)
    sides = (cut[:depth].any(0), cut[-depth:].any(0), cut[:, :depth].any(1), cut[:, -depth:].any(1))
    return min(side.mean() for side in sides) > 0.8


def _is_edge(labels: np.ndarray, part: _Part) -> bool:
    """Tells whether a piece is the table beside the paper: it runs along a side of the picture."""
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    return max((side == part.labels[0]).mean() for side in sides) > 0.5


def _is_rule(labels: np.ndarray, part: _Part, parts: list[_Part]) -> bool:
    """Tells whether a piece is a line drawn under others: long, flat, one stroke high, and two of them stand on it."""
    if part.height > 0.15 * part.width:
        return False
    cut = labels[part.top : part.bottom, part.left : part.right] == part.labels[0]
    strokes = np.diff(cut.astype(np.int8), axis=0, prepend=0).clip(0).sum(0)
    thickness = cut.sum(0).mean()
    above = [
        other
        for other in parts
        if other.height > 2 * thickness
        and part.left <= (other.left + other.right) / 2 <= part.right
        and (other.top + other.bottom) / 2 < part.top
    ]
    return strokes.mean() < 1.1 and len(above) > 1


def _merged(parts: list[_Part]) -> _Part:
    return _Part(
        [label for part in parts for label in part.labels],
        min(part.top for part in parts),
        min(part.left for part in parts),
        max(part.bottom for part in parts),
        max(part.right for part in parts),
    )


def _broken_merged(parts: list[_Part]) -> list[_Part]:
    """Joins pieces that stand above each other with hardly a gap: a 5 and its bar, a 3 in two halves."""
    parts = sorted(parts, key=lambda part: part.top)
    for i in range(len(parts) - 1, 0, -1):
        below = parts[i]
        for j, above in enumerate(parts[:i]):
            both = _merged([above, below])
            overlap = min(above.right, below.right) - max(above.left, below.left)
            gap = both.height - above.height - below.height
            if overlap <= min(above.width, below.width) / 3 or gap >= 0.12 * both.height:
                continue
            others = max((part.height for part in parts if part is not above and part is not below), default=0)
            # If the other characters are as tall as one of the two, these are characters of two lines.
            if not 0.35 * both.height < others < both.height / 1.5:
                parts[j] = both
                del parts[i]
                break
    return parts


def _lines(parts: list[_Part]) -> list[list[_Part]]:
    """Returns the lines from top to bottom, each a list of characters from left to right."""
    usual = float(np.median(sorted(part.height for part in parts)[-max(len(parts) // 2, 1) :]))
    lines: list[list[_Part]] = []
    for part in sorted((part for part in parts if part.height >= 0.4 * usual), key=lambda part: part.left):
        line = max(lines, key=lambda line: _beside(line, part), default=None)
        if line and _beside(line, part) > 0.4:
            line.append(part)
        else:
            lines.append([part])
    lines.sort(key=lambda line: np.median([part.top + part.bottom for part in line]))
    for part in parts:
        if part.height < 0.4 * usual:
            # A dot, a bar, a broken piece: it belongs to the nearest character, unless it is far from all.
            distance, line, near = min(
                ((_distance(part, other), line, other) for line in lines for other in line), key=lambda found: found[0]
            )
            if distance < 0.5 * usual:
                line[line.index(near)] = _merged([near, part])
    return [_overlapping_merged(sorted(line, key=lambda part: part.left)) for line in lines]


def _beside(line: list[_Part], part: _Part) -> float:
    """Returns how much of the lower one's height a character shares with the end of a line, which may slant."""
    top, bottom = (np.median([getattr(other, edge) for other in line[-3:]]) for edge in ("top", "bottom"))
    return (min(part.bottom, bottom) - max(part.top, top)) / min(part.height, bottom - top)


def _distance(a: _Part, b: _Part) -> float:
    """Returns the gap between two boxes; a gap to the side counts twice, as a dot stands above its character."""
    across = max(a.left - b.right, b.left - a.right, 0)
    down = max(a.top - b.bottom, b.top - a.bottom, 0)
    return float(np.hypot(2 * across, down))


def _overlapping_merged(line: list[_Part]) -> list[_Part]:
    merged: list[_Part] = []
    for part in line:
        before = merged[-1] if merged else None
        if before and min(before.right, part.right) - part.left > 0.5 * min(before.width, part.width):
            merged[-1] = _merged([before, part])
        else:
            merged.append(part)
    return merged


def _character(ink: np.ndarray, labels: np.ndarray, part: _Part, style: str) -> Character:
    # The edges of the ink, which are not as strong, belong to it.
    margin = max(round(0.03 * part.length), 1)
    top, left = max(part.top - margin, 0), max(part.left - margin, 0)
    window = np.s_[top : part.bottom + margin, left : part.right + margin]
    others = (labels[window] > 0) & ~np.isin(labels[window], part.labels)
    cut = np.where(others, 0, ink[window])
    box = (part.top, part.left, part.bottom, part.right)
    return Character(to_image(cut, style), box)


def to_image(ink: np.ndarray, style: str) -> np.ndarray:
    """Brings the ink of one character into the form of the data sets.

    Args:
      ink: float `[H, W]` in 0 to 1, not all 0.
      style: "mnist" or "emnist".

    Returns:
      uint8 `[28, 28]`, white on black.
    """
    if _length(ink) < _LARGE:
        ink = _scaled(ink)
    ink = _thickened(ink)
    large = _scaled(ink) if _length(ink) > _LARGE else ink
    return _mnist(large) if style == "mnist" else _emnist(large)


# As many pixels as NIST's images have.
_LARGE = 128
# Widths of strokes, relative to the character's longer side. Of MNIST's and EMNIST's images one in fifty has strokes
# that are thinner than the first, and one in four thinner than the second, to which these are widened.
_THIN, _WIDENED = 0.07, 0.11
# Of the longer side at half the brightness, in EMNIST's images: with the blur, 26 pixels are not black.
_EMNIST_LENGTH = 22.75
_BLUR = 2


def _length(ink: np.ndarray) -> int:
    """Returns the longer side of a character's box."""
    return max(np.ptp(np.flatnonzero(ink.max(axis) > 0.5)) for axis in (0, 1)) + 1


def _scaled(ink: np.ndarray) -> np.ndarray:
    """Returns ink whose longer side is _LARGE."""
    shape = [max(round(length * _LARGE / _length(ink)), 1) for length in ink.shape[::-1]]
    return np.clip(np.asarray(Image.fromarray(ink).resize(shape, Image.Resampling.BICUBIC)), 0, 1)


def _thickened(ink: np.ndarray) -> np.ndarray:
    """Widens strokes that are much thinner, for their length, than those of the pens that wrote the data sets."""
    is_ink, length = ink > 0.5, _length(ink)
    widths = 2 * ndimage.distance_transform_edt(is_ink)[morphology.skeletonize(is_ink)]
    width = np.median(widths)
    if width >= _THIN * length:
        return ink
    radius = (_WIDENED * length - width) / 2
    padded = np.pad(is_ink, int(radius) + 2)
    # Falls from 1 to 0 over the outermost pixel.
    return np.clip(radius + 1 - ndimage.distance_transform_edt(~padded), 0, 1).astype(np.float32)


def _mnist(large: np.ndarray) -> np.ndarray:
    """Reduces the longer side to 20 pixels, and brings the centre of mass to the middle of 28 x 28 pixels."""
    cut = _cut_out(large)
    small = _resized(cut, [max(round(length * 20 / max(cut.shape)), 1) for length in cut.shape])
    image = np.zeros((SIZE, SIZE), np.uint8)
    corner = (round(SIZE / 2 - centre) for centre in ndimage.center_of_mass(small))
    top, left = (int(np.clip(offset, 0, SIZE - length)) for offset, length in zip(corner, small.shape, strict=True))
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    return image


def _emnist(large: np.ndarray) -> np.ndarray:
    """Blurs, centres the box in a square with a border, and reduces that to 28 x 28 pixels."""
    cut = _cut_out(ndimage.gaussian_filter(np.pad(large, 8), _BLUR))
    side = round(max(cut.shape) * SIZE / _EMNIST_LENGTH)
    missing = [side - length for length in cut.shape]
    return _resized(np.pad(cut, [(space // 2, space - space // 2) for space in missing]), (SIZE, SIZE))


def _cut_out(large: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(large.max(axis) > 0.4) for axis in (1, 0))
    return large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _resized(ink: np.ndarray, shape) -> np.ndarray:
    """Returns ink in another size, uint8, by bicubic interpolation."""
    resized = Image.fromarray(ink).resize(tuple(shape[::-1]), Image.Resampling.BICUBIC)
    return np.round(255 * np.clip(np.asarray(resized), 0, 1)).astype(np.uint8)
