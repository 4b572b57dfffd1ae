"""Prints the layers, parameters, receptive field and multiply-adds of a network.

    python -m emnist_jax.summary --config=configs/densenet.py
    python -m emnist_jax.summary --all

`--all` prints the counts of all networks beside the published ones.
"""

from absl import flags
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from emnist_jax import command_line
from emnist_jax.config import validate
from emnist_jax.errors import UserError

_ALL = flags.DEFINE_bool("all", False, "Print the counts of all networks")


def describe(config) -> None:
    """Prints the layers of a config's network."""
    from emnist_jax import datasets, models
    from emnist_jax.models.summary import summarize

    validate(config)
    model = models.create(config.model, len(datasets.class_names(config.dataset)))
    summary = summarize(model)
    table = Table(title=f"{config.model.name}, input {_shape(model.input_shape)}")
    for column in ("layer", "kind", "output", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for layer in summary.layers:
        table.add_row(layer.name, layer.kind, _shape(layer.output_shape[1:]), f"{layer.parameters:,}")
    console = Console()
    console.print(table)
    console.print(f"Receptive field: {summary.receptive_field} x {summary.receptive_field} pixels")
    console.print(f"Multiply-adds: {summary.multiply_adds:,}")
    console.print(f"Total params: {summary.trainable + summary.non_trainable:,}")
    console.print(f"Trainable params: {summary.trainable:,}")
    console.print(f"Non-trainable params: {summary.non_trainable:,}")


def describe_all() -> None:
    """Prints a Markdown table of `models.SETTINGS`."""
    from emnist_jax import models
    from emnist_jax.models.summary import summarize

    table = Table(box=box.MARKDOWN)
    for column in ("model", "input", "classes", "total", "trainable", "multiply-adds", "published", "source"):
        table.add_column(column, justify="left" if column in ("model", "source") else "right", no_wrap=True)
    for name, classes in track(models.SETTINGS, "Tracing the networks", console=Console(stderr=True), transient=True):
        model = (models.MODELS | models.IMAGENET)[name](num_classes=classes)
        summary = summarize(model)
        published = models.PUBLISHED.get((name, classes))
        table.add_row(
            f"`{name}`",
            _shape(model.input_shape),
            f"{classes:,}",
            f"{summary.trainable + summary.non_trainable:,}",
            f"{summary.trainable:,}",
            f"{summary.multiply_adds:,}",
            f"{published.count:,} {published.of}" if published else "",
            published.source if published else "",
        )
    # The longest row fits, however narrow the terminal is: the table goes into the docs.
    Console(width=200).print(table)


def _shape(shape) -> str:
    return " x ".join(map(str, shape))


def main(config) -> None:
    if _ALL.value:
        describe_all()
    elif config is None:
        raise UserError("pass --config=FILE, e.g. --config=configs/densenet.py, or --all")
    else:
        describe(config)


if __name__ == "__main__":
    command_line.run(main, config="optional")
