"""Reports on a trained network, in pictures: `python -m emnist_jax.evaluate --model=mnist_squeeze_10`.

It reads all images of a split, and writes a page and a JSON file: accuracy with its interval, classes, confusions,
mistakes, calibration, corrupted images, and test-time augmentation. --dataset names another data set of the same
classes.

    python -m emnist_jax.evaluate --workdir=RUN
    python -m emnist_jax.evaluate RUN RUN

The second sets two or more runs side by side, by their result.json: configs, curves, accuracy, parameters, time.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from emnist_jax import command_line, datasets
from emnist_jax.config import base
from emnist_jax.errors import UserError

_NETWORK = command_line.define_network_flags()
_DATASET = flags.DEFINE_string("dataset", None, "Data set to read; default: the one that the network was trained on")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder with the data set's files; default: the run's, or TFDS supplies them", allow_override=True
)
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Images to read; choose by validation alone")
_OUT = flags.DEFINE_string("out", None, "Folder that takes evaluation.html and .json; default: evaluation/NAME")
_PAGE = "evaluation.html"


def main(*runs: str) -> None:
    try:
        import jinja2  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"evaluate needs {error.name}: pip install -e '.[evaluate]'") from error
    if runs:
        _compare(runs)
    else:
        _examine()


def _examine() -> None:
    from emnist_jax.inference.classifier import load
    from emnist_jax.inference.examination import examine
    from emnist_jax.reporting import examination_report

    with Console(stderr=True).status("Loading the network") as status:
        classifier = load(_NETWORK())
        trained_on = classifier.config.dataset.name
        config = _dataset_config(classifier)
        name, class_names = config.name, datasets.class_names(config)
        if class_names != classifier.class_names:
            known, asked = (" ".join(names) for names in (classifier.class_names, class_names))
            raise UserError(f"{name} has other classes ({asked}) than {_NETWORK()} ({known})")
        network = command_line.file_name(_NETWORK())
        others = [part for part in (name, _SPLIT.value) if part not in (trained_on, "test")]
        status.update(f"Loading {name}")
        dataset = _load(config)
        out = _out_folder("_".join([network, *others]).replace("/", "_"))
        examination = examine(classifier, dataset, _SPLIT.value, status.update)
        subject = examination_report.subject(network, classifier, dataset, _SPLIT.value)
        status.update("Drawing the page")
        with _writing(out):
            _write_json(out, dataclasses.asdict(subject) | examination.numbers())
            examination_report.write(out / _PAGE, subject, examination)
    _print(examination_report.table(subject, examination), out)


def _dataset_config(classifier):
    """Returns the settings of the data set as it was split for training, or of another as it is split by convention."""
    config = classifier.config.dataset.copy_and_resolve_references()
    if _DATASET.value not in (None, config.name):
        config = base().dataset
        config.name = _DATASET.value
    config.data_dir = _DATA_DIR.value or config.data_dir
    return config


def _load(config) -> datasets.Dataset:
    with command_line.own_flags():
        dataset = datasets.load(config)
    if not len(getattr(dataset, _SPLIT.value).labels):
        raise UserError(f"{config.name} has no {_SPLIT.value} images, as it was split for the training of {_NETWORK()}")
    return dataset


def _compare(paths: tuple[str, ...]) -> None:
    from emnist_jax.reporting import comparison_report

    for name in ("model", "workdir", "dataset", "data_dir"):
        if not flags.FLAGS[name].using_default_value:
            raise UserError(f"leave out --{name}: runs side by side are compared as training measured them")
    if len(paths) == 1:
        raise UserError(f"name two runs or more, or --workdir={paths[0]} for this one alone")
    runs = comparison_report.read(paths, _SPLIT.value)
    out = _out_folder("_".join(["comparison", *["validation"] * (_SPLIT.value == "validation")]))
    with _writing(out):
        _write_json(out, comparison_report.numbers(runs, _SPLIT.value))
        comparison_report.write(out / _PAGE, runs, _SPLIT.value)
    _print(comparison_report.table(runs, _SPLIT.value), out)


def _out_folder(name: str) -> Path:
    """Makes the folder, before anything takes long."""
    out = Path(os.path.expanduser(_OUT.value or f"evaluation/{name}"))
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


@contextlib.contextmanager
def _writing(out: Path):
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write --out={out}: {error.strerror}") from error


def _print(table: Table, out: Path) -> None:
    # Wide enough for the longest names, whatever the terminal; they may look like markup or emoji.
    Console(width=200, highlight=False, markup=False, emoji=False).print(table)
    print(out / _PAGE)


def _write_json(out: Path, values: dict) -> None:
    (out / "evaluation.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    command_line.run(main, config=None, positional=True)
