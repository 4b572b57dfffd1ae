"""A trained network from Python and from the command line: its answers, and its words for what is no picture."""

import hashlib
import json
import re

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image, ImageOps

import emnist_jax
from emnist_jax import predict
from emnist_jax.datasets import official
from emnist_jax.errors import UserError
from emnist_jax.inference import classifier
from processes import ROOT, run
from shared import REAL_DATA, needs_real_data
from test_pictures import drawing

MODEL = "mnist_squeeze_10"


@pytest.fixture(scope="module")
def network():
    return emnist_jax.load(MODEL)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2, 33, 40])
def test_any_number_of_images_gives_the_logits_of_each(network, images, count):
    expected = [network.logits(image[None])[0] for image in images[:count]]
    logits = network.logits(images[:count])
    assert logits.shape == (count, 10)
    if count:
        np.testing.assert_allclose(logits, expected, 1e-4, 1e-4)


def test_predictions_name_the_most_probable_classes(network, images):
    predictions = network.classify(images)
    np.testing.assert_allclose(predictions.probabilities.sum(-1), 1, 1e-5)
    np.testing.assert_array_equal(predictions.labels, network.logits(images).argmax(-1))
    for label, name, top in zip(predictions.labels, predictions.class_names, predictions.top(3), strict=True):
        assert network.class_names[label] == name == top[0][0]
        assert [probability for _, probability in top] == sorted((p for _, p in top), reverse=True)


def test_predict_takes_arrays_pictures_and_paths(network, images, tmp_path):
    np.testing.assert_array_equal(network.predict(images).labels, network.classify(images).labels)
    np.testing.assert_array_equal(network.predict(images[0]).labels, network.classify(images[:1]).labels)
    picture = drawing()
    picture.save(tmp_path / "3.png")
    sent = [picture, str(tmp_path / "3.png"), tmp_path / "3.png", np.asarray(picture)]
    assert len(set(map(tuple, network.predict(sent).probabilities.tolist()))) == 1
    assert network.predict(tmp_path / "3.png").labels.shape == (1,)
    with pytest.raises(UserError, match=r"nothing\.png: there is no such file"):
        network.predict([picture, "nothing.png"])
    assert network.predict(jax.numpy.asarray(images)[..., None]).labels.shape == (40,)
    for wrong in (images.astype(np.float32), images[:, :20, :20]):
        with pytest.raises(UserError, match="must be uint8"):
            network.classify(wrong)
    with pytest.raises(UserError, match="unknown weights"):
        network.save(tmp_path / "x", weights="int4")


def test_saliency_lies_where_the_answer_depends_on_the_image(network, images):
    label = 3
    image = images[0]
    saliency = network.saliency(image, label)
    assert saliency.shape == (28, 28) and saliency.max() == 1 and saliency.min() >= 0
    place = np.unravel_index(saliency.argmax(), saliency.shape)

    def change(place):
        brighter = image.copy()
        brighter[place] = np.clip(int(image[place]) + (20 if image[place] < 128 else -20), 0, 255)
        log = [jax.nn.log_softmax(network.logits(x[None])[0])[label] for x in (image, brighter)]
        return abs(float(log[1] - log[0]))

    weakest = np.unravel_index(saliency.argmin(), saliency.shape)
    assert change(place) > 5 * change(weakest)


def test_a_run_a_file_and_their_network_answer_alike(finished, tmp_path):
    workdir, result = finished
    of_run = emnist_jax.load(workdir)
    of_run.save(str(tmp_path / "network.safetensors"))
    of_file = emnist_jax.load(tmp_path / "network.safetensors")
    image = np.full((1, 28, 28), 9, np.uint8)
    np.testing.assert_array_equal(of_file.logits(image), of_run.logits(image))
    assert of_file.result["test"] == result["test"] and of_file.class_names == of_run.class_names


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: "mnist_squeze_10", "did you mean 'mnist_squeeze_10'"),
        (lambda folder: "~nobody_of_this_name/x", "there is no ~nobody_of_this_name/x"),
        (lambda folder: folder, "holds no finished run"),
        (lambda folder: folder / "other.safetensors", "--to=safetensors` did not write it"),
        (lambda folder: folder / "cut.safetensors", "cannot load the network"),
        (lambda folder: folder / "network.safetensors", "its weights are not those of Plain: params/head/kernel"),
    ],
)
def test_a_source_that_is_no_network_is_refused(make, message, tmp_path, network):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    variables = jax.tree.map(np.asarray, network.variables)
    variables["params"]["head"]["kernel"] = np.zeros((1, 1, 12, 11), np.float32)
    changed = classifier.Classifier(network.model, variables, network.config, network.class_names, network.result)
    changed.save(tmp_path / "network.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "network.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=message):
        emnist_jax.load(make(tmp_path))


def test_create_builds_any_network_with_settings():
    network = emnist_jax.create("densenet", num_classes=10, activation="swish")
    assert (network.num_classes, network.activation) == (10, "swish")
    for settings in (
        {"num_classes": 0},
        {"dropout": 0.5},
        {"dtype": "float16"},
        {"convolution": "x"},
        {"stem_stride": 7},
    ):
        with pytest.raises(UserError):
            emnist_jax.create("densenet", **{"num_classes": 10, **settings})
    for name, settings, message in (("densnet", {}, "densenet"), ("densenet", {"activatoin": "elu"}, "activation")):
        with pytest.raises(UserError, match=f"did you mean '{message}'"):
            emnist_jax.create(name, 10, **settings)


@pytest.mark.ci
def test_the_command_answers_all_that_it_can_read(tmp_path):
    drawing("3A").save(tmp_path / "line.png")
    (tmp_path / "text.png").write_text("a letter")
    ImageOps.invert(drawing()).save(tmp_path / "3.png")
    paths = [str(tmp_path / name) for name in ("line.png", "text.png", "3.png")]
    program = run("predict", f"--model={MODEL}", f"--show={tmp_path / 'cuts.png'}", *paths)
    assert program.returncode == 2
    assert program.stderr.splitlines() == [
        f"error: {paths[1]}: no picture in a known format, such as PNG or JPEG",
        "error: 1 of 3 pictures could not be read",
    ]
    assert re.search(r"line\.png: \d\d\n", program.stdout) and re.search(r"3\.png: \d\n", program.stdout)
    assert len(re.findall(r"│ (?:\d [\d.]+ % +│ ?){5}", program.stdout)) == 3
    with Image.open(tmp_path / "cuts.png") as cuts:
        assert cuts.width > 500
    program = run("predict", f"--model={MODEL}", "--json", "--single", *paths)
    assert program.returncode == 2
    line, text, three = json.loads(program.stdout)
    assert len(line["characters"]) == len(three["characters"]) == 1 and "no picture" in text["error"]
    assert three["text"] == three["characters"][0]["top5"][0]["class"]
    box = emnist_jax.load(MODEL).read(paths[2], single=True).characters[0].box
    assert three["characters"][0]["box"] == dict(zip(("top", "left", "bottom", "right"), box, strict=True))


def test_wrong_use_is_one_line():
    program = run("predict", "--model=mnist_squeeze_10", "--workdir=runs/a", "x.png")
    assert program.returncode == 2 and program.stdout == ""
    assert len(program.stderr.splitlines()) == 1 and "pass --model or --workdir, not both" in program.stderr


@pytest.mark.parametrize(
    "values, paths, message",
    [
        ({}, (), "name pictures"),
        ({"model": "mnist_squeeze"}, ("x.png",), "did you mean 'mnist_squeeze_10'"),
        ({"show": "cuts.xyz"}, ("x.png",), "--show=cuts.xyz must end in one of"),
        ({"show": "/nowhere/cuts.png"}, ("x.png",), "there is no folder /nowhere"),
        ({"show": "~/nowhere/cuts.png"}, ("x.png",), "there is no folder /.*/nowhere"),
        ({"show": "x.png"}, ("a.png", "./x.png"), "--show=x.png would overwrite a picture that is read"),
    ],
)
def test_wrong_use_is_refused(values, paths, message):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values), pytest.raises(UserError, match=message) as caught:
        predict.main(*paths)
    assert "\n" not in str(caught.value)


@needs_real_data
@pytest.mark.parametrize("name", classifier.trained_names())
def test_a_trained_network_is_as_accurate_as_its_card_says(name):
    network = emnist_jax.load(name)
    folder = {"mnist": "mnist", "emnist_pool": "emnist-pool"}[network.config.dataset.name]
    _, (images, labels) = official.read(network.config.dataset.name, str(REAL_DATA / folder))
    top1 = (network.classify(images).labels == labels).mean()
    assert top1 == pytest.approx(network.result["test"]["top1"], abs=1e-4)


@pytest.mark.ci
def test_the_examples_of_the_page_on_python_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.M | re.S):
        exec(block, names)
    text, *characters = capsys.readouterr().out.splitlines()
    assert text == "READ ME 42" and len(characters) == 8
    assert names["predictions"].class_names == list("README42") and names["logits"].shape == (5, 10)


@needs_real_data
def test_a_picture_costs_no_accuracy_if_it_is_as_mnists_images_are(network):
    _, (images, labels) = official.read("mnist", str(REAL_DATA / "mnist"))
    prepared = network.predict([Image.fromarray(image) for image in images[:300]]).labels
    as_they_are = network.classify(images[:300]).labels
    assert (prepared == labels[:300]).sum() >= (as_they_are == labels[:300]).sum() - 1


@pytest.mark.parametrize("name", classifier.trained_names())
def test_a_card_is_that_of_its_file(name):
    page = (ROOT / "docs/trained.md").read_text()
    card = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]
    result = emnist_jax.load(name).result
    file = classifier.TRAINED_FOLDER / f"{name}.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert f"{100 * result['test']['top1']:.2f} % of {result['test']['examples']:,} images" in card
    assert all(
        f"{text}" in card
        for text in (result["commit"], f"seed {result['seed']}", f"{result['trainable_parameters']:,}")
    )
    assert result["leaked"] is False and not result["synthetic"]
