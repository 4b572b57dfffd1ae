"""A set of one's own: a folder of pictures by class, `DIR/train/CLASS/*`.

The pictures are as people make them: photos, scans or drawings of one character each, in any format that Pillow knows.
Each is brought into the form of EMNIST's images, as `predict` does it (`handwriting.characters.image_of`). Classes are
named after their folders. Nothing depends on the order in which the file system lists them.
"""

import concurrent.futures
import logging
import multiprocessing
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from emnist_jax import signals
from emnist_jax.datasets import duplicates
from emnist_jax.environment import cores
from emnist_jax.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(3)
STYLE = "emnist"
# The confusion matrix of so many takes a gigabyte.
MOST_CLASSES = 10_000

_LITTER = {"thumbs.db", "desktop.ini", "icon\r", "__macosx"}
# A process starts in a second or two, in which another prepares as many pictures.
_PICTURES_PER_PROCESS = 100
_CHUNK = 16

Arrays = tuple[np.ndarray, np.ndarray]


def class_names(data_dir: str | None) -> tuple[str, ...]:
    """Returns the names of the class folders of train: in order of value if all are numbers, else of code points.

    Names are brought into Unicode's form NFC: macOS writes "é" as two characters. "a" and "A" are two classes.

    Args:
      data_dir: The folder with `train/CLASS`, or if it has no `train`, with `CLASS`.

    Raises:
      UserError: The folder is missing or cannot be read, its layout is another, or it has fewer than 2 classes or more
        than `MOST_CLASSES`.
    """
    return tuple(_class_folders(data_dir)["train"])


def read(data_dir: str | None, seed: int) -> tuple[Arrays, Arrays, int]:
    """Reads a folder of pictures by class.

    `DIR/validation/CLASS/*` and `DIR/test/CLASS/*` are optional. Each that is missing is cut from train: of a class
    with n distinct images a tenth, rounded to the nearest, at least one; test takes its share first, and one image
    always stays in train. The images and the seed alone decide which. Identical images (after preparation) stay
    together.

    If the folder has splits of its own, images that are in test as well are left out of train and validation, and
    those that are in validation out of train.

    Args:
      data_dir: As in `class_names`.
      seed: Decides the split and the order of the rows.

    Returns:
      The training and the test split (uint8 `[N, 28, 28]`, upright, white on black, and int32 `[N]`, classes mixed),
      and the number of validation images, which are the last training rows.

    Raises:
      UserError: As in `class_names`; or a file is no picture or holds no ink, a class has no training image, or there
        is no test image.
    """
    folders = _class_folders(data_dir)
    names = list(folders["train"])
    label_of = {name: label for label, name in enumerate(names)}
    paths, labels, split_of = [], [], []
    for split, of_class in folders.items():
        for name, folder in of_class.items():
            files = _entries(folder)
            if split == "train" and not files:
                raise UserError(f"{folder} holds no pictures: add some, or delete the folder")
            paths += files
            labels += [label_of[name]] * len(files)
            split_of += [SPLITS.index(split)] * len(files)
    labels, split_of = np.array(labels, np.int32), np.array(split_of)
    parents = {folder.parent for of_class in folders.values() for folder in of_class.values()}
    if loose := sum(not path.is_dir() for parent in parents for path in _entries(parent)):
        log.warning("files beside the folders of classes are passed over: %s", f"{loose:,}")
    images = _prepare(paths)

    (numbers,) = duplicates.number(duplicates.digests(images))
    _warn_of_conflicts(numbers, labels, paths)
    split_of[_repeated(numbers, split_of)] = -1
    rng = np.random.default_rng(seed)
    if missing := [number for number in (_TEST, _VALIDATION) if SPLITS[number] not in folders]:
        train = split_of == _TRAIN
        split_of[train] = _cut(numbers[train], labels[train], missing, rng)
    for name, count in zip(names, np.bincount(labels[split_of == _TRAIN], minlength=len(names)), strict=True):
        if not count:
            raise UserError(f"all training images of class {name!r} in {data_dir} are in another split too: add some")
    if not (split_of == _TEST).any():
        raise UserError(f"{data_dir} holds no test pictures: add some")
    order = np.lexsort((numbers, labels))  # whatever the files' names
    train, validation, test = (rng.permutation(order[split_of[order] == number]) for number in range(3))
    train = np.concatenate([train, validation])
    return (images[train], labels[train]), (images[test], labels[test]), len(validation)


def _class_folders(data_dir: str | None) -> dict[str, dict[str, Path]]:
    """Returns the folders of the classes of each split, in the classes' order."""
    if data_dir is None:
        raise UserError(
            "folder needs --config.dataset.data_dir=DIR, with the pictures of each class in DIR/train/CLASS"
        )
    root = Path(os.path.expanduser(data_dir))
    found = _folders(root)
    splits = {split: _folders(found[split]) for split in SPLITS if split in found}
    if splits and "train" not in splits:
        raise UserError(f"{root} has a folder {next(iter(splits))!r}, but none named 'train'")
    if splits and (others := sorted(found.keys() - splits.keys())):
        raise UserError(
            f"{root} holds {others[0]!r} beside 'train': rename it (train, validation, test) or move it away"
        )
    splits = splits or {"train": found}
    names = _sorted(splits["train"])
    if not 2 <= len(names) <= MOST_CLASSES:
        raise UserError(
            f"--config.dataset.data_dir={root} holds {len(names):,} folders of classes, not 2 to {MOST_CLASSES:,}; "
            "the pictures of a class stand in DIR/train/CLASS"
        )
    for split, of_class in splits.items():
        if unknown := sorted(of_class.keys() - set(names)):
            raise UserError(f"{root / split} has the class {unknown[0]!r}, which {root / 'train'} lacks: add it there")
    return {split: {name: of_class[name] for name in names if name in of_class} for split, of_class in splits.items()}


def _sorted(names: Sequence[str]) -> list[str]:
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _folders(parent: Path) -> dict[str, Path]:
    """Returns the folders in a folder by their names."""
    folders = {}
    for path in _entries(parent):
        if path.is_dir():
            name = unicodedata.normalize("NFC", path.name)
            # Control characters, line breaks, and bytes that are no UTF-8.
            if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
                raise UserError(f"the folder {name!r} in {parent} cannot name a class: rename it")
            if name in folders:
                raise UserError(f"{parent} has two folders {name!r}, written differently in Unicode: rename one")
            folders[name] = path
    return folders


def _entries(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted, without hidden files and what macOS and Windows leave there."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in _LITTER]


def _prepare(paths: Sequence[Path]) -> np.ndarray:
    """Brings all pictures into the form of EMNIST's images, uint8 `[N, 28, 28]`."""
    log.info("preparing %s pictures", f"{len(paths):,}")
    console = Console(stderr=True)
    done = track(
        _prepared(paths),
        f"Preparing {len(paths):,} pictures",
        total=len(paths),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    images = np.zeros((len(paths), 28, 28), np.uint8)
    wrong = []
    for row, image in enumerate(done):
        if isinstance(image, str):
            wrong.append(f"{_printable(paths[row])}: {image}")
        else:
            images[row] = image
    if wrong:
        raise UserError(f"{wrong[0]} ({len(wrong):,} of {len(paths):,} files are wrong: mend them or take them away)")
    return images


def _prepared(paths: Sequence[Path]) -> Iterator[np.ndarray | str]:
    """Yields the image of each picture, or what is wrong with it."""
    processes = _number_of_processes(len(paths))
    if processes < 2:
        yield from map(_prepare_one, paths)
        return
    # Threads were no faster. "spawn": JAX does not survive a fork.
    with concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=signals.leave_to_parent
    ) as pool:
        try:
            yield from pool.map(_prepare_one, paths, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise UserError("a process that prepared pictures was ended, maybe for its memory: try again") from error


def _number_of_processes(pictures: int) -> int:
    # A process imports the main module again. A script that nothing guards from that would begin anew in each.
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if not main or not main.name.startswith("emnist_jax."):
        return 1
    return min(cores(), pictures // _PICTURES_PER_PROCESS)


def _prepare_one(path: Path) -> np.ndarray | str:
    from emnist_jax.handwriting import characters  # late: scikit-image takes a second, and only this set needs it

    if not path.is_file():
        return "it is no file"
    try:
        return characters.image_of(path, STYLE)
    except UserError as error:
        return str(error)


def _warn_of_conflicts(numbers: np.ndarray, labels: np.ndarray, paths: Sequence[Path]) -> None:
    """Logs how many distinct images occur in more than one class."""
    _, first, same_as = np.unique(numbers, return_index=True, return_inverse=True)
    other = np.flatnonzero(labels != labels[first][same_as])
    if len(other):
        one, another = (_printable(paths[row]) for row in (first[same_as[other[0]]], other[0]))
        count = len(np.unique(numbers[other]))
        log.warning("images in more than one class: %s, e.g. %s and %s", f"{count:,}", one, another)


def _printable(path: Path) -> str:
    """Returns a path as text; the name of a file may be none."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _cut(numbers: np.ndarray, labels: np.ndarray, missing: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Returns the split of each training image if the `missing` splits are cut from train.

    Args:
      numbers: Those of the distinct images, which do not depend on the files' names.
      labels: The classes. An image of several classes counts for the first of them.
      missing: Which are cut, in order.
      rng: Draws the images.
    """
    _, first, distinct = np.unique(numbers, return_index=True, return_inverse=True)
    of_class = np.argsort(labels[first], kind="stable")
    split_of = np.full(len(first), _TRAIN)
    for images in np.split(of_class, np.cumsum(np.bincount(labels[first]))[:-1]):
        left = rng.permutation(images)
        share = max((len(images) + 5) // 10, 1)
        for split in missing:
            taken, left = np.split(left, [min(share, max(len(left) - 1, 0))])
            split_of[taken] = split
    return split_of[distinct]


def _repeated(numbers: np.ndarray, split_of: np.ndarray) -> np.ndarray:
    """Returns which images of train and validation occur in a later split too, and logs how many."""
    repeated = np.zeros(len(numbers), bool)
    for split in (_TRAIN, _VALIDATION):
        repeated |= (split_of == split) & np.isin(numbers, numbers[split_of > split])
    if count := repeated.sum():
        log.warning("left out of train or validation, because a later split has the same image: %s", f"{count:,}")
    return repeated
