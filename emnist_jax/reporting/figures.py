"""Pictures of images and of results."""

import contextlib
import math
import warnings
from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.figure import Figure

_MOST_NAMED = 100


@contextlib.contextmanager
def any_letters() -> Iterator[None]:
    """Lets matplotlib draw a box for a letter that its font lacks, as it does of many scripts, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def images_figure(images: np.ndarray, names: list[str], title: str) -> Figure:
    """Draws a grid of images `[N, H, W]` under their class names."""
    columns = 8
    rows = math.ceil(len(images) / columns)
    height, width = images.shape[1] + 10, images.shape[2] + 4  # with the space for a name, and between images
    figure = Figure(figsize=(columns, rows * height / width + 0.4), layout="tight")
    # One picture, as many axes take longer to draw than a small network to compile.
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(title)
    grid = np.full((rows * height, columns * width), np.nan)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        top, left = i // columns * height, i % columns * width
        grid[top + 10 : top + height, left + 2 : left + 2 + images.shape[2]] = image
        axes.text(left + width / 2, top + 8, name, fontsize=9, ha="center", parse_math=False)
    axes.imshow(grid, cmap="gray")
    return figure


def confusion_figure(counts: np.ndarray, class_names: tuple[str, ...], title: str) -> Figure:
    """Draws the confusion matrix, each row as fractions of its true class; no more than 100 classes are named.

    Args:
      counts: Images by true class (row) and predicted class (column): int `[num_classes, num_classes]`.
      class_names: Of each class.
      title: Above it.
    """
    classes = len(class_names)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3 + 0.16 * min(classes, _MOST_NAMED)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    # Off-diagonal mistakes of a few percent are what one looks for: the square root shows them.
    norm = matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=1)
    picture = axes.imshow(fractions, cmap="viridis", norm=norm)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if classes <= _MOST_NAMED:
        rotation = 90 if max(map(len, class_names)) > 2 else 0
        axes.set_xticks(range(classes), class_names, fontsize=7, rotation=rotation, parse_math=False)
        axes.set_yticks(range(classes), class_names, fontsize=7, parse_math=False)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="fraction of the true class")
    return figure
