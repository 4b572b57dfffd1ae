"""Pictures of images and of results."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

_MOST_NAMED = 100


def images_figure(images: np.ndarray, names: list[str], title: str) -> Figure:
    """Draws a grid of images `[N, H, W]` under their class names."""
    columns = 8
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(columns, 1.2 * rows + 0.4), layout="tight")
    figure.suptitle(title)
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, image, name in zip(grid.flat, images, names, strict=False):
        axes.imshow(image, cmap="gray")
        axes.set_title(name, fontsize=9, parse_math=False)
    return figure


def confusion_figure(labels: np.ndarray, predictions: np.ndarray, class_names: tuple[str, ...], title: str) -> Figure:
    """Draws the confusion matrix, each row as fractions of its true class; no more than 100 classes are named."""
    classes = len(class_names)
    counts = np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
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
