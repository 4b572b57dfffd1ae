"""A folder of pictures by class: how it is read, split and refused, and a whole run on one."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from emnist_jax import audit, datasets, load, summary
from emnist_jax.datasets import duplicates, folder
from emnist_jax.errors import UserError
from emnist_jax.handwriting import characters
from emnist_jax.reporting import figures
from emnist_jax.training import loop, run, weights
from shared import dataset_config, make_config

FONT = ImageFont.load_default(24)


def draw(path, text: str = "a", number: int = 0) -> None:
    """Writes a picture of a text, dark on light; each number below 60 gives another image."""
    picture = Image.new("L", (48, 48), 230)
    ImageDraw.Draw(picture).text((16, 14), text, 20, FONT)
    # A dot whose place tells the pictures apart after preparation, too.
    x, y = 2 + 4 * (number % 10), 2 + 2 * (number // 10)
    ImageDraw.Draw(picture).ellipse((x, y, x + 4, y + 4), 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def draw_classes(parent, counts: dict[str, int], first: int = 0) -> None:
    for text, count in counts.items():
        for number in range(first, first + count):
            draw(parent / text / f"{number}.png", text[:1], number)


def read(data_dir, **changes) -> datasets.Dataset:
    return datasets.load(dataset_config(name="folder", data_dir=str(data_dir), **changes))


def digests(split: datasets.Split) -> set[bytes]:
    return {digest.tobytes() for digest in duplicates.digests(split.images)}


def counts(dataset: datasets.Dataset) -> list[list[int]]:
    """Returns the number of images of each class in each split."""
    splits = (dataset.train, dataset.validation, dataset.test)
    return [np.bincount(split.labels, minlength=len(dataset.class_names)).tolist() for split in splits]


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A folder without splits: 15, 4 and 3 distinct pictures."""
    path = tmp_path_factory.mktemp("flat")
    draw_classes(path, {"B": 15, "a": 4, "c": 3})
    return path


@pytest.fixture(scope="module")
def of_flat(flat):
    return read(flat)


@pytest.fixture
def quick(monkeypatch):
    """Reduces the pictures instead of cutting their characters out: a split does not depend on how."""

    def reduced(path) -> np.ndarray:
        return np.asarray(Image.open(path).resize((28, 28)))

    monkeypatch.setattr(folder, "_prepare_one", reduced)


def test_its_own_splits_are_taken_as_they_are(tmp_path):
    draw_classes(tmp_path / "train", {"B": 3, "a": 2})
    draw_classes(tmp_path / "validation", {"B": 1}, first=10)
    draw_classes(tmp_path / "test", {"B": 1, "a": 2}, first=20)
    dataset = read(tmp_path)
    assert (dataset.class_names, dataset.synthetic) == (("B", "a"), False)
    assert counts(dataset) == [[3, 2], [1, 0], [1, 2]]
    expected = characters.image_of(tmp_path / "test/B/20.png", "emnist")
    np.testing.assert_array_equal(dataset.test.images[dataset.test.labels == 0], [expected])


def test_every_row_is_the_image_of_a_picture_of_its_class(flat, of_flat):
    expected = {(characters.image_of(path, "emnist").tobytes(), path.parent.name) for path in flat.glob("*/*.png")}
    splits = (of_flat.train, of_flat.validation, of_flat.test)
    rows = [
        (image.tobytes(), of_flat.class_names[label])
        for s in splits
        for image, label in zip(s.images, s.labels, strict=True)
    ]
    assert len(rows) == len(expected) == 22 and set(rows) == expected


def test_a_tenth_of_each_class_is_for_test_and_one_for_validation(of_flat):
    assert of_flat.class_names == ("B", "a", "c")
    assert counts(of_flat) == [[11, 2, 1], [2, 1, 1], [2, 1, 1]]


def test_classes_too_small_for_three_splits_are_trained_on_first(tmp_path, quick):
    draw_classes(tmp_path, {"a": 1, "b": 2, "c": 3})
    assert counts(read(tmp_path)) == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_only_what_is_missing_is_cut_from_train(tmp_path, quick):
    draw_classes(tmp_path / "train", {"a": 10, "b": 10})
    draw_classes(tmp_path / "test", {"a": 1, "b": 2}, first=20)
    assert counts(read(tmp_path)) == [[9, 9], [1, 1], [1, 2]]
    shutil.move(tmp_path / "test", tmp_path / "validation")
    assert counts(read(tmp_path)) == [[9, 9], [1, 2], [1, 1]]


def test_the_images_and_the_seed_alone_decide_the_split(flat, tmp_path, quick):
    of_flat = read(flat)
    for number, path in enumerate(sorted(flat.glob("*/*.png"), reverse=True)):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name / f"{number:03}.png")
    renamed = read(tmp_path)
    assert renamed.sha256 == of_flat.sha256  # the order, too
    assert digests(read(flat, seed=1).test) != digests(of_flat.test)


def test_the_order_in_which_the_file_system_lists_decides_nothing(flat, quick, monkeypatch):
    of_flat, listdir = read(flat), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    again = read(flat)
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(again, name).images, getattr(of_flat, name).images)
        np.testing.assert_array_equal(getattr(again, name).labels, getattr(of_flat, name).labels)


def test_copies_of_a_picture_stay_together(tmp_path, caplog, quick):
    draw_classes(tmp_path, {"a": 4, "b": 4})
    for path in sorted(tmp_path.glob("*/*.png")):
        for copy in range(3):
            shutil.copy(path, path.with_name(f"{path.stem}_copy{copy}.png"))
    draw(tmp_path / os.fsdecode(b"b/\xe9.png"), "a", 0)  # as in class a; the name is no UTF-8
    for seed in range(2):
        dataset = read(tmp_path, seed=seed)
        found = [digests(split) for split in (dataset.train, dataset.validation, dataset.test)]
        assert [len(of_split) for of_split in found] == [4, 2, 2]
        assert len(set.union(*found)) == 8
    assert f"images in more than one class: 1, e.g. {tmp_path}/a/0.png and {tmp_path}/b/\\xe9.png" in caplog.text


def test_images_of_a_later_split_are_left_out_of_the_earlier(tmp_path, caplog, quick):
    draw_classes(tmp_path / "train", {"a": 6, "b": 6})
    draw_classes(tmp_path / "validation", {"a": 2, "b": 2}, first=4)
    draw_classes(tmp_path / "test", {"a": 2}, first=5)
    dataset = read(tmp_path)
    assert counts(dataset) == [[4, 4], [1, 2], [2, 0]]
    assert "has the same image: 5" in caplog.text
    shutil.rmtree(tmp_path / "validation")
    for seed in range(5):  # validation is cut from what is left: 5 and 6 images
        assert counts(read(tmp_path, seed=seed)) == [[4, 5], [1, 1], [2, 0]]
    shutil.rmtree(tmp_path / "train/a")
    draw_classes(tmp_path / "train", {"a": 1}, first=5)
    with pytest.raises(UserError, match="all training images of class 'a'"):
        read(tmp_path)


def test_all_images_train_if_nothing_validates(flat, quick):
    assert counts(read(flat, validation_examples=0)) == [[13, 3, 2], [0, 0, 0], [2, 1, 1]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "100"], ("9", "10", "100")),
        (["10", "9", "01", "1"], ("01", "1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["b", "B", "a", "A"], ("A", "B", "a", "b")),
        (["two words", "あ", "e\u0301", "$x$"], ("$x$", "two words", "é", "あ")),
    ],
)
def test_classes_are_named_after_their_folders(tmp_path, names, expected):
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
    assert datasets.class_names(dataset_config(name="folder", data_dir=str(tmp_path))) == expected


def test_a_class_may_be_written_differently_in_unicode_in_another_split(tmp_path):
    draw_classes(tmp_path / "train", {"e\u0301": 3, "a": 3})
    draw_classes(tmp_path / "test", {"\u00e9": 1}, first=10)
    assert counts(read(tmp_path))[2] == [0, 1]


def test_what_systems_leave_in_folders_is_passed_over(tmp_path, quick, caplog):
    draw_classes(tmp_path, {"a": 3, "b": 3})
    for name in (".DS_Store", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "b/._1.png", "README.txt"):
        (tmp_path / name).write_text("no picture")
    for name in (".git", "__MACOSX", "a/.ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    assert np.sum(counts(read(tmp_path))) == 6
    assert "files beside the folders of classes are passed over: 1" in caplog.text  # README.txt


def test_a_file_whose_name_is_no_text_is_named(tmp_path):
    draw_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / os.fsdecode(b"b/\xe9.png")).write_text("no picture")
    with pytest.raises(UserError, match=r"b/\\xe9.png: no picture"):
        read(tmp_path)


def test_links_are_followed(tmp_path, quick):
    draw_classes(tmp_path / "elsewhere", {"a": 4, "b": 4})
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere/a")
    (tmp_path / "set/b").mkdir()
    for path in (tmp_path / "elsewhere/b").iterdir():
        (tmp_path / "set/b" / path.name).symlink_to(path)
    assert np.sum(counts(read(tmp_path / "set"))) == 8


def one_class(root):
    shutil.rmtree(root / "train/b")


def no_class(root):
    one_class(root)
    shutil.rmtree(root / "train/a")


def no_train(root):
    (root / "train").rename(root / "validation")


def unknown_split(root):
    (root / "test").rename(root / "val")


def class_of_test_alone(root):
    draw(root / "test/c/1.png")


def empty_class(root):
    (root / "train/c").mkdir()


def empty_test(root):
    shutil.rmtree(root / "test")
    (root / "test/a").mkdir(parents=True)


def no_picture(root):
    (root / "train/a/notes.txt").write_text("mine")
    (root / "train/b/cut.png").write_bytes((root / "train/b/1.png").read_bytes()[:200])


def no_ink(root):
    Image.new("L", (50, 50), 255).save(root / "train/b/blank.png")


def no_file(root):
    os.mkfifo(root / "train/a/pipe")


def deeper_folder(root):
    (root / "train/b/loop").symlink_to(root)


def link_to_itself(root):
    (root / "train/b/loop.png").symlink_to("loop.png")


def same_name_twice(root):
    for name in ("\u00e9", "e\u0301"):
        draw(root / "train" / name / "1.png")


def line_break(root):
    draw(root / "train/x\ny/1.png")


def no_utf8(root):
    os.mkdir(os.fsencode(root / "train") + b"/\xff")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_class, "holds 1 folders of classes, not 2 to 10,000; the pictures of a class stand in DIR/train/CLASS"),
        (no_class, "holds 0 folders of classes"),
        (no_train, "has a folder 'validation', but none named 'train'"),
        (unknown_split, "holds 'val' beside 'train': rename it (train, validation, test)"),
        (class_of_test_alone, "test has the class 'c', which "),
        (empty_class, "train/c holds no pictures"),
        (empty_test, "holds no test pictures"),
        (
            no_picture,
            "train/a/notes.txt: no picture in a known format, such as PNG or JPEG (2 of 10 files are wrong: mend",
        ),
        (no_ink, "train/b/blank.png: no character was found"),
        (no_file, "train/a/pipe: it is no file (1 of 9 files are wrong"),
        (deeper_folder, "train/b/loop: it is no file"),
        (link_to_itself, "train/b/loop.png: it is no file"),
        (same_name_twice, "has two folders 'é', written differently"),
        (line_break, "the folder 'x\\ny' in"),
        (no_utf8, "the folder '\\udcff' in"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path, spoil, message):
    draw_classes(tmp_path / "train", {"a": 3, "b": 3})
    draw_classes(tmp_path / "test", {"a": 1, "b": 1}, first=10)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert message in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": None}, "folder needs --config.dataset.data_dir=DIR"),
        ({"data_dir": "/nowhere/set"}, "cannot read the folder /nowhere/set: No such file"),
        ({"data_dir": __file__}, "cannot read the folder .*: Not a directory"),
        ({"train_per_class": 5}, "folder has a fixed size"),
        ({"validation_examples": 5}, "validation_examples=5 is not for folder"),
    ],
)
def test_settings_that_do_not_go_with_a_folder(flat, changes, message):
    with pytest.raises(UserError, match=message):
        datasets.load(dataset_config(**{"name": "folder", "data_dir": str(flat), **changes}))


def test_several_processes_prepare_what_one_does(flat, of_flat, monkeypatch):
    monkeypatch.setattr(folder, "_number_of_processes", lambda pictures: 2)
    np.testing.assert_array_equal(read(flat).train.images, of_flat.train.images)


def test_audit_counts_the_images_of_a_folder(tmp_path, quick):
    draw_classes(tmp_path / "train", {"a": 9, "b": 10})
    shutil.copy(tmp_path / "train/a/1.png", tmp_path / "train/a/copy.png")
    draw_classes(tmp_path / "test", {"a": 2, "b": 2}, first=20)
    train, test = audit.read(["folder:train", "folder:test"], str(tmp_path), 0)
    assert audit.audit([train, test]).within == (
        audit.Within("folder:train", 20, 19, 2, 0),
        audit.Within("folder:test", 4, 4, 0, 0),
    )
    with pytest.raises(UserError, match="^folder needs --data_dir=DIR"):
        audit.read(["folder:train"])


def test_summary_knows_the_classes_of_a_folder(flat, capsys):
    summary.describe(folder_config(flat))
    assert "head" in capsys.readouterr().out


@pytest.fixture(scope="module")
def matrix():
    """The confusion matrix of 3,000 classes; conftest.py keeps tests from drawing, but not what they share."""
    return figures.confusion_figure(np.eye(3000, dtype=int), tuple(map(str, range(3000))), "many")


def test_the_confusion_matrix_of_thousands_of_classes_is_no_larger(matrix):
    assert matrix.get_size_inches().max() < 20


def folder_config(data_dir, **changes):
    """Returns the config of a run of an epoch or two on a folder."""
    return make_config(
        **{
            "dataset.name": "folder",
            "dataset.data_dir": str(data_dir),
            "dataset.train_per_class": None,
            "dataset.test_per_class": None,
            "training.steps": 2,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory, built_once):
    """A run on a folder of two classes, with pictures for TensorBoard: its folder, its workdir and its result."""
    data_dir, workdir = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("run")
    # Neither is to be drawn as a formula, or to warn that matplotlib's font lacks it.
    draw_classes(data_dir, {"あ": 15, "$\\x$": 15})
    return data_dir, workdir, loop.train_and_evaluate(folder_config(data_dir), workdir)


def test_a_run_on_two_classes(finished_folder):
    _, workdir, result = finished_folder
    assert (result["dataset"], result["synthetic"], result["leaked"]) == ("folder", False, False)
    assert result["config"]["dataset"]["data_dir"] is None, "another folder is no other experiment"
    assert result["class_names"] == ["$\\x$", "あ"]
    assert (result["test"]["examples"], result["validation"]["examples"], result["test"]["top5"]) == (4, 4, 1)


def test_a_run_is_loaded_when_its_folder_is_gone_and_predicts_as_it_tested(finished_folder, tmp_path):
    data_dir, workdir, result = finished_folder
    test, moved = read(data_dir).test, tmp_path / "moved"
    shutil.copytree(data_dir, moved)
    data_dir.rename(tmp_path / "gone")
    try:
        classifier = load(workdir)
        classifier.save(tmp_path / "saved.safetensors")
        paths = sorted(moved.glob("*/*.png"))
        predictions = classifier.predict([str(path) for path in paths])
        assert set(predictions.class_names) <= {"$\\x$", "あ"}
        prepared = {characters.image_of(path, "emnist").tobytes(): row for row, path in enumerate(paths)}
        rows = [prepared[image.tobytes()] for image in test.images]
        assert np.mean(predictions.labels[rows] == test.labels) == result["test"]["top1"]
        assert load(tmp_path / "saved.safetensors").class_names == ("$\\x$", "あ")
    finally:
        (tmp_path / "gone").rename(data_dir)


def test_a_run_goes_on_with_the_same_images_alone_wherever_they_are(finished_folder, tmp_path):
    data_dir, workdir, result = finished_folder
    config, again = folder_config(tmp_path / "set"), tmp_path / "run"
    shutil.copytree(data_dir, tmp_path / "set")
    shutil.copytree(workdir, again)
    assert loop.train_and_evaluate(config, again) == json.loads((workdir / "result.json").read_text())
    draw(tmp_path / "set/あ/new.png", "A", 50)
    for _ in ("finished", "stopped"):
        with pytest.raises(UserError, match="was trained on other images than those that folder holds now"):
            loop.train_and_evaluate(config, again)
        (again / "result.json").unlink(missing_ok=True)
    draw_classes(tmp_path / "set", {"new": 3})
    with pytest.raises(UserError, match="no checkpoint .* can be read; delete the workdir to start over"):
        loop.train_and_evaluate(config, again)


def test_a_head_is_taken_over_from_the_same_classes_alone(finished_folder, flat, tmp_path):
    data_dir, workdir, result = finished_folder
    theirs = load(workdir).variables
    zeros = jax.tree.map(np.zeros_like, theirs)
    same, _ = weights.initial_weights(str(workdir), zeros["params"], zeros["batch_stats"], result["class_names"])
    assert jax.tree.all(jax.tree.map(np.array_equal, same, theirs["params"]))

    shutil.copytree(data_dir, tmp_path / "set")
    (tmp_path / "set/あ").rename(tmp_path / "set/い")
    renamed = run.build(folder_config(tmp_path / "set", init_from=str(workdir)))
    equal = jax.tree.map(np.array_equal, jax.device_get(renamed.initial_state().params), theirs["params"])
    assert not equal.pop("head")["kernel"]
    assert jax.tree.all(equal)
    assert renamed.leaked() is False  # the images are the same
    # Nobody knows whether the images of another folder were trained on.
    assert weights.leaked(folder_config(flat, init_from=str(workdir)), "another") is None
