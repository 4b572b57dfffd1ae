"""What a run tells: TensorBoard, progress on the terminal, the log file, result.json and the final table.

Of several processes, the first alone tells anything.
"""

import json
import logging
import math
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.utils import figure_to_image

from emnist_jax import hosts

log = logging.getLogger(__name__)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Goes on with log.txt alone, as where the output goes to `head`."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# One console, so that log lines appear above a live progress bar.
CONSOLE = _Console(highlight=False, markup=False, emoji=False)  # a path may look like either


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        CONSOLE.print(self.format(record), markup=False, soft_wrap=True)


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        raise  # a full disk ends the run; logging would print a traceback for every line


def start_log(path: Path | None) -> None:
    """Sends the project's log lines to the terminal and to a file; or, without one, nowhere."""
    logger = logging.getLogger("emnist_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    stop_log()
    CONSOLE.quiet = path is None
    if CONSOLE.quiet:
        logger.addHandler(logging.NullHandler())
        return
    to_file = _FileHandler(path)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(to_file)
    logger.addHandler(_ConsoleHandler())


def stop_log() -> None:
    """Closes what `start_log` opened."""
    logger = logging.getLogger("emnist_jax")
    for handler in logger.handlers[:]:
        handler.close()
        logger.removeHandler(handler)


def progress_bar(step: int, total_steps: int) -> Progress:
    """Returns a bar at `step`, with the time remaining, on a terminal, and nothing elsewhere."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f} of {task.total:.0f},"),
        TimeRemainingColumn(),
        TextColumn("to go"),
        console=CONSOLE,
        disable=not CONSOLE.is_terminal,
    )
    bar.add_task("training", total=total_steps, completed=step)
    return bar


# Tells our event files from those of others.
_SUFFIX = ".emnist_jax"


class TensorBoard:
    """The event file of one process, which replaces those of earlier ones.

    tensorboardX' own SummaryWriter writes from another thread, which a kill can rob of its points and which a full
    disk ends without a word.

    Args:
      workdir: Takes the file.
      epochs: The records of all epochs so far.
    """

    def __init__(self, workdir: Path, epochs: list[dict]):
        self._writer = None
        if hosts.is_first():
            # Of several files, TensorBoard would go by the clocks and names of the hosts that wrote them.
            for path in workdir.glob(f"events.out.tfevents.*{_SUFFIX}"):
                path.unlink()
            self._writer = EventsWriter(str(workdir / "events"), _SUFFIX)
        # What a TensorBoard that is running has read of them goes too.
        self._write(0, session_log=SessionLog(status=SessionLog.START))
        for record in epochs:
            self.epoch(record)

    def _write(self, step: int, wall_time: float | None = None, **content) -> None:
        if self._writer:
            self._writer.write_event(Event(wall_time=wall_time or time.time(), step=step, **content))
            self._writer.flush()

    def scalars(self, values: dict[str, float], step: int, wall_time: float | None = None) -> None:
        for name, value in values.items():
            self._write(step, wall_time, summary=summary.scalar(name, value))

    def epoch(self, record: dict) -> None:
        """Writes the record of an epoch (see `loop`) at the time that it was made."""
        values = {name: record[name] for name in ("learning_rate", "images_per_second")}
        for split in ("train", "validation"):
            if split in record:
                values |= {f"{split}/{name}": record[split][name] for name in ("loss", "top1", "top5")}
        self.scalars(values, record["step"], record["unix_time"])

    def figure(self, name: str, figure: Figure, step: int) -> None:
        self._write(step, summary=summary.image(name, figure_to_image(figure, close=False)))

    def hyper_parameters(self, config: dict, metrics: dict[str, float]) -> None:
        flat = {key: value for key, value in flatten(config).items() if value is not None}
        values = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in flat.items()}
        for part in summary.hparams(values, metrics):
            self._write(0, summary=part)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def flatten(config: dict, prefix: str = "") -> dict:
    """Returns nested config keys as dotted ones."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


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
        axes.set_title(name, fontsize=9)
    return figure


def confusion_figure(labels: np.ndarray, predictions: np.ndarray, class_names: tuple[str, ...], title: str) -> Figure:
    """Draws the confusion matrix, each row as fractions of its true class."""
    classes = len(class_names)
    counts = np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3 + 0.16 * classes
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    # Off-diagonal mistakes of a few percent are what one looks for: the square root shows them.
    norm = matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=1)
    picture = axes.imshow(fractions, cmap="viridis", norm=norm)
    axes.set(title=title, xlabel="predicted", ylabel="true", xticks=range(classes), yticks=range(classes))
    axes.set_xticklabels(class_names, fontsize=7, rotation=90 if max(map(len, class_names)) > 2 else 0)
    axes.set_yticklabels(class_names, fontsize=7)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="fraction of the true class")
    return figure


def write_json(path: Path, content: dict) -> None:
    """Writes a file whole or not at all."""
    if not hosts.is_first():
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def environment() -> dict:
    """Returns the device, the versions and the commit that a result was made with."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "numpy")
    try:
        git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        folder = Path(__file__).parent
        commit = subprocess.run(git, cwd=folder, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        commit = ""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))  # that this process may use
    kind = f"CPU of {cores} core{'s' * (cores > 1)}" if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{jax.device_count()} x {kind}",
        "versions": {package: version(package) for package in packages} | {"python": sys.version.split()[0]},
        "commit": commit or "unknown",
    }


def standard_error(fraction: float, examples: int) -> float:
    """Returns the binomial standard error of an accuracy."""
    return math.sqrt(fraction * (1 - fraction) / examples)


def print_result(result: dict, workdir: Path) -> None:
    """Prints a result as a table, and how to open TensorBoard on the run."""
    CONSOLE.print(result_table(result))
    CONSOLE.print(f"tensorboard --logdir {workdir}", soft_wrap=True)


def result_table(result: dict) -> Table:
    """Returns the final table of what result.json holds."""
    test = result["test"]
    synthetic = " (synthetic images: not a result)" if result["synthetic"] else ""
    table = Table(title=f"{result['model']} on {result['dataset']}{synthetic}", show_header=False)

    def accuracy(name):
        error = standard_error(test[name], test["examples"])
        return f"{100 * test[name]:.2f} % ± {100 * error:.2f} (standard error, {test['examples']:,} images)"

    for row in (
        ("parameters", f"{result['parameters']:,}"),
        ("test top-1", accuracy("top1")),
        ("test top-5", accuracy("top5")),
        ("epochs", f"{result['epochs']:g}"),
        (
            "training",
            f"{result['train_seconds']:.1f} s, after {result['compile_seconds']:.1f} s of compilation",
        ),
        ("speed", f"{result['images_per_second']:,.0f} images/s on {result['device']}"),
        (
            "test set",
            f"{result['inference_seconds']:.2f} s, {result['evaluation_seconds']:.2f} s with metrics",
        ),
    ):
        table.add_row(*row)
    return table
