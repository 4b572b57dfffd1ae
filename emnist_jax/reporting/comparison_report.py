"""Runs side by side: what differs in their configs, their curves, and accuracy against parameters and time."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich import box
from rich.table import Table

from emnist_jax.config import base, flatten
from emnist_jax.errors import UserError, first_line
from emnist_jax.inference import measures
from emnist_jax.reporting import page

# Of result.json, beside the accuracies.
_NEEDED = (
    *("model", "dataset", "dataset_sha256", "synthetic", "trainable_parameters", "config", "history"),
    *("epochs", "train_seconds", "device", "commit"),
)


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A finished run.

    Attributes:
      name: The part of its path in which it differs from the others.
      accuracy: Of the split that is compared; None if the run did not measure it.
      result: What its result.json holds.
    """

    name: str
    accuracy: measures.Accuracy | None
    result: dict[str, Any]


def read(paths: Sequence[str], split: str) -> list[ComparedRun]:
    """Reads runs.

    Args:
      paths: Their folders, or files that hold their results.
      split: "test" or "validation".

    Raises:
      UserError: One of them is no finished run, or none has an accuracy of the split.
    """
    runs = []
    for name, text in zip(_short_names(paths), paths, strict=True):
        path = Path(text)
        if path.is_dir():
            path = path / "result.json"
        try:
            result = json.loads(path.read_text())
            if missing := [key for key in (*_NEEDED, split) if key not in result]:
                raise UserError(f"{path} cannot be compared: it has no {', '.join(missing)}")
            measured = result[split]
            accuracy = measured and _accuracy(measured["top1"], measured["examples"])
        except OSError as error:
            raise UserError(f"{text} is no finished run: cannot read {path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no result of a run: {first_line(error)}") from error
        runs.append(ComparedRun(name, accuracy, result))
    if not any(run.accuracy for run in runs):
        other = "validation" if split == "test" else "test"
        raise UserError(f"none of these runs has measured its {split} images: try --split={other}")
    return runs


def _accuracy(fraction: float, images: int) -> measures.Accuracy:
    return measures.accuracy(np.arange(images) < round(fraction * images))


def _short_names(paths: Sequence[str]) -> list[str]:
    """Leaves out what all paths begin with, and result.json."""
    parts = [[part for part in Path(path).parts if part != "result.json"] or ["."] for path in paths]
    while len({of_path[0] for of_path in parts}) == 1 and all(len(of_path) > 1 for of_path in parts):
        parts = [of_path[1:] for of_path in parts]
    return ["/".join(of_path).removesuffix(".json") for of_path in parts]


def differences(runs: Sequence[ComparedRun]) -> dict[str, list]:
    """Returns the keys in which the configs differ, with the value of each run; a newer key had its default."""
    configs = [flatten(base().to_dict()) | flatten(run.result["config"]) for run in runs]
    keys = sorted(set().union(*configs))
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: of_key for key, of_key in values.items() if any(value != of_key[0] for value in of_key)}


def numbers(runs: Sequence[ComparedRun], split: str) -> dict[str, Any]:
    """Returns what is compared, for JSON."""
    kept = ("model", "dataset", "synthetic", "leaked", "trainable_parameters", "train_seconds", "device", "commit")
    return {
        "split": split,
        "differences": differences(runs),
        "runs": [
            {"name": run.name, "accuracy": run.accuracy and dataclasses.asdict(run.accuracy)}
            | {key: run.result.get(key) for key in kept}
            for run in runs
        ],
    }


def table(runs: Sequence[ComparedRun], split: str) -> Table:
    """Returns what the terminal shows."""
    found = Table(box=box.MARKDOWN)
    for column in ("run", "data set", f"{split} accuracy", "Wilson's 95 % interval", "parameters", "minutes"):
        found.add_column(column, justify="left" if column in ("run", "data set") else "right")
    for run in runs:
        accuracy, interval = "–", "–"
        if run.accuracy:
            accuracy = page.percent(run.accuracy.fraction)
            interval = f"{page.percent(run.accuracy.low)} to {page.percent(run.accuracy.high)}"
        parameters, minutes = run.result["trainable_parameters"], run.result["train_seconds"] / 60
        dataset = run.result["dataset"] + " (no result)" * run.result["synthetic"]
        found.add_row(run.name, dataset, accuracy, interval, f"{parameters:,}", f"{minutes:.1f}")
    return found


def write(path: Path, runs: Sequence[ComparedRun], split: str) -> None:
    """Writes the page."""
    with matplotlib.rc_context(page.STYLE):
        curves, parameters, time = (
            _curves(runs),
            _scatter(runs, lambda result: result["trainable_parameters"], "parameters", split),
            _scatter(runs, lambda result: result["train_seconds"] / 60, "minutes of training", split),
        )
    page.write(
        path,
        "comparison.html",
        title=f"{len(runs)} runs side by side",
        runs=runs,
        split=split,
        notes=_notes(runs, split),
        differences=differences(runs),
        curves=page.svg(curves),
        against_parameters=page.svg(parameters),
        against_time=page.svg(time),
    )


def _notes(runs: Sequence[ComparedRun], split: str) -> list[str]:
    results = [run.result for run in runs]
    notes = []
    if any(result["synthetic"] for result in results):
        notes.append("Some of the images are synthetic: a program rendered them. An accuracy on them is not a result.")
    if any(result["dataset"] == "emnist_pool" for result in results):
        notes.append("emnist_pool is the EMNIST pool. An accuracy on it is not one on EMNIST Balanced.")
    if len({result["dataset_sha256"] for result in results}) > 1:
        notes.append("The runs do not use the same images, or do not split them in the same way: compare with care.")
    if any(result.get("leaked", False) is not False for result in results):
        notes.append("Some runs were trained on images of the test split, or may have been.")
    if len({result["device"] for result in results}) > 1:
        notes.append("The runs were made on different devices: their times cannot be compared.")
    if split == "test":
        notes.append("This is a report. Choose nothing by the test images, but by the validation images.")
    return notes


def _curves(runs: Sequence[ComparedRun]) -> Figure:
    figure = Figure(figsize=(6, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for i, run in enumerate(runs):
        history = run.result["history"]
        validated = [epoch for epoch in history if "validation" in epoch]
        errors = [100 * (1 - epoch["validation"]["top1"]) for epoch in validated]
        epochs = [epoch["epoch"] for epoch in validated]
        above.plot(epochs, errors, color=f"C{i}", marker="o", markersize=2.5)
        below.plot(epochs, [epoch["validation"]["loss"] for epoch in validated], color=f"C{i}")
        trained = [epoch["epoch"] for epoch in history], [epoch["train"]["loss"] for epoch in history]
        below.plot(*trained, "--", color=f"C{i}", alpha=0.6, label=f"{i + 1}: {run.name}")
    some_error = any(max(line.get_ydata(), default=0) > 0 for line in above.lines)
    above.set(ylabel="validation error, %")
    below.set(ylabel="loss", xlabel="epoch", yscale="log")
    _write_plain_numbers(below.yaxis)
    if some_error:
        above.set_yscale("log")
        _write_plain_numbers(above.yaxis)
    legend = figure.legend(loc="outside upper left", fontsize=8, ncols=1 + (len(runs) > 6))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _scatter(runs: Sequence[ComparedRun], value: Callable[[dict], float], label: str, split: str) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    values = [value(run.result) for run in runs]
    for i, (x, run) in enumerate(zip(values, runs, strict=True)):
        if accuracy := run.accuracy:
            low, high = 100 * accuracy.low, 100 * accuracy.high
            axes.vlines(x, low, high, color=f"C{i}", linewidth=3, alpha=0.5)
            axes.plot(x, 100 * accuracy.fraction, "o", color=f"C{i}")
            axes.annotate(i + 1, (x, 100 * accuracy.fraction), xytext=(5, 3), textcoords="offset points")
    axes.margins(x=0.15)
    axes.set(xlabel=label, ylabel=f"{split} accuracy, %")
    if max(values) > 10 * min(values):
        axes.set_xscale("log")
        _write_plain_numbers(axes.xaxis)
    return figure


def _write_plain_numbers(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())
