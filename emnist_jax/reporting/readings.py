"""What a network read in a picture: as a table, as JSON, and drawn."""

import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.table import Table

from emnist_jax.inference.classifier import Reading
from emnist_jax.reporting.terminal import CONSOLE


def print_reading(path: str, reading: Reading) -> None:
    """Prints the most probable classes of each character of a picture, a row for each."""
    separator = "\n" if "\n" in reading.text else " "
    CONSOLE.print(f"{path}:{separator}{reading.text}", soft_wrap=True)
    table = Table(show_header=False)
    for top in reading.predictions.top():
        table.add_row(*(f"{name} {100 * probability:.1f} %" for name, probability in top))
    CONSOLE.print(table)


def as_dict(path: str, reading: Reading | None, error: str | None) -> dict:
    """Returns what JSON says of a picture: its error, or its text and characters.

    Boxes are in pixels of the picture as it was read, upright and reduced, whose height and width are given.
    """
    if reading is None:
        return {"picture": path, "error": error}
    characters = [
        {
            "box": dict(zip(("top", "left", "bottom", "right"), character.box, strict=True)),
            "top5": [{"class": name, "probability": probability} for name, probability in top],
        }
        for character, top in zip(reading.characters, reading.predictions.top(), strict=True)
    ]
    height, width = reading.brightness.shape
    return {"picture": path, "height": height, "width": width, "text": reading.text, "characters": characters}


def draw(readings: Mapping[str, Reading]) -> Figure:
    """Draws pictures with the boxes of their characters; below each, what the network saw, and its answers.

    Args:
      readings: What was read, by the picture's path.
    """
    columns = min(max(4, *(len(reading.characters) for reading in readings.values())), 12)
    rows = [math.ceil(len(reading.characters) / columns) for reading in readings.values()]
    shapes = [reading.brightness.shape for reading in readings.values()]
    heights = [
        (0.4 + min(columns * height / width, 5), 1.3 * count)
        for (height, width), count in zip(shapes, rows, strict=True)
    ]
    # Laid out by hand: a constrained layout takes seconds for each picture, and more the more there are.
    figure = Figure(figsize=(columns, sum(map(sum, heights))))
    parts = figure.subfigures(len(readings), squeeze=False, height_ratios=list(map(sum, heights)))[:, 0]
    for part, (path, reading), count, (height, height_below) in zip(
        parts, readings.items(), rows, heights, strict=True
    ):
        above, below = part.subfigures(2, height_ratios=(height, height_below))
        axes = above.subplots(gridspec_kw={"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 1 - 0.35 / height})
        axes.imshow(reading.brightness, cmap="gray", vmin=0, vmax=1)
        axes.set_title(path, fontsize=9, parse_math=False)
        axes.axis("off")
        for top, left, bottom, right in (character.box for character in reading.characters):
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="tab:red"))
        answers = zip(reading.characters, reading.predictions.top(1), strict=True)
        grid = {"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 1 - 0.3 / height_below, "hspace": 0.4}
        for axes, answer in zip(
            below.subplots(count, columns, squeeze=False, gridspec_kw=grid).flat, answers, strict=False
        ):
            character, [(name, probability)] = answer
            axes.imshow(character.image, cmap="gray")
            axes.set_title(f"{name}  {100 * probability:.0f} %", fontsize=9, parse_math=False)
        for axes in below.axes:
            axes.axis("off")
    return figure
