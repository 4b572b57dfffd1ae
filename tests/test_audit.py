"""Identical images, planted within and between splits: each is counted, and nothing else is."""

import gzip
import json
import re

import numpy as np
import pytest

from emnist_jax import audit, errors
from emnist_jax.datasets import duplicates
from processes import run
from shared import REAL_DATA, example_files, idx_bytes, needs_real_data, write_files

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 28, 28), np.uint8)
MNIST = "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def split(rows, labels, name="a", class_names=("x", "y", "z")) -> audit.Split:
    return audit.Split(name, duplicates.digests(IMAGES[rows]), np.array(labels, np.int32), class_names)


def between(one: audit.Split, other: audit.Split) -> list[tuple]:
    """Returns images, share and other label for one in other, then for other in one."""
    return [(row.images, row.share, row.other_label) for row in audit.audit([one, other]).between]


def mnist_files(train, train_labels, test, test_labels) -> dict[str, bytes]:
    arrays = (train, np.array(train_labels), test, np.array(test_labels))
    return {stem: idx_bytes(array) for stem, array in zip(MNIST, arrays, strict=True)}


def test_rows_in_finds_the_rows_that_stand_in_the_others_in_any_order_and_number():
    others = IMAGES[[7, 3, 3, 11]]
    found = duplicates.rows_in(IMAGES, others)
    assert found.dtype == bool and np.flatnonzero(found).tolist() == [3, 7, 11]
    assert duplicates.rows_in(others, IMAGES[:5]).tolist() == [False, True, True, False]


@pytest.mark.parametrize("pixel", [(0, 0), (13, 14), (27, 27)])
def test_an_image_that_differs_in_one_bit_of_one_pixel_is_another(pixel):
    changed = IMAGES.copy()
    changed[(slice(None), *pixel)] ^= 1
    assert not duplicates.rows_in(changed, IMAGES).any()


def test_rows_in_compares_all_bytes_of_images_that_are_views():
    # Neither contiguous nor alike: every second image, and the images transposed.
    assert duplicates.rows_in(IMAGES[::2], IMAGES).all()
    assert not duplicates.rows_in(IMAGES.swapaxes(1, 2), IMAGES).any()


def test_rows_in_agrees_with_a_comparison_of_every_two_rows():
    few = RNG.integers(0, 2, (300, 2, 4), np.uint8)  # 256 possible images
    others = RNG.integers(0, 2, (100, 2, 4), np.uint8)
    expected = (few[:, None] == others[None]).all(axis=(2, 3)).any(axis=1)
    assert 0 < expected.sum() < len(few)
    np.testing.assert_array_equal(duplicates.rows_in(few, others), expected)


def test_rows_in_of_nothing():
    assert duplicates.rows_in(IMAGES[:0], IMAGES).shape == (0,)
    assert not duplicates.rows_in(IMAGES, IMAGES[:0]).any()


@pytest.mark.parametrize("others", [IMAGES.astype(np.float32), IMAGES.reshape(20, 14, 56)])
def test_rows_that_cannot_be_compared_are_refused(others):
    with pytest.raises(ValueError, match="cannot equal"):
        duplicates.rows_in(IMAGES, others)


def test_images_that_occur_more_than_once_in_a_split():
    (row,) = audit.audit([split([0, 1, 2, 1, 1, 3, 0], [0, 1, 2, 1, 1, 0, 0])]).within
    assert row == audit.Within("a", images=7, distinct=4, repeated=5, conflicts=0)


def test_conflicting_labels_in_a_split_are_counted_once_for_each_image():
    # Image 0 with two labels, 1 with three, 2 twice with one, and 3 alone.
    (row,) = audit.audit([split([0, 0, 1, 1, 1, 2, 2, 3], [0, 1, 0, 1, 2, 2, 2, 1])]).within
    assert row.conflicts == 2


def test_a_split_is_audited_by_itself():
    rows = audit.audit([split([0, 1], [0, 1]), split([0, 0], [2, 2], "b")]).within
    assert rows == (audit.Within("a", 2, 2, 0, 0), audit.Within("b", 2, 1, 2, 0))


def test_images_of_one_split_in_another_and_the_reverse():
    one, other = split(range(10), [0] * 10), split([9, 8, 8, 12], [0] * 4, "b")
    assert between(one, other) == [(2, 0.2, 0), (3, 0.75, 0)]
    rows = audit.audit([one, other]).between
    assert [(row.split, row.other) for row in rows] == [("a", "b"), ("b", "a")]


def test_images_with_another_label_in_the_other_split():
    # 0: the same label; 1: two others; 2: the same and another; 3 is in one split alone.
    one, other = split([0, 1, 2, 3], [0, 1, 2, 0]), split([0, 1, 1, 2, 2], [0, 0, 2, 2, 0], "b")
    assert between(one, other) == [(3, 0.75, 2), (5, 1, 3)]


def test_labels_are_compared_only_where_the_classes_are_the_same():
    one, other = split([0, 1], [0, 1]), split([0, 1], [0, 0], "b", ("x", "Y", "z"))
    assert between(one, other) == [(2, 1, None), (2, 1, None)]
    assert list(audit.tables(audit.audit([one, other]))[1].columns[-1].cells) == ["-", "-"]


def test_three_splits_are_compared_two_by_two():
    rows = audit.audit([split([0, 1], [0, 0], "a"), split([1, 2], [0, 0], "b"), split([2, 0], [0, 0], "c")]).between
    assert [row.split + row.other for row in rows] == ["ab", "ba", "ac", "ca", "bc", "cb"]
    assert {row.images for row in rows} == {1}


def test_an_empty_split_has_no_share():
    empty, other = split([], []), split([0], [0], "b")
    assert between(empty, other) == [(0, None, 0), (0, 0, 0)]
    assert list(audit.tables(audit.audit([empty, other]))[1].columns[3].cells) == ["-", "0.00 %"]
    assert audit.audit([split([], [])]).within == (audit.Within("a", 0, 0, 0, 0),)


def test_transposed_and_upright_files_hold_the_same_images(tmp_path):
    """MNIST's files are upright, and EMNIST's are not."""
    files, ((train, labels), test) = example_files("emnist/digits")
    write_files(tmp_path, files)
    write_files(tmp_path, mnist_files(train, labels, *test))
    one, other = audit.read(["emnist/digits:train", "mnist:train"], str(tmp_path), 0)
    assert between(one, other) == [(12, 1, 0), (12, 1, 0)]


def test_a_set_without_a_split_is_all_three_and_none_is_read_twice(tmp_path):
    files, _ = example_files()
    write_files(tmp_path, files)
    splits = audit.read(["mnist:test", "mnist", "mnist:test"], str(tmp_path), 3)
    assert [(s.name, len(s.digests), len(s.labels)) for s in splits] == [
        ("mnist:test", 5, 5),
        ("mnist:train", 9, 9),
        ("mnist:validation", 3, 3),
    ]


def test_a_synthetic_set_needs_no_files(tmp_path):
    files, _ = example_files()
    write_files(tmp_path, files)
    splits = audit.read(["synthetic/digits:test", "mnist:test"], str(tmp_path), 0)
    assert [len(s.digests) for s in splits] == [1000, 5]


def test_all_names_are_checked_before_a_set_is_read(tmp_path):
    with pytest.raises(errors.UserError, match="unknown data set 'mnst'"):
        audit.read(["mnist:test", "mnst:test"], str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("mnst:test", "unknown data set 'mnst'; did you mean 'mnist'?"),
        ("mnist:tst", "unknown split in 'mnist:tst': 'tst'; did you mean 'test'?"),
        ("mnist:", "unknown split in 'mnist:': ''; known: test, train, validation"),
        ("mnist:test:train", "unknown split in 'mnist:test:train'"),
        ("emnist/letters:test", "--data_dir=.* has no emnist-letters-train-images"),
        ("mnist:train", "^--validation_examples=12 must be"),
    ],
)
def test_what_is_wrong_is_said_in_terms_of_this_command(tmp_path, argument, message):
    files, _ = example_files()
    write_files(tmp_path, files)
    with pytest.raises(errors.UserError, match=message.replace("?", r"\?")) as caught:
        audit.read([argument], str(tmp_path), 12)
    assert "--config" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_prints_the_counts_as_tables_or_json(tmp_path):
    # Of 4 test images 2 are in train, one with another label; train has image 1 twice, with two labels.
    write_files(tmp_path, mnist_files(IMAGES[[0, 1, 2, 1]], [0, 1, 2, 3], IMAGES[[0, 2, 10, 11]], [0, 9, 5, 5]))
    # Flags may follow the arguments.
    command = ("audit", "mnist:train", "mnist:test", f"--data_dir={tmp_path}", "--validation_examples=0")
    done = run(*command)
    assert done.returncode == 0
    assert re.fullmatch(".* holds 4 training and 4 test images, not the official 60,000 and 10,000\n", done.stderr)
    cells = [re.findall(r"[^\s|]+(?: [^\s|]+)*", line) for line in done.stdout.split("\n") if "mnist:" in line]
    assert cells == [
        ["mnist:train", "4", "3", "2", "1"],
        ["mnist:test", "4", "4", "0", "0"],
        ["mnist:train", "mnist:test", "2", "50.00 %", "1"],
        ["mnist:test", "mnist:train", "2", "50.00 %", "1"],
    ]
    assert json.loads(run(*command, "--json").stdout) == {
        "within": [
            {"split": "mnist:train", "images": 4, "distinct": 3, "repeated": 2, "conflicts": 1},
            {"split": "mnist:test", "images": 4, "distinct": 4, "repeated": 0, "conflicts": 0},
        ],
        "between": [
            {"split": "mnist:train", "other": "mnist:test", "images": 2, "share": 0.5, "other_label": 1},
            {"split": "mnist:test", "other": "mnist:train", "images": 2, "share": 0.5, "other_label": 1},
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the splits to audit, e.g. emnist/bymerge:train emnist/balanced:test"),
        (["mnist:test", "--config=configs/quickstart.py"], "Unknown command line flag 'config'"),
        (["mnist:test", "--data_dir=/nowhere"], "--data_dir=/nowhere is no folder"),
        (["mnist:test", "--jsn=x"], "Unknown command line flag 'jsn'"),
    ],
)
def test_a_wrong_command_ends_with_one_line_and_code_2(arguments, message):
    done = run("audit", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@needs_real_data
def test_images_of_balanced_are_found_in_bymerge(tmp_path):
    """The pool says in which official files each of its images was seen: the audit finds the same in such files."""
    folder, arrays = REAL_DATA / "emnist-pool", []
    for kind, offset in (("images-idx3", 16), ("labels-idx1", 8), ("provenance-idx1", 8)):
        parts = [gzip.decompress((folder / f"emnist-pool-{s}-{kind}-ubyte.gz").read_bytes()) for s in ("train", "test")]
        arrays.append(np.concatenate([np.frombuffer(part, np.uint8, offset=offset) for part in parts]))
    images, labels, seen_in = arrays[0].reshape(-1, 28, 28), *arrays[1:]
    names = {"balanced-train": 1, "balanced-test": 2, "bymerge-test": 4, "bymerge-train": 16}
    for name, flag in names.items():
        rows = (seen_in & flag) > 0
        (tmp_path / f"emnist-{name}-images-idx3-ubyte").write_bytes(idx_bytes(images[rows]))
        (tmp_path / f"emnist-{name}-labels-idx1-ubyte").write_bytes(idx_bytes(labels[rows]))
    splits = [f"emnist/{name.replace('-', ':')}" for name in names]
    counts = audit.audit(audit.read(splits, str(tmp_path), validation_examples=0))
    shared = {(row.split, row.other): (row.images, row.other_label) for row in counts.between}
    assert shared["emnist/balanced:train", "emnist/bymerge:test"] == (1300, 0)
    assert shared["emnist/balanced:train", "emnist/bymerge:train"] == (182, 0)
    assert shared["emnist/balanced:test", "emnist/bymerge:test"] == (39, 0)
    assert shared["emnist/balanced:test", "emnist/bymerge:train"] == (5, 0)


@needs_real_data
def test_the_real_pools_splits_share_no_image():
    counts = audit.audit(audit.read(["emnist_pool"], str(REAL_DATA / "emnist-pool")))
    assert [row.images for row in counts.within] == [185_533, 18_800, 18_800]
    assert all(row.distinct == row.images for row in counts.within)
    assert [row.images for row in counts.between] == [0] * 6
