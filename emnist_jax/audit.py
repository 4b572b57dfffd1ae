"""Counts identical images: `python -m emnist_jax.audit emnist/bymerge:train emnist/balanced:test`.

An argument is a data set and one of its splits, train, validation or test; a data set alone stands for all three. The
counts are of images that have the same pixels, within each split and between each two. An image that is in a training
and in a test split makes the test accuracy too high; one with two labels makes the labels doubtful.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Sequence

import numpy as np
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from emnist_jax import command_line, datasets
from emnist_jax.config import ConfigDict, base
from emnist_jax.datasets import duplicates, synthetic
from emnist_jax.errors import UserError, unknown

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder with the files of all named sets, or of `folder`; default: TFDS supplies them"
)
_VALIDATION_EXAMPLES = flags.DEFINE_integer(
    "validation_examples", None, "Last rows of train that are validation; default: each set's conventional number"
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables", allow_override=True)

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """A split to audit, less its pixels.

    Attributes:
      name: E.g. "emnist/balanced:test".
      digests: Of the upright images (`duplicates.digests`), `[N]`.
      labels: int32 `[N]`, 0-based.
      class_names: Name of each class, by label.
    """

    name: str
    digests: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Within:
    """Counts within a split.

    Attributes:
      split: Its name.
      images: All of them.
      distinct: Images that remain if each is kept once.
      repeated: Images that occur more than once, all occurrences counted.
      conflicts: Distinct images that occur with more than one label.
    """

    split: str
    images: int
    distinct: int
    repeated: int
    conflicts: int


@dataclasses.dataclass(frozen=True)
class Between:
    """Counts of the images of one split that occur in another; the reverse is another row.

    Attributes:
      split: Name of the one.
      other: Name of the other.
      images: Images of `split` that occur in `other`, repeated ones counted each time.
      share: The same as a fraction of all images of `split`; None if it has none.
      other_label: How many of them have another label there; None if the two sets have different classes.
    """

    split: str
    other: str
    images: int
    share: float | None
    other_label: int | None


@dataclasses.dataclass(frozen=True)
class Audit:
    """All counts: each split by itself, and each two splits, both ways."""

    within: tuple[Within, ...]
    between: tuple[Between, ...]


def audit(splits: Sequence[Split]) -> Audit:
    """Counts identical images within splits and between each two of them."""
    numbers = duplicates.number(*(split.digests for split in splits))
    distinct = 1 + max(n.max(initial=-1) for n in numbers)
    occurrences = [np.bincount(n, minlength=distinct) for n in numbers]
    # One key for each image and label: an image that has a label twice still has one label.
    num_labels = max(len(split.class_names) for split in splits)
    keys = [n * num_labels + split.labels for n, split in zip(numbers, splits, strict=True)]
    labels_of = [np.bincount(np.unique(k) // num_labels, minlength=distinct) for k in keys]

    def within(i: int) -> Within:
        times = occurrences[i]
        return Within(
            split=splits[i].name,
            images=len(numbers[i]),
            distinct=int((times > 0).sum()),
            repeated=int(times[times > 1].sum()),
            conflicts=int((labels_of[i] > 1).sum()),
        )

    def between(i: int, j: int) -> Between:
        images = int((occurrences[j][numbers[i]] > 0).sum())
        other_label = None
        if splits[i].class_names == splits[j].class_names:
            other_label = int((labels_of[j][numbers[i]] > np.isin(keys[i], keys[j])).sum())
        return Between(
            split=splits[i].name,
            other=splits[j].name,
            images=images,
            share=images / len(numbers[i]) if len(numbers[i]) else None,
            other_label=other_label,
        )

    indices = range(len(splits))
    pairs = [pair for i, j in itertools.combinations(indices, 2) for pair in ((i, j), (j, i))]
    return Audit(tuple(within(i) for i in indices), tuple(between(i, j) for i, j in pairs))


def read(arguments: Sequence[str], data_dir: str | None = None, validation_examples: int | None = None) -> list[Split]:
    """Reads the splits that the arguments name, one data set in memory at a time.

    Args:
      arguments: "SET:SPLIT", or "SET" for its three splits.
      data_dir: Folder with the official files of all sets; None for TFDS' copies.
      validation_examples: Size of the validation split; None for each set's conventional one.

    Raises:
      UserError: No argument, an unknown set or split, or files that are missing or damaged.
    """
    wanted = {}  # the splits of each set; a dict keeps their order, and each once
    for argument in arguments:
        name, colon, split = argument.partition(":")
        with command_line.own_flags():
            datasets.class_names(_config(name, data_dir, None))  # raises for a wrong name, before any set is read
        if colon and split not in SPLITS:
            raise unknown(f"split in {argument!r}:", split, SPLITS)
        wanted.setdefault(name, {}).update(dict.fromkeys([split] if colon else SPLITS))
    if not wanted:
        raise UserError("name the splits to audit, e.g. emnist/bymerge:train emnist/balanced:test")
    splits = []
    for name, of_set in wanted.items():
        # A folder shows its own progress.
        with contextlib.nullcontext() if name == datasets.FOLDER else Console(stderr=True).status(f"Reading {name}"):
            with command_line.own_flags():
                dataset = datasets.load(_config(name, data_dir, validation_examples))
            for split in of_set:
                part = getattr(dataset, split)
                digests = duplicates.digests(part.images)
                splits.append(Split(f"{name}:{split}", digests, part.labels, dataset.class_names))
    return splits


def _config(name: str, data_dir: str | None, validation_examples: int | None) -> ConfigDict:
    config = base().dataset
    config.name = name
    config.data_dir = None if name in synthetic.CLASS_NAMES else data_dir
    config.validation_examples = validation_examples
    return config


def tables(result: Audit) -> tuple[Table, Table]:
    """Returns the counts within the splits, and those between them."""
    within = _table("Within a split", "split", "images", "distinct", "repeated", "conflicting labels")
    for row in result.within:
        within.add_row(row.split, *map(_count, (row.images, row.distinct, row.repeated, row.conflicts)))
    between = _table("Between two splits", "images of", "that are in", "images", "share", "with another label")
    for row in result.between:
        share = "-" if row.share is None else f"{100 * row.share:.2f} %"
        between.add_row(row.split, row.other, _count(row.images), share, _count(row.other_label))
    return within, between


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for column in columns:
        of_text = column in ("split", "images of", "that are in")
        table.add_column(column, justify="left" if of_text else "right", no_wrap=True)
    return table


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def main(*arguments: str) -> None:
    result = audit(read(arguments, _DATA_DIR.value, _VALIDATION_EXAMPLES.value))
    if _JSON.value:
        print(json.dumps(dataclasses.asdict(result), indent=2))
        return
    # Wide enough for the longest names, whatever the terminal.
    console = Console(width=200)
    within, between = tables(result)
    console.print(within)
    if result.between:
        console.print(between)
    if len({datasets.preparation(argument.partition(":")[0]) for argument in arguments}) > 1:
        print(
            "The same character has other pixels in sets that were prepared in other ways: none is found between these."
        )


if __name__ == "__main__":
    command_line.run(main, config=None, positional=True)
