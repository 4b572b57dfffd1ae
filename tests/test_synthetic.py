"""Tests of the rendered sets: sizes, balance, determinism, and that train and test are apart."""

import ml_collections
import numpy as np
import pytest

from emnist_jax import datasets, errors
from emnist_jax.datasets import synthetic


def load(name="synthetic/balanced", **changes) -> datasets.Dataset:
    defaults = dict(data_dir=None, validation_examples=None, train_per_class=10, test_per_class=4, seed=0)
    return datasets.load(ml_collections.ConfigDict({"name": name, **defaults, **changes}))


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("synthetic/balanced", 47),
        ("synthetic/bymerge", 47),
        ("synthetic/byclass", 62),
        ("synthetic/letters", 26),
        ("synthetic/digits", 10),
        ("synthetic/mnist", 10),
    ],
)
def test_every_split_is_balanced(name, num_classes):
    dataset = load(name)
    assert dataset.synthetic and len(dataset.class_names) == num_classes
    for split, per_class in ((dataset.train, 8), (dataset.validation, 2), (dataset.test, 4)):
        assert split.images.shape == (num_classes * per_class, 28, 28)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert np.bincount(split.labels).tolist() == [per_class] * num_classes
        assert (np.diff(split.labels) < 0).sum() > num_classes / 4, "classes are not mixed"


def test_default_sizes():
    dataset = load("synthetic/digits", train_per_class=None, test_per_class=None)
    sizes = [len(split.images) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [3200, 800, 1000]


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    first, second, other = load(), load(), load(seed=1)
    for split in ("train", "validation", "test"):
        images = [getattr(dataset, split).images for dataset in (first, second, other)]
        np.testing.assert_array_equal(images[0], images[1])
        assert not np.array_equal(images[0], images[2])


def test_sets_of_different_names_share_no_image():
    images = [load(name).train.images for name in ("synthetic/balanced", "synthetic/bymerge")]
    hashes = [{image.tobytes() for image in of_set} for of_set in images]
    assert not hashes[0] & hashes[1]


def test_no_test_image_is_a_training_image_and_none_appears_twice():
    dataset = load(train_per_class=100, test_per_class=50)
    splits = (dataset.train, dataset.validation, dataset.test)
    images = [image.tobytes() for split in splits for image in split.images]
    assert len(set(images)) == len(images) == 47 * 150


def test_characters_are_framed_as_in_emnist():
    dataset = load(train_per_class=50)
    images = dataset.train.images
    ink = images > 50
    assert ink.any(axis=(1, 2)).all()
    longer_side = np.maximum(ink.any(axis=1).sum(axis=1), ink.any(axis=2).sum(axis=1))
    assert 18 < np.median(longer_side) < 26
    edge = np.concatenate([images[:, [0, -1]].reshape(-1), images[:, :, [0, -1]].reshape(-1)])
    assert edge.mean() < 3
    assert np.median(images.max(axis=(1, 2))) > 200


def test_images_are_upright():
    dataset = load("synthetic/byclass", train_per_class=50)
    rows = np.arange(28)[:, None]
    for letter, above in (("T", True), ("L", False), ("7", True), ("P", True)):
        images = dataset.train.images[dataset.train.labels == dataset.class_names.index(letter)]
        mean = images.mean(axis=0)
        assert ((rows * mean).sum() / mean.sum() < 13.5) == above, letter


@pytest.mark.ci
def test_merged_classes_hold_both_characters_and_the_others_one():
    def num_characters(name, class_name):
        class_names = synthetic.CLASS_NAMES[f"synthetic/{name}"]
        _, ranges = synthetic._glyphs(class_names)
        return len({tuple(pair) for pair in ranges[class_names.index(class_name)]})

    assert num_characters("balanced", "K") == 2
    assert num_characters("balanced", "A") == 1
    assert num_characters("balanced", "a") == 1
    assert num_characters("byclass", "K") == 1
    assert num_characters("letters", "A") == 2
    assert num_characters("digits", "5") == 1


@pytest.mark.parametrize("changes", [dict(train_per_class=0), dict(test_per_class=-1), dict(seed=-1)])
def test_impossible_settings(changes):
    with pytest.raises(errors.UserError, match=next(iter(changes))):
        load("synthetic/digits", **changes)
