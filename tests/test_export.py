"""Exported files: they answer as the network does, say what they are, and are left only if they were verified."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from absl import flags
from absl.testing import flagsaver
from jax import lax
from PIL import Image

from emnist_jax import datasets, export, models
from emnist_jax.config import base
from emnist_jax.datasets import official
from emnist_jax.errors import UserError
from emnist_jax.inference import compression, exported, onnx_graph
from emnist_jax.inference.classifier import load
from processes import ROOT, run
from shared import REAL_DATA, example_files, needs_real_data, write_files

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def classifier():
    return load("mnist_squeeze_10")


@pytest.fixture(scope="module")
def test_set():
    config = base().dataset
    config.update({"name": "synthetic/digits", "train_per_class": 5, "test_per_class": 3})
    test = datasets.load(config).test
    return exported.TestImages("30 rendered digits", test.images, test.labels)


@pytest.fixture(scope="module")
def written(classifier, test_set, folder):
    """Path and what was verified, by format and weights."""
    files = {}
    for to in exported.FORMATS:
        for weights in compression.WEIGHTS:
            path = folder / f"digits_{weights}.{to}"
            files[to, weights] = path, exported.write(classifier, path, to, weights, test_set)[0]
    return files


def rounded(classifier):
    variables = compression.restored(compression.stored(classifier.variables, "int8"))
    return dataclasses.replace(classifier, variables=variables)


def test_networks_and_their_files_multiply_in_float32_on_gpus_too(classifier):
    for function in (lambda x: classifier._forward(classifier.variables, x), exported.function(classifier)):
        program = str(jax.make_jaxpr(function)(np.zeros((1, 28, 28), np.uint8)))
        assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 9
        assert "precision=None" not in program


@pytest.mark.parametrize("to", exported.FORMATS)
@pytest.mark.parametrize("weights", compression.WEIGHTS)
def test_a_file_answers_as_the_network_whatever_the_size_of_the_batch(classifier, test_set, written, to, weights):
    path, verified = written[to, weights]
    network = rounded(classifier) if weights == "int8" else classifier
    wanted = network.logits(test_set.images)
    ask = exported.FORMATS[to][1](path)
    for size in (1, 3, 30):
        found = ask(test_set.images[:size])
        assert found.dtype == np.float32 and found.shape == (size, 10)
        np.testing.assert_allclose(found, wanted[:size], atol=1e-4)
    top1 = (wanted.argmax(-1) == test_set.labels).mean()
    assert (verified.images, verified.top1) == ("30 rendered digits", top1)
    assert verified.largest_logit_difference < 1e-4
    before = classifier.logits(test_set.images).argmax(-1)
    assert verified.unrounded_top1 == (before == test_set.labels).mean()
    assert verified.changed_by_rounding == (before != wanted.argmax(-1)).sum()


@pytest.mark.parametrize("to", exported.FORMATS)
def test_int8_makes_every_format_smaller(written, to):
    sizes = [written[to, weights][0].stat().st_size for weights in compression.WEIGHTS]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_description_stands_beside_every_file(written, classifier):
    for (to, weights), (path, verified) in written.items():
        description = json.loads((path.parent / f"{path.name}.json").read_text())
        assert (description["format"], description["weights"]) == (to, weights)
        assert description["class_names"] == list(classifier.class_names)
        assert (description["input"]["shape"], description["output"]["shape"]) == (["N", 28, 28], ["N", 10])
        assert description["verified"] == dataclasses.asdict(verified)
    assert len(list(path.parent.iterdir())) == 2 * len(written)  # nothing else is left


def test_the_stablehlo_file_is_for_all_platforms(written):
    program = jax.export.deserialize(bytearray(written["stablehlo", "float32"][0].read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")


def test_a_loaded_int8_file_can_be_exported_again(written, classifier, test_set, tmp_path):
    loaded = load(written["safetensors", "int8"][0])
    assert loaded.result["weights"] == "int8" and loaded.config == classifier.config
    verified, *_ = exported.write(loaded, tmp_path / "again.onnx", "onnx", "int8", test_set)
    assert verified.changed_by_rounding == 0


@pytest.mark.parametrize("fault, differing", [("another answer", 1), ("not finite", 0)])
def test_a_file_that_answers_otherwise_is_not_left(monkeypatch, classifier, test_set, tmp_path, fault, differing):
    write, open_file = exported.FORMATS["safetensors"]

    def open_wrong(path):
        ask = open_file(path)

        def wrong(images):
            logits = ask(images)
            if fault == "another answer":
                logits[7] = -logits[7]
            else:
                logits[7, logits[7].argmax()] = np.nan  # still the one that argmax finds
            return logits

        return wrong

    monkeypatch.setitem(exported.FORMATS, "safetensors", (write, open_wrong))
    path = tmp_path / "digits.safetensors"
    path.write_text("of before")
    with pytest.raises(UserError, match=f"the file is not what it was made of: on {differing} of 30 rendered digits"):
        exported.write(classifier, path, "safetensors", "float32", test_set)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]


def test_a_folder_that_does_not_exist_is_one_line(classifier, test_set, tmp_path):
    with pytest.raises(UserError, match="cannot write .*no/digits.onnx: No such file or directory"):
        exported.write(classifier, tmp_path / "no/digits.onnx", "onnx", "float32", test_set)


def test_all_test_images_of_the_networks_own_data_set_are_read(classifier, tmp_path):
    files, (_, (images, labels)) = example_files("mnist", 10_001, 5)
    write_files(tmp_path, files)
    test = exported.test_images(classifier, str(tmp_path))
    assert (test.name, test.instead_of) == ("all 5 test images of mnist", None)
    np.testing.assert_array_equal(test.images, images)
    np.testing.assert_array_equal(test.labels, labels)
    with pytest.raises(UserError, match="^--data_dir=.*missing is no folder"):
        exported.test_images(classifier, str(tmp_path / "missing"))
    other = dataclasses.replace(classifier, class_names=tuple("abcdefghij"))
    with pytest.raises(UserError, match="does not know the classes that mnist has now: pass another --data_dir"):
        exported.test_images(other, str(tmp_path))


def test_without_the_test_set_other_images_serve_and_the_reason_is_told(classifier, monkeypatch):
    def no_network(*_):
        raise UserError("cannot download mnist: pass --config.dataset.data_dir=FOLDER")

    monkeypatch.setattr(official, "_read_tfds", no_network)
    config = classifier.config.copy_and_resolve_references()
    config.dataset.data_dir = "folder_that_is_gone"
    elsewhere = exported.test_images(dataclasses.replace(classifier, config=config))
    assert elsewhere.instead_of.startswith("--data_dir=folder_that_is_gone") and elsewhere.labels is None
    test = exported.test_images(classifier)
    assert test.instead_of == "cannot download mnist: pass --data_dir=FOLDER"
    assert test.labels is None and "not the test set" in test.name
    assert test.images.dtype == np.uint8 and len(np.unique(test.images, axis=0)) == len(test.images)


def test_int8_is_symmetric_and_per_output_channel():
    kernel = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32) * np.float32([1e-3, 1, 50, 1, 1, 0])
    depthwise, bias = RNG.normal(size=(3, 3, 1, 6)).astype(np.float32), np.ones(6, np.float32)
    variables = {"params": {"a": {"kernel": kernel, "bias": bias}, "b": {"kernel": depthwise}}, "batch_stats": {}}
    stored = compression.stored(variables, "int8")["params"]
    assert stored["a"]["kernel"].dtype == np.int8 and np.abs(stored["a"]["kernel"].astype(int)).max() == 127
    assert stored["a"]["kernel_scale"].shape == stored["b"]["kernel_scale"].shape == (6,)
    found = compression.restored({"params": stored})["params"]
    assert found.keys() == {"a", "b"} and found["a"].keys() == {"kernel", "bias"}
    for name, wanted in (("a", kernel), ("b", depthwise)):
        half_a_step = np.abs(wanted).max((0, 1, 2)) / 127 / 2
        assert (np.abs(found[name]["kernel"] - wanted) <= 1.001 * half_a_step).all()
    np.testing.assert_array_equal(found["a"]["bias"], bias)


# What networks are made of, in forms that tell a wrong rule from a right one: odd sizes, both signs, uneven padding.
X = RNG.normal(size=(2, 7, 9, 6)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 2, 3, 8)).astype(np.float32)
CONVOLUTION = ("NHWC", "HWIO", "NHWC")
OPERATIONS = {
    "convolution": lambda x: lax.conv_general_dilated(
        x, KERNEL, (2, 1), ((1, 0), (2, 1)), (1, 1), (1, 2), CONVOLUTION, feature_group_count=2
    ),
    "max": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (0, 1), (0, 0))
    ),
    "mean": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (0, 1), (0, 0))),
    "sum": lambda x: x.sum((1, 3)),
    "dense": lambda x: x @ KERNEL[0, 0, :, :].repeat(2, 0),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=0.5),
    "split": lambda x: jnp.concatenate(jnp.split(x, [1, 5], -1)[::-1], -1),
    "reshape and transpose": lambda x: x.reshape(x.shape[0], 7, 9, 2, 3).swapaxes(1, 4).reshape(x.shape[0], -1),
    "broadcast": lambda x: jnp.broadcast_to(x.sum(-1)[..., None], (*x.shape[:3], 3)).sum(-1),
    "elementwise": lambda x: (
        jnp.minimum(jnp.maximum(-x, 0.1), 2) / (jnp.square(x) + 1) - jax.nn.sigmoid(x) * jnp.tanh(x)
    ),
    "elu": jax.nn.elu,
    "int8": lambda x: x * (jnp.asarray(np.arange(-3, 3, dtype=np.int8)).astype(np.float32) * 0.5),
    "constants": lambda x: x * lax.rsqrt(jnp.arange(6.0) + 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_onnx_graph_computes_what_jax_does(name):
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("N, 7, 9, 6"), np.float32)
    model = onnx_graph.convert(OPERATIONS[name], {"x": shape}, "y")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": X})
    wanted = OPERATIONS[name](X)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "primitive"),
    [
        (lambda x: jnp.sort(x), "JAX's sort is not known"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))), "JAX's pad is used"),
        (lambda x: jnp.einsum("ij,ik->jk", x, x), "JAX's dot_general is used"),
    ],
)
def test_what_onnx_cannot_hold_is_one_line(function, primitive):
    with pytest.raises(UserError, match=f"cannot be written as ONNX: {primitive}.*use --to=stablehlo"):
        onnx_graph.convert(function, {"x": jax.ShapeDtypeStruct((4, 3), np.float32)}, "y")


def test_a_network_that_computes_in_bfloat16_is_no_onnx(classifier, test_set, tmp_path):
    config = classifier.config.copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    network = dataclasses.replace(classifier, config=config, model=models.create(config.model, 10))
    with pytest.raises(UserError, match="does not compute in bfloat16; use --to=stablehlo"):
        exported.write(network, tmp_path / "digits.onnx", "onnx", "float32", test_set)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_can_be_written_as_onnx(name, classifier, tmp_path):
    config = classifier.config.copy_and_resolve_references()
    config.model.name, config.model.convolution = name, "xla"
    model = models.create(config.model, 10)
    options = {"xla_backend_optimization_level": 0}
    initial = jax.jit(
        lambda key: model.init(key, jnp.zeros((1, *model.input_shape)), train=False), compiler_options=options
    )(jax.random.key(0))
    network = dataclasses.replace(classifier, model=model, variables={"batch_stats": {}, **initial}, config=config)
    path = tmp_path / "network.onnx"
    exported.FORMATS["onnx"][0](network, "float32", path)
    images = RNG.integers(0, 256, (2, 28, 28), np.uint8)
    wanted = jax.jit(exported.function(network), compiler_options=options)(images)
    np.testing.assert_allclose(exported.FORMATS["onnx"][1](path)(images), wanted, rtol=1e-3, atol=1e-5)


# The command, and the examples.


def test_the_commands_choices_are_those_that_there_are():
    assert tuple(exported.FORMATS) == export.FORMATS
    assert compression.WEIGHTS == export.WEIGHTS


BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/export.md").read_text(), re.M | re.S)
WITHOUT_THE_PACKAGE = "import sys\nsys.modules['emnist_jax'] = None\n"


@pytest.mark.ci
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_the_pages_examples_read_a_digit(written, test_set, classifier, tmp_path, block):
    (row, *_) = np.flatnonzero(classifier.classify(test_set.images).labels == test_set.labels)
    Image.fromarray(test_set.images[row]).save(tmp_path / "digit.png")
    for (to, weights), (path, _) in written.items():
        if weights == "float32":
            for source, name in ((path, f"mnist_squeeze_10.{to}"), (f"{path}.json", f"mnist_squeeze_10.{to}.json")):
                (tmp_path / name).symlink_to(source)
    own = "emnist_jax.load" in BLOCKS[block]
    (tmp_path / "example.py").write_text(BLOCKS[block] if own else WITHOUT_THE_PACKAGE + BLOCKS[block])
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.match(rf"{test_set.labels[row]} \(\d+\.\d %\)\n$", done.stdout)


def test_a_wrong_flag_ends_with_one_line_and_code_2():
    done = run("export", "--to=tflite")
    assert done.returncode == 2
    assert done.stderr.startswith("error: flag --to=tflite: value should be one of <safetensors|stablehlo|onnx>")
    assert done.stderr.count("\n") == 1


def command(**values) -> None:
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values):
        export.main()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "pass --to=FORMAT: safetensors, stablehlo or onnx"),
        ({"to": "onnx", "workdir": "/nowhere"}, "--workdir=/nowhere is no folder"),
    ],
)
def test_a_wrong_command_is_refused(values, message):
    with pytest.raises(UserError, match=f"^{message}.*$"):
        command(**values)


@pytest.mark.ci
def test_the_networks_own_file_is_not_overwritten(written, monkeypatch):
    path = written["safetensors", "float32"][0]
    before = path.read_bytes()
    monkeypatch.setenv("HOME", str(path.parent))
    for model in (path, f"~/{path.name}"):
        done = run("export", "--to=safetensors", f"--model={model}", f"--out={path}", "--weights=int8")
        assert (done.returncode, path.read_bytes()) == (2, before)
        assert done.stderr == f"error: {path} is the network's own file: pass another --out\n"


def test_a_folder_is_no_file(tmp_path):
    done = run("export", "--to=safetensors", "--model=mnist_squeeze_10", f"--out={tmp_path}")
    assert (done.returncode, done.stderr) == (2, f"error: --out={tmp_path} is a folder: pass a file\n")


def test_the_command_prints_what_it_found(classifier, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exported, "_MOST_SECONDS", 0.0)
    monkeypatch.setattr(exported, "_TURN_SECONDS", 0.0)
    files, _ = example_files("mnist", 10_001, 5)
    write_files(tmp_path, files)
    path = tmp_path / "digits.safetensors"
    command(to="safetensors", model="mnist_squeeze_10", data_dir=str(tmp_path), out=str(path), weights="int8")
    printed = capsys.readouterr().out
    for text in (f"{path.stat().st_size:,} bytes", "all 5 test images of mnist", "0.0e+00", "before rounding"):
        assert text in printed
    assert len(re.findall(r"speed, batch of (1|512) .*[\d,]+ images/s, the original [\d,]+", printed)) == 2
    assert load(path).class_names == classifier.class_names


@pytest.mark.parametrize(("to", "package"), [("stablehlo", "flatbuffers"), ("onnx", "onnx")])
def test_what_is_not_installed_is_named(to, package, classifier, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "emnist_jax.inference.onnx_graph")
    monkeypatch.delattr("emnist_jax.inference.onnx_graph")
    with pytest.raises(UserError, match=rf"needs {package}: pip install -e '\.\[export\]'"):
        exported.FORMATS[to][0](classifier, "float32", tmp_path / "file")


@needs_real_data
def test_the_network_keeps_its_accuracy_on_all_of_mnist(classifier, tmp_path):
    test = exported.test_images(classifier, str(REAL_DATA / "mnist"))
    verified, *_ = exported.write(classifier, tmp_path / "digits.onnx", "onnx", "float32", test)
    assert verified.top1 == classifier.result["test"]["top1"]
