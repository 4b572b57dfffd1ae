"""Data sets as arrays in memory: `load(config)` gives upright uint8 images, whatever the source.

`official` reads the published sets, `synthetic` renders a stand-in that needs no download.
"""

import dataclasses

import ml_collections
import numpy as np

from emnist_jax import errors
from emnist_jax.datasets import official, synthetic

NAMES = (*official.SETS, *synthetic.CLASS_NAMES)


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
    """A data set: three splits, of which `validation` (cut from train) may have no rows.

    Attributes:
      name: The name that it was loaded by.
      train: What to train on.
      validation: What to choose models on.
      test: What to look at once.
      class_names: Name of each class, by label.
      synthetic: Whether the images were rendered, so that no accuracy on them is a result.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    synthetic: bool


def class_names(name: str) -> tuple[str, ...]:
    """Returns the name of each class of a data set, without loading it; a UserError if it is none of `NAMES`."""
    if name not in NAMES:
        raise errors.unknown("data set", name, NAMES)
    return official.SETS[name].class_names if name in official.SETS else synthetic.CLASS_NAMES[name]


def load(config: ml_collections.ConfigDict) -> Dataset:
    """Loads a data set into memory and cuts the validation split from the end of train.

    Args:
      config: The `dataset` section of the configuration: `name`, one of `NAMES`; `data_dir`, a
        folder with the official files (None: where TFDS keeps or finds them);
        `validation_examples`, the size of the validation split (None: the conventional one);
        `train_per_class`, `test_per_class` and `seed`, for the synthetic sets alone (None: the
        default sizes). `train_per_class` includes the validation images.

    Returns:
      The data set.

    Raises:
      UserError: An unknown name, a wrong setting, or files that are missing or damaged.
    """
    name = config.name
    classes = class_names(name)
    per_class = (config.train_per_class, config.test_per_class)
    if name in official.SETS:
        if per_class != (None, None):
            raise errors.UserError(
                "--config.dataset.train_per_class and test_per_class are for synthetic/... sets; "
                f"{name} has a fixed size"
            )
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
        raise errors.UserError(
            f"--config.dataset.validation_examples={validation_examples} must be at least 0 and "
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
