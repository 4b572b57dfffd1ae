"""Trained networks as files that run without this package, each compared with the network that it was made of."""

import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from emnist_jax import datasets
from emnist_jax.environment import environment
from emnist_jax.errors import UserError
from emnist_jax.inference import compression
from emnist_jax.inference.classifier import Classifier, load
from emnist_jax.training.train_step import network_input

PLATFORMS = ("cpu", "cuda", "tpu")
INPUT, OUTPUT = "images", "logits"
_BATCH_SIZE = 512
_RANDOM_IMAGES = 1000
# Of a measurement of speed: a turn is at least so long, unless all of them take too long.
_TURNS, _TURN_SECONDS, _MOST_SECONDS = 7, 0.1, 10

# uint8 images `[N, 28, 28]` -> float32 logits `[N, num_classes]`.
Run = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TestImages:
    """What a file is verified on.

    Attributes:
      name: What they are, for people.
      images: uint8 `[N, 28, 28]`.
      labels: int32 `[N]`; None if they are no test set.
      instead_of: Why they are no test set; None if they are one.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    instead_of: str | None = None


@dataclasses.dataclass(frozen=True)
class Verified:
    """How a file's answers compare with the network's, on images of which each has the same top-1.

    Attributes:
      images: What they are.
      largest_logit_difference: Of all logits of all images.
      top1: The file's accuracy, a fraction; None if the images are no test set.
      unrounded_top1: That of the network before its weights were rounded.
      changed_by_rounding: Images whose top-1 the rounding of the weights has changed.
    """

    images: str
    largest_logit_difference: float
    top1: float | None
    unrounded_top1: float | None
    changed_by_rounding: int


def test_images(classifier: Classifier, data_dir: str | None = None) -> TestImages:
    """Returns the test split of the data set that a network was trained on.

    If it cannot be downloaded, these are seeded random images and rendered characters, without labels.

    Raises:
      UserError: `data_dir` is given and has not got it.
    """
    config = classifier.config.dataset.copy_and_resolve_references()
    config.data_dir = data_dir or config.data_dir
    try:
        dataset = datasets.load(config)
    except UserError as error:
        reason = str(error).replace("--config.dataset.", "--")
        if data_dir is not None:
            raise UserError(reason) from error
    else:
        if dataset.class_names != classifier.class_names:
            raise UserError(
                f"the network does not know the classes that {dataset.name} has now: pass another --data_dir"
            )
        name = f"all {len(dataset.test.labels):,} test images of {dataset.name}"
        return TestImages(name, dataset.test.images, dataset.test.labels)
    config.update({"name": "synthetic/balanced", "seed": 0, "train_per_class": 1, "test_per_class": 20})
    config.data_dir, config.validation_examples = None, 0
    rendered = datasets.load(config).test.images
    noise = np.random.default_rng(0).integers(0, 256, (_RANDOM_IMAGES, 28, 28), np.uint8)
    images = np.concatenate([rendered, noise])
    return TestImages(f"{len(images):,} rendered and random images, not the test set", images, None, reason)


def function(classifier: Classifier, weights: str = "float32") -> Callable[[jax.Array], jax.Array]:
    """Returns a network as a function of images alone, for JAX to trace: uint8 `[N, 28, 28]` -> float32 logits.

    Args:
      classifier: The network.
      weights: How the function holds them: one of `compression.WEIGHTS`.
    """
    model = classifier.model.clone(convolution="xla")
    variables = compression.stored(classifier.variables, weights)

    @jax.default_matmul_precision("float32")  # as `Classifier`
    def logits(images):
        floats = compression.restored(jax.tree.map(jnp.asarray, variables))
        x = network_input(images, classifier.config, model.input_shape)
        return model.apply(floats, x, train=False).astype(jnp.float32)

    return logits


def _batch() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape("N, 28, 28"), jnp.uint8)


def _write_stablehlo(classifier: Classifier, weights: str, path: Path) -> None:
    with _installed():
        import flatbuffers  # noqa: F401  jax.export needs it
    program = jax.export.export(jax.jit(function(classifier, weights)), platforms=PLATFORMS)(_batch())
    path.write_bytes(program.serialize())


def _open_stablehlo(path: Path) -> Run:
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(call(images))


def _write_onnx(classifier: Classifier, weights: str, path: Path) -> None:
    if classifier.model.dtype != jnp.float32:
        raise UserError(f"ONNX Runtime does not compute in {classifier.config.model.dtype}; use --to=stablehlo")
    with _installed():
        from emnist_jax.inference import onnx_graph
    model = onnx_graph.convert(function(classifier, weights), {INPUT: _batch()}, OUTPUT)
    path.write_bytes(model.SerializeToString())


def _open_onnx(path: Path) -> Run:
    with _installed():
        import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


@contextlib.contextmanager
def _installed():
    try:
        yield
    except ImportError as error:
        raise UserError(f"this format needs {error.name}: pip install -e '.[export]'") from error


# Name -> (write(classifier, weights, path), open(path)).
FORMATS: dict[str, tuple[Callable, Callable[[Path], Run]]] = {
    "safetensors": (lambda classifier, weights, path: classifier.save(path, weights), lambda path: load(path).logits),
    "stablehlo": (_write_stablehlo, _open_stablehlo),
    "onnx": (_write_onnx, _open_onnx),
}


def write(classifier: Classifier, path: Path, to: str, weights: str, test: TestImages) -> tuple[Verified, Run, Run]:
    """Writes a network into a file, and what the file is into `PATH.json`. If it is not verified, neither is left.

    Args:
      classifier: The network.
      path: Of the file.
      to: Key of FORMATS.
      weights: One of `compression.WEIGHTS`.
      test: What the file is verified on.

    Returns:
      What was found, and two that run: the file and the network that it must equal, which has the same weights.

    Raises:
      UserError: The file answers otherwise than the network, the network cannot be written in this format, or the
        file cannot be written.
    """
    write_file, open_file = FORMATS[to]
    equal = classifier
    if weights != "float32":
        rounded = compression.restored(compression.stored(classifier.variables, weights))
        equal = dataclasses.replace(classifier, variables=rounded)
    with _unfinished(path) as unfinished:
        write_file(classifier, weights, unfinished)
        run = open_file(unfinished)
        verified = _verify(run, equal, classifier, test)
        description = describe(classifier, to, weights, verified)
        os.replace(unfinished, path)
        Path(f"{path}.json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return verified, run, equal.logits


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Yields another name for a file, under which it does not stay."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        yield unfinished
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _logits(run: Run, images: np.ndarray) -> np.ndarray:
    return np.concatenate([run(images[i : i + _BATCH_SIZE]) for i in range(0, len(images), _BATCH_SIZE)])


def _verify(run: Run, equal: Classifier, unrounded: Classifier, test: TestImages) -> Verified:
    found, wanted = _logits(run, test.images), equal.logits(test.images)
    differing = int((found.argmax(-1) != wanted.argmax(-1)).sum())
    largest = float(np.abs(found - wanted).max())
    # Comparisons with NaN are false.
    if differing or not np.isfinite(largest):
        raise UserError(
            f"the file is not what it was made of: on {differing:,} of {test.name} its top-1 is another, and the "
            f"largest difference of a logit is {largest:.2g}; nothing was written"
        )
    before = wanted if equal is unrounded else unrounded.logits(test.images)

    def top1(logits):
        return None if test.labels is None else float((logits.argmax(-1) == test.labels).mean())

    changed = int((before.argmax(-1) != found.argmax(-1)).sum())
    return Verified(test.name, largest, top1(found), top1(before), changed)


def describe(classifier: Classifier, to: str, weights: str, verified: Verified) -> dict:
    """Returns what a stranger has to know of a file, as JSON."""
    return {
        "format": to,
        "network": classifier.config.model.name,
        "trained_on": classifier.config.dataset.name,
        "class_names": list(classifier.class_names),
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["N", 28, 28],
            "meaning": "upright characters, white (255) on black (0), cut out and centred as in the data set",
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["N", len(classifier.class_names)],
            "meaning": "softmax gives the probabilities of class_names",
        },
        "weights": weights,
        "verified": dataclasses.asdict(verified),
        "trained_with_commit": classifier.result["commit"],
        "exported_with_commit": environment()["commit"],
    }


def images_per_second(runs: list[Run], images: np.ndarray) -> list[float]:
    """Measures the speed of several, in turns, so that what else the machine does slows all of them.

    Args:
      runs: What is measured.
      images: The batch, uint8 `[N, 28, 28]`.

    Returns:
      The median over the turns of each.
    """
    speeds = [[] for _ in runs]
    for run in runs:
        run(images)  # compiles
    began = time.perf_counter()
    while not speeds[0] or (len(speeds[0]) < _TURNS and time.perf_counter() < began + _MOST_SECONDS):
        for run, of_run in zip(runs, speeds, strict=True):
            calls, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < _TURN_SECONDS or not calls:
                run(images)
                calls += 1
            of_run.append(calls * len(images) / elapsed)
    return [statistics.median(of_run) for of_run in speeds]
