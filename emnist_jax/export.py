"""Writes a trained network into a file that runs elsewhere: `python -m emnist_jax.export --workdir=runs/a --to=onnx`.

The file is compared with the network on all test images of its data set, and kept only if the top-1 is the same on
every one. A second file, with .json behind its name, says the classes and what the input is. docs/export.md shows how
to run each format without this package.
"""

import gzip
import os
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from emnist_jax import command_line
from emnist_jax.errors import UserError

_NETWORK = command_line.define_network_flags()
FORMATS = ("safetensors", "stablehlo", "onnx")
_TO = flags.DEFINE_enum("to", None, FORMATS, "Format: safetensors is for emnist_jax.load, stablehlo for JAX")
_OUT = flags.DEFINE_string(
    "out", None, "File to write; default: NAME.FORMAT in the current folder", allow_override=True
)
WEIGHTS = ("float32", "int8")
_WEIGHTS = flags.DEFINE_enum("weights", "float32", WEIGHTS, "How the file holds the kernels")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with the files of the data set that the network was trained on; default: the run's, or TFDS supplies them",
    allow_override=True,
)


def main() -> None:
    if _TO.value is None:
        raise UserError(f"pass --to=FORMAT: {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    from emnist_jax.inference import exported
    from emnist_jax.inference.classifier import load

    classifier = load(_NETWORK())
    path = Path(os.path.expanduser(_OUT.value or f"{command_line.file_name(_NETWORK())}.{_TO.value}"))
    if path.is_dir():
        raise UserError(f"--out={path} is a folder: pass a file")
    if path.resolve() == Path(os.path.expanduser(_NETWORK())).resolve():
        raise UserError(f"{path} is the network's own file: pass another --out")
    console = Console(stderr=True)
    with console.status("Reading the test images"):
        test = exported.test_images(classifier, _DATA_DIR.value)
    with console.status("Writing and verifying"):
        verified, *runs = exported.write(classifier, path, _TO.value, _WEIGHTS.value, test)
    with console.status("Measuring the speed"):
        speeds = {
            size: exported.images_per_second(runs, np.resize(test.images, (size, *test.images.shape[1:])))
            for size in (1, 512)
        }
    Console(markup=False, emoji=False).print(_table(classifier, path, test, verified, speeds))


def _table(classifier, path: Path, test, verified, speeds: dict) -> Table:
    content = path.read_bytes()
    table = Table("", "", title=str(path), show_header=False)
    table.columns[1].overflow = "fold"  # an address may be longer than a line
    table.add_row("network", f"{classifier.config.model.name}, {_WEIGHTS.value} weights")
    table.add_row("size", f"{len(content):,} bytes, {len(gzip.compress(content, mtime=0)):,} with gzip")
    table.add_row("same top-1 on", verified.images)
    if test.instead_of:
        table.add_row("not verified on the test set", test.instead_of)
    table.add_row("largest difference of a logit", f"{verified.largest_logit_difference:.1e}")
    rounded = _WEIGHTS.value != "float32"
    if verified.top1 is not None:
        before = f", {100 * verified.unrounded_top1:.2f} % before rounding" * rounded
        table.add_row("test top-1", f"{100 * verified.top1:.2f} %{before}")
    if rounded:
        table.add_row("changed by rounding", f"the top-1 of {verified.changed_by_rounding:,} images")
    for size, (speed, original) in speeds.items():
        table.add_row(f"speed, batch of {size}", f"{speed:,.0f} images/s, the original {original:,.0f}")
    return table


if __name__ == "__main__":
    command_line.run(main, config=None)
