"""Data sets as arrays in memory: `load(config)` returns upright uint8 images.

`official` reads the published sets. `folder` reads pictures of your own, by class. `synthetic` renders stand-ins that
need no download.
"""

import dataclasses
import functools
import hashlib

import ml_collections
import numpy as np

from emnist_jax import errors
from emnist_jax.datasets import folder, official, synthetic

FOLDER = "folder"
NAMES = (*official.SETS, *synthetic.CLASS_NAMES, FOLDER)


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and labels, row by row.

    Attributes:
      images: uint8 `[N, 28, 28]`, upright, white on black.
      labels: int32 `[N]`, 0-based.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set of three splits.

    Attributes:
      name: One of `NAMES`.
      train: For training.
      validation: For choosing models; cut from the training split, unless a folder has its own. May have
        no rows.
      test: For the final figures.
      class_names: Name of each class, by label.
      synthetic: Whether the images were rendered. An accuracy on rendered images is no result.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    synthetic: bool

    @functools.cached_property
    def sha256(self) -> str:
        """The digest of all images and labels, split by split."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(split.images)
            digest.update(split.labels)
        return digest.hexdigest()


def class_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns the name of each class of a data set without loading it.

    Args:
      config: The section `config.dataset`.

    Raises:
      UserError: The name is unknown, or the folder has no classes.
    """
    name = config.name
    if name not in NAMES:
        raise errors.unknown("data set", name, NAMES)
    if name == FOLDER:
        return folder.class_names(config.data_dir)
    return official.SETS[name].class_names if name in official.SETS else synthetic.CLASS_NAMES[name]


def preparation(name: str) -> str:
    """Returns how a set's images were made: only those of one preparation have equal pixels where they are the same.

    MNIST's digits and EMNIST's, for example, are of the same forms, reduced in different ways.
    """
    return "emnist" if name.startswith("emnist") else name.partition("/")[0]


def load(config: ml_collections.ConfigDict) -> Dataset:
    """Loads a data set into memory and cuts the validation split from the end of train.

    Args:
      config: The section `config.dataset`. `train_per_class` includes the validation images.

    Raises:
      UserError: The name is unknown, a setting is wrong, or a file is missing or damaged.
    """
    name = config.name
    classes = class_names(config)
    per_class = (config.train_per_class, config.test_per_class)
    if name not in synthetic.CLASS_NAMES and per_class != (None, None):
        raise errors.UserError(
            f"--config.dataset.train_per_class and test_per_class are for synthetic/... sets; {name} has a fixed size"
        )
    if name == FOLDER:
        if config.validation_examples:
            raise errors.UserError(
                f"--config.dataset.validation_examples={config.validation_examples} is not for folder, unless it is 0: "
                "DIR/validation names the images"
            )
        train, test, validation_examples = folder.read(config.data_dir, config.seed)
    elif name in official.SETS:
        train, test = official.read(name, config.data_dir)
        validation_examples = official.SETS[name].validation_examples
    else:
        if config.data_dir is not None:
            raise errors.UserError(f"{name} is rendered: it reads no --config.dataset.data_dir")
        train, test, validation_examples = synthetic.render(name, *per_class, seed=config.seed)

    if config.validation_examples is not None:
        validation_examples = config.validation_examples
    images, labels = train
    cut = len(images) - validation_examples
    if not 0 < cut <= len(images):
        by_convention = " (by convention)" if config.validation_examples is None else ""
        raise errors.UserError(
            f"--config.dataset.validation_examples={validation_examples}{by_convention} must be at least 0 and "
            f"less than the {len(images):,} training images of {name}"
        )
    return Dataset(
        name=name,
        train=Split(images[:cut], labels[:cut]),
        validation=Split(images[cut:], labels[cut:]),
        test=Split(*test),
        class_names=classes,
        synthetic=name in synthetic.CLASS_NAMES,
    )
