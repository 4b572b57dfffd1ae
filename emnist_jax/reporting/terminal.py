"""The terminal and the log file: log lines, a progress bar, and the final table."""

import contextlib
import logging
import math
import os
import sys
import time
from pathlib import Path

import rich.progress
from rich.console import Console
from rich.table import Table

log = logging.getLogger(__name__)

# Between two lines of progress without a bar.
LOG_SECONDS = 60.0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Writes to log.txt alone if nobody reads the output any more, e.g. `| head`."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# One console, so that log lines appear above a live progress bar. Paths may look like markup or emoji.
CONSOLE = _Console(highlight=False, markup=False, emoji=False)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        CONSOLE.print(self.format(record), markup=False, soft_wrap=True)


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        raise  # a full disk ends the run; logging would print a traceback for every line


def start_log(path: Path | None) -> None:
    """Sends the project's log lines to the terminal, unless `CONSOLE.quiet`, and to a file; None: nowhere."""
    logger = logging.getLogger("emnist_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    stop_log()
    if path is None:
        CONSOLE.quiet = True
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


class Progress:
    """The steps done and the time left: a bar on a terminal; elsewhere, and in sweeps, a log line a minute."""

    def __init__(self, step: int, total_steps: int):
        self._first, self._total = step, total_steps
        self._started = self._last_line = time.monotonic()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("step {task.completed:.0f} of {task.total:.0f},"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("to go"),
            console=CONSOLE,
            disable=CONSOLE.quiet or not CONSOLE.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=step)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def update(self, step: int) -> None:
        self._bar.update(self._task, completed=step)
        now = time.monotonic()
        if self._bar.disable and now > self._last_line + LOG_SECONDS and step > self._first:
            self._last_line = now
            left = (now - self._started) / (step - self._first) * (self._total - step)
            # A full disk is reported at the epoch's end, where all processes hear of it.
            with contextlib.suppress(OSError):
                log.info("step %s of %s, %s to go", f"{step:,}", f"{self._total:,}", minutes(left))


def minutes(seconds: float) -> str:
    """Formats a time as whole minutes, at least one."""
    count = max(round(seconds / 60), 1)
    return f"{count} minute{'s' * (count > 1)}"


def standard_error(fraction: float, examples: int) -> float:
    """Returns the binomial standard error of an accuracy."""
    return math.sqrt(fraction * (1 - fraction) / examples)


def print_result(result: dict, workdir: Path) -> None:
    """Prints a result as a table, and how to open TensorBoard on the run."""
    CONSOLE.print(result_table(result))
    CONSOLE.print(f"tensorboard --logdir {workdir}", soft_wrap=True)


# What is said of a result, by its `leaked`.
LEAKED = {
    False: None,
    True: "images that it is tested on, or that it will be fine-tuned for, were trained on",
    None: "not known: nobody compared the test images with those that its first weights were trained on",
}


def measured(result: dict) -> tuple[str, dict]:
    """Returns the split that a run's accuracy is of, and its figures: "validation" if the run did not test."""
    split = "test" if result["test"] else "validation"
    return split, result[split]


def result_table(result: dict) -> Table:
    """Returns the final table of what result.json holds."""
    split, figures = measured(result)
    synthetic = " (synthetic images: not a result)" if result["synthetic"] else ""
    table = Table(title=f"{result['model']} on {result['dataset']}{synthetic}", show_header=False)

    def accuracy(name):
        error = standard_error(figures[name], figures["examples"])
        return f"{100 * figures[name]:.2f} % ± {100 * error:.2f} (standard error, {figures['examples']:,} images)"

    for row in (
        ("parameters", f"{result['trainable_parameters']:,}"),
        (f"{split} top-1", accuracy("top1")),
        (f"{split} top-5", accuracy("top5")),
        *([("leaked", leaked)] if (leaked := LEAKED[result.get("leaked", False)]) else []),
        ("epochs", f"{result['epochs']:g}"),
        (
            "training",
            f"{result['train_seconds']:.1f} s, after {result['compile_seconds']:.1f} s of compilation",
        ),
        ("speed", f"{result['images_per_second']:,.0f} images/s on {result['device']}"),
    ):
        table.add_row(*row)
    if split == "test":
        seconds = f"{result['inference_seconds']:.2f} s, {result['evaluation_seconds']:.2f} s with metrics"
        table.add_row("test set", seconds)
    return table
