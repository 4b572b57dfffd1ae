"""A report on a network says what was measured, of which images, and holds all that it shows."""

import dataclasses
import html.parser
import json
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from emnist_jax import datasets, evaluate
from emnist_jax.config import base
from emnist_jax.datasets import Split
from emnist_jax.errors import UserError
from emnist_jax.inference.classifier import load
from emnist_jax.inference.corruptions import CORRUPTIONS, shifted
from emnist_jax.inference.examination import examine
from emnist_jax.reporting import comparison_report, examination_report, figures
from processes import ROOT, run

DRAW = figures.confusion_figure
SYNTHETIC = {"name": "synthetic/digits", "train_per_class": 15, "test_per_class": 3}


@pytest.fixture(scope="module")
def dataset():
    config = base().dataset
    config.update(SYNTHETIC)
    return datasets.load(config)


@pytest.fixture(scope="module")
def network(dataset, folder):
    """A file of mnist_squeeze_10 that says that it was trained on 30 rendered test images and their like."""
    trained = load("mnist_squeeze_10")
    result = json.loads(json.dumps(trained.result))
    result["config"]["dataset"] |= SYNTHETIC
    result |= {"dataset": dataset.name, "dataset_sha256": dataset.sha256, "synthetic": True}
    path = folder / "small.safetensors"
    dataclasses.replace(trained, result=result).save(path)
    return path


@pytest.fixture(scope="module")
def classifier(network):
    return load(network)


@pytest.fixture(scope="module")
def examination(classifier, dataset):
    return examine(classifier, dataset, "test")


@pytest.fixture(autouse=True)
def with_pictures(no_pictures, monkeypatch):
    monkeypatch.setattr(figures, "confusion_figure", DRAW)


def command(*runs: str, **values) -> None:
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values):
        evaluate.main(*runs)


# What is measured.


def test_the_validation_images_are_measured_if_they_are_named(classifier, dataset):
    images, labels = dataset.validation.images, dataset.validation.labels
    examination = examine(classifier, dataset, "validation")
    assert examination.accuracy.correct == (classifier.classify(images).labels == labels).sum()
    assert (examination.accuracy.images, examination.fitted_on) == (30, 30)
    assert (examination.uncorrupted_example == images).all((1, 2)).any()


def test_the_figures_are_those_of_the_predictions(examination, classifier, dataset):
    predictions, labels = classifier.classify(dataset.test.images), dataset.test.labels
    correct = predictions.labels == labels
    assert 0 < correct.sum() < len(labels)
    assert (examination.accuracy.correct, examination.accuracy.images) == (correct.sum(), 30)
    assert np.trace(examination.confusions) == correct.sum() and np.sum(examination.confusions) == 30
    assert [score.images for score in examination.classes] == [3] * 10
    mistakes = examination.mistakes
    assert sorted(mistake.row for mistake in mistakes) == np.flatnonzero(~correct).tolist()
    assert [m.confidence for m in mistakes] == sorted((m.confidence for m in mistakes), reverse=True)
    for mistake in mistakes:
        assert mistake.true == str(labels[mistake.row]) != mistake.predicted == predictions.class_names[mistake.row]
        np.testing.assert_array_equal(mistake.image, dataset.test.images[mistake.row])


def test_each_corruption_is_measured_on_the_images_that_it_changes(examination, classifier, dataset):
    assert examination.uncorrupted == examination.accuracy  # there are fewer images than would be drawn
    assert [(c.name, c.amount) for c in examination.corrupted] == [(c.name, c.amount) for c in CORRUPTIONS]
    for corruption, found in zip(CORRUPTIONS[::5], examination.corrupted[::5], strict=True):
        predicted = classifier.classify(corruption(dataset.test.images)).labels
        assert found.accuracy.correct == (predicted == dataset.test.labels).sum()


def test_test_time_augmentation_is_over_five_images(examination, classifier, dataset):
    images = dataset.test.images
    of_all = [classifier.classify(shifted(images, *by)) for by in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    averaged = sum(of_one.probabilities for of_one in of_all).argmax(-1) == dataset.test.labels
    without = of_all[0].labels == dataset.test.labels
    found = examination.test_time_augmentation
    assert found.accuracy.correct == averaged.sum()
    assert (found.mended, found.spoilt) == ((averaged & ~without).sum(), (without & ~averaged).sum())


def without_heavy_parts(monkeypatch):
    monkeypatch.setattr("emnist_jax.inference.corruptions.CORRUPTIONS", ())
    monkeypatch.setattr("emnist_jax.inference.corruptions.NEIGHBOURS", ())


def test_test_images_do_not_move_the_temperature(examination, classifier, dataset, monkeypatch):
    without_heavy_parts(monkeypatch)
    halved = dataclasses.replace(dataset, test=Split(dataset.test.images[:15], dataset.test.labels[::-1][:15]))
    other = examine(classifier, halved, "test")
    assert other.temperature == examination.temperature and other.fitted_on == 30
    assert other.calibration != examination.calibration
    fewer = dataclasses.replace(dataset, validation=Split(dataset.validation.images[:9], dataset.validation.labels[:9]))
    assert examine(classifier, fewer, "test").temperature != examination.temperature


def test_without_validation_images_there_is_no_temperature(classifier, dataset, monkeypatch, tmp_path):
    without_heavy_parts(monkeypatch)
    none = dataclasses.replace(dataset, validation=Split(dataset.validation.images[:0], dataset.validation.labels[:0]))
    found = examine(classifier, none, "test")
    assert (found.temperature, found.calibration_at_temperature, found.fitted_on) == (None, None, 0)
    assert found.calibration.expected_error > 0
    subject = examination_report.subject("small", classifier, none, "test")
    examination_report.write(tmp_path / "page.html", subject, found)
    assert "There is no temperature: it is fitted on validation images" in (tmp_path / "page.html").read_text()


def test_corrupted_images_are_drawn_if_there_are_many(classifier, dataset, monkeypatch):
    without_heavy_parts(monkeypatch)
    monkeypatch.setattr("emnist_jax.inference.examination.MOST_CORRUPTED", 20)
    found = examine(classifier, dataset, "test")
    assert (found.uncorrupted.images, found.accuracy.images) == (20, 30)
    assert examine(classifier, dataset, "test").uncorrupted == found.uncorrupted


# What is said of it.


BYMERGE_FOR_BALANCED = {"trained_on": "emnist/bymerge", "dataset": "emnist/balanced", "target": "emnist/balanced"}


def subject(trained_on, dataset, same=True, split="test", **changes) -> examination_report.Subject:
    result = {"model": "m", "commit": "c", "synthetic": False, "dataset_sha256": "a", "leaked": False}
    config = base()
    config.dataset.name, config.transfer.target = trained_on, changes.pop("target", None)
    config.init_from = changes.pop("init_from", None)
    fake = types.SimpleNamespace(result=result | changes, config=config, variables={"params": np.zeros(3)})
    synthetic = dataset.startswith("synthetic/")
    data = types.SimpleNamespace(name=dataset, sha256="a" if same else "b", synthetic=synthetic)
    return examination_report.subject("n", fake, data, split)


@pytest.mark.parametrize(
    ("arguments", "leaked"),
    [
        ({"trained_on": "mnist", "dataset": "mnist"}, False),
        ({"trained_on": "mnist", "dataset": "mnist", "leaked": True}, True),
        ({"trained_on": "mnist", "dataset": "mnist", "leaked": None}, None),
        ({"trained_on": "mnist", "dataset": "mnist", "same": False}, None),
        ({"trained_on": "emnist/bymerge", "dataset": "emnist/balanced"}, None),
        ({**BYMERGE_FOR_BALANCED, "target_sha256": "a"}, False),
        ({**BYMERGE_FOR_BALANCED, "target_sha256": "a", "leaked": True}, True),
        ({**BYMERGE_FOR_BALANCED, "target_sha256": "b"}, None),
        (BYMERGE_FOR_BALANCED, None),  # an earlier version's
        ({"trained_on": "synthetic/digits", "dataset": "mnist", "synthetic": True}, False),
        ({"trained_on": "synthetic/digits", "dataset": "mnist", "synthetic": True, "init_from": "runs/a"}, None),
    ],
)
def test_what_leaked_is_not_taken_for_granted(arguments, leaked):
    assert subject(**arguments).leaked is leaked


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("emnist_pool", "emnist_pool"), "An accuracy on it is none on EMNIST Balanced."),
        (("synthetic/digits", "synthetic/digits"), "An accuracy on them is not a result."),
        (("mnist", "mnist", False), "These are not the images that the network's record names"),
        (("mnist", "mnist"), "Choose nothing by the test images"),
        (("mnist", "mnist", True, "validation"), "Training may have chosen its epoch by the validation images"),
    ],
)
def test_the_page_says_first_what_to_know(arguments, text):
    assert any(text in note for note in examination_report._notes(subject(*arguments)))
    assert len(examination_report._notes(subject("mnist", "mnist"))) == 1


def test_a_row_of_the_confusion_matrix_is_a_true_class():
    axes = DRAW(np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]]), ("a", "b", "c"), "").axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")


def test_the_pages_confusions_are_those_that_were_counted(examination):
    axes = examination_report._confusions(examination).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), np.array(examination.confusions) / 3)
    written = {(text.get_position(), int(text.get_text())) for text in axes.texts}
    assert written == {((j, i), n) for (i, j), n in np.ndenumerate(examination.confusions) if n}


def test_calibration_is_drawn_as_accuracy_over_confidence(examination):
    above, below = examination_report._reliability(examination).axes
    bins = [b for b in examination.calibration.bins if b.images]
    assert above.lines[1].get_xydata().tolist() == [[b.confidence, b.accuracy] for b in bins]
    heights = {round(bar.get_x(), 6): bar.get_height() for bar in below.patches}
    assert heights == {round(b.low, 6): b.images for b in examination.calibration.bins}


def test_corruptions_are_drawn_as_they_were_measured(examination):
    axes = examination_report._corruptions(examination).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    drawn = {names[int(y)]: x for x, y in (line.get_xydata()[0] for line in axes.lines[1:])}
    assert drawn == {c.title: 100 * c.accuracy.fraction for c in examination.corrupted}


def test_compared_curves_and_costs_are_those_of_the_runs(tmp_path):
    folders = [write_run(tmp_path / "a", 0.75), write_run(tmp_path / "b", 0.5, False)]
    runs = comparison_report.read(list(map(str, folders)), "test")
    figure = comparison_report._curves(runs)
    error, loss = figure.axes
    assert [line.get_ydata().tolist() for line in error.lines] == [[25.0], []]
    assert [line.get_ydata().tolist() for line in loss.lines] == [[1.0], [1.0], [], [1.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1: a", "2: b"]
    axes = comparison_report._scatter(runs, lambda result: result["trainable_parameters"], "", "test").axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[7, 75]], [[7, 50]]]


def test_how_to_find_out_what_leaked():
    facts = [dict(examination_report._facts(subject("mnist", name)))["leaked"] for name in ("emnist/mnist", "kmnist")]
    assert all(fact.startswith("not known: the same character") for fact in facts)
    facts = dict(examination_report._facts(subject("emnist/bymerge", "emnist/balanced")))
    assert "python -m emnist_jax.audit emnist/bymerge:train emnist/balanced:test" in facts["leaked"]
    facts = dict(examination_report._facts(subject("emnist_pool", "emnist_pool")))
    assert facts["data set"] == "the EMNIST pool, test split" and facts["leaked"].startswith("no")


# The page.


class Page(html.parser.HTMLParser):
    """Collects a page's tags, and what it refers to."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.ids, self.references = [], set(), []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.ids.add(values.get("id"))
        self.references += [values[name] for name in ("src", "href", "xlink:href") if name in values]


def check_page(path: Path, figures: int) -> Page:
    page = Page(path)
    assert "script" not in page.tags and "link" not in page.tags and "url(http" not in page.text
    for reference in page.references:
        assert reference.startswith("data:image/png;base64,") or reference.removeprefix("#") in page.ids, reference[:99]
    drawn = re.findall(r"<svg .*?</svg>", page.text, re.S)
    assert len(drawn) == figures
    for svg in drawn:
        ElementTree.fromstring(svg)
        assert "currentColor" in svg and "#010203" not in svg
    return page


@pytest.mark.ci
def test_the_command_writes_a_page_and_its_numbers(network, tmp_path, examination):
    done = run("evaluate", f"--model={network}", f"--out={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "small on synthetic/digits (synthetic images: not a result)" in done.stdout
    assert f"{100 * examination.accuracy.fraction:.2f} % of 30 images" in done.stdout
    assert done.stdout.endswith(f"{tmp_path}/evaluation.html\n")
    page = check_page(tmp_path / "evaluation.html", figures=3)
    assert page.tags.count("img") == len(examination.mistakes) + 1 + len(CORRUPTIONS)
    assert "An accuracy on them is not a result." in page.text and "30 validation images" in page.text

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    numbers = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=no_constant)
    assert numbers["accuracy"] == pytest.approx(dataclasses.asdict(examination.accuracy))
    assert (numbers["dataset"], numbers["synthetic"], numbers["same_images"]) == ("synthetic/digits", True, True)
    counts = [[0] * 10 for _ in range(10)]
    for cell in numbers["confusions"]:
        counts[int(cell["class"])][int(cell["read_as"])] += cell["images"]
    assert counts == examination.confusions.tolist()
    assert len(numbers["corrupted"]) == len(CORRUPTIONS) and numbers["parameters"] == 6022


def test_a_page_of_names_that_look_like_html(examination, tmp_path):
    names = ["<b>", "&amp;", *"cdefghij"]
    classes = tuple(
        dataclasses.replace(score, name=name) for score, name in zip(examination.classes, names, strict=True)
    )
    strange = dataclasses.replace(examination, classes=classes)
    examination_report.write(tmp_path / "page.html", subject("mnist", "mnist"), strange)
    page = check_page(tmp_path / "page.html", figures=3)
    assert "b" not in page.tags and "<td>&lt;b&gt;</td>" in page.text and "<td>&amp;amp;</td>" in page.text


# Runs side by side.


def write_run(folder: Path, top1: float = 0.5, validation: bool = True, **config) -> Path:
    """Writes what is needed of the result of a run, and returns its folder."""
    measured = {"loss": 1.0, "top1": top1, "top5": 1.0, "examples": 40}
    changed = base()
    changed.update_from_flattened_dict(config)
    epoch = {"epoch": 1.0, "train": {"loss": 1.0}} | ({"validation": measured} if validation else {})
    result = {
        **{"model": "m", "dataset": "mnist", "dataset_sha256": "a", "synthetic": False, "trainable_parameters": 7},
        **{"epochs": 1.0, "train_seconds": 60.0, "device": "CPU", "commit": "c", "config": changed.to_dict()},
        **{"history": [epoch], "test": measured, "validation": measured if validation else None},
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_runs_of_any_name_without_validation_are_drawn(tmp_path):
    for name in ("あ", r"$\x$"):
        write_run(tmp_path / name, 0.5, False)
    command(*(str(tmp_path / name) for name in ("あ", r"$\x$")), out=str(tmp_path / "out"), split="test")
    assert "あ" in check_page(tmp_path / "out/evaluation.html", figures=3).text


def test_runs_side_by_side(tmp_path, capsys):
    one = write_run(tmp_path / "runs/one/seed0", 0.75)
    other = write_run(tmp_path / "runs/two/seed1", 0.5, False, **{"seed": 1, "optimizer.learning_rate": 0.5})
    command(str(one), str(other / "result.json"), out=str(tmp_path / "out"))
    numbers = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert numbers["differences"] == {"optimizer.learning_rate": [0.001, 0.5], "seed": [0, 1]}
    assert [run["name"] for run in numbers["runs"]] == ["one/seed0", "two/seed1"]
    assert [run["accuracy"]["correct"] for run in numbers["runs"]] == [30, 20]
    page = check_page(tmp_path / "out/evaluation.html", figures=3)
    assert "75.00 %" in page.text and "optimizer.learning_rate" in page.text
    printed = capsys.readouterr().out
    assert "one/seed0" in printed and "50.00 %" in printed

    command(str(one), str(other), out=str(tmp_path / "out"), split="validation")
    numbers = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [run["accuracy"] and run["accuracy"]["correct"] for run in numbers["runs"]] == [30, None]


def test_runs_without_an_accuracy_of_the_split_are_not_compared(tmp_path):
    paths = [str(write_run(tmp_path / name, validation=False)) for name in ("one", "two")]
    with pytest.raises(UserError, match="none of these runs has measured its validation images: try --split=test"):
        comparison_report.read(paths, "validation")


def test_a_key_that_an_older_config_lacks_had_its_default(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    result = json.loads((other / "result.json").read_text())
    del result["config"]["training"]["ema_decay"]
    (other / "result.json").write_text(json.dumps(result))
    assert comparison_report.differences(comparison_report.read([str(one), str(other)], "test")) == {}


@pytest.mark.parametrize("changed", [{"synthetic": True}, {"leaked": None}, {"device": "GPU"}, {"dataset_sha256": "b"}])
def test_what_makes_a_comparison_doubtful_is_said(tmp_path, changed):
    paths = [str(write_run(tmp_path / name)) for name in ("one", "two")]
    before = comparison_report._notes(comparison_report.read(paths, "validation"), "validation")
    file = tmp_path / "two/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    after = comparison_report._notes(comparison_report.read(paths, "validation"), "validation")
    assert before == [] and len(after) == 1


def test_the_results_of_the_repository_can_be_compared():
    paths = sorted(str(path) for path in (ROOT / "results").glob("mnist_onecycle_rate_*/*.json"))
    runs = comparison_report.read(paths, "test")
    assert len(runs) == len(paths) > 1
    assert comparison_report.differences(runs).keys() == {"optimizer.learning_rate", "seed"}


# What is wrong.


def wrong(message: str, *runs: str, **values) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        command(*runs, **values)
    assert "\n" not in str(caught.value)


def test_a_data_set_must_have_the_networks_classes(tmp_path):
    wrong("kmnist has other classes (o ki su", model="mnist_squeeze_10", dataset="kmnist", out=str(tmp_path))
    wrong("unknown data set 'mnst'; did you mean 'mnist'?", model="mnist_squeeze_10", dataset="mnst")


def test_what_cannot_be_read_or_written_is_said_before_anything_takes_long(network, tmp_path):
    out = str(tmp_path / "out")
    wrong("unknown network 'mnist_squeze_10'", model="mnist_squeze_10")
    wrong("--data_dir=/nowhere is no folder", model="mnist_squeeze_10", dataset="mnist", data_dir="/nowhere", out=out)
    (tmp_path / "file").write_text("")
    wrong(f"cannot write --out={tmp_path}/file: ", model=str(network), out=str(tmp_path / "file"))


def test_a_split_without_images(network, tmp_path):
    bare = load(network)
    result = json.loads(json.dumps(bare.result))
    result["config"]["dataset"]["validation_examples"] = 0
    dataclasses.replace(bare, result=result).save(tmp_path / "bare.safetensors")
    wrong(
        "synthetic/digits has no validation images",
        model=str(tmp_path / "bare.safetensors"),
        split="validation",
        out=str(tmp_path),
    )


def test_wrong_runs(tmp_path):
    one = write_run(tmp_path / "one")
    wrong("name two runs or more, or --workdir=runs/a for this one alone", "runs/a")
    wrong("leave out --dataset: runs side by side", "a", "b", dataset="mnist")
    wrong(f"{tmp_path} is no finished run: cannot read {tmp_path}/result.json", str(one), str(tmp_path))
    (tmp_path / "result.json").write_text("{}")
    wrong("cannot be compared: it has no model, dataset", str(one), str(tmp_path))
    (tmp_path / "result.json").write_text("[")
    wrong("is no result of a run: JSONDecodeError", str(one), str(tmp_path))


@pytest.mark.parametrize("package", ["sklearn", "jinja2"])
def test_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    wrong(f"evaluate needs {package}: pip install -e '.[evaluate]'")
