"""What tests of several files share: a tiny run and what it wrote, files of data and weights, audits, bad input."""

import collections
import contextlib
import gzip
import io
import os
import random
import signal
import struct
import sys
import traceback
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import flax.linen as nn
import h5py
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from emnist_jax import config as config_lib
from emnist_jax import errors
from emnist_jax.datasets import official
from emnist_jax.models.layers import Network
from emnist_jax.training import evaluation

ALLOWANCE = 3 << 20  # bytes: a chunk of the file, its copy, and zipfile's records
HANG_SECONDS = 60

REAL_DATA = Path(os.environ.get("EMNIST_JAX_DATA", "") or os.devnull)
needs_real_data = pytest.mark.skipif(
    not (REAL_DATA / "mnist").is_dir(),
    reason="EMNIST_JAX_DATA is not set to a folder with mnist/ and emnist-pool/",
)


# A tiny run, and what it wrote.


class Tiny(Network):
    """The network "tiny" of the tests: what a run has to carry over, compiled in a third of the time of a real one."""

    head_dropout: float = 0.1

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 8, 5, stride=3, name="conv1")
        x = self.activate(self.batch_norm(x, train, "norm1"))
        return self.logits(self.dropout(x.mean((1, 2)), self.head_dropout, train))


def make_config(**changes):
    """Returns the config of a run of three epochs of ten steps."""
    config = config_lib.base()
    config.dataset.name = "synthetic/digits"
    config.dataset.train_per_class = 20
    config.dataset.test_per_class = 5
    config.model.name = "tiny"
    config.model.initializer = "keras"
    config.augmentation.max_brightness_fraction = 0.2  # a rotation takes two seconds to compile
    config.optimizer.learning_rate = 0.02
    config.schedule.name = "plateau"
    config.schedule.patience_epochs = 1
    config.schedule.min_delta = 10.0  # nothing counts as better
    config.schedule.factor = 0.5
    config.training.batch_size = 16
    config.training.epochs = 3.0
    config.training.ema_decay = 0.9
    config.training.steps_per_call = 4
    config.evaluation.batch_size = 40
    config.update_from_flattened_dict(changes)
    return config


def numbers_of(result: dict) -> dict:
    """Returns what must not depend on the clock."""
    return {key: result[key] for key in ("test", "validation", "epochs", "step", "parameters")}


def parameters_of(workdir: Path, step: int) -> np.ndarray:
    """Returns all parameters of a checkpoint, flat."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orbax' advice to name the devices: any will do here
        state = ocp.PyTreeCheckpointer().restore(workdir / f"checkpoints/{step}/state")
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state["params"])])


def scalars_of(workdir: Path, tag: str) -> list[tuple[int, float]]:
    """Returns step and value of each point of a TensorBoard curve."""
    return [(event.step, event.value) for event in EventAccumulator(str(workdir)).Reload().Scalars(tag)]


def damage(checkpoint: Path):
    """Cuts every file of a checkpoint in half."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fake_validation(monkeypatch, name: str, values: list[float]) -> None:
    """Makes validation find these losses or accuracies, epoch by epoch; the test set is measured as it is."""
    measure, left = evaluation.measure, list(values)

    def measure_or_fake(logits, labels):
        measured = measure(logits, labels)
        return {**measured, name: left.pop(0)} if len(labels) == 40 else measured

    monkeypatch.setattr(evaluation, "measure", measure_or_fake)


# Files of data and of weights.


def dataset_config(**changes) -> ml_collections.ConfigDict:
    defaults = dict(
        name="mnist",
        data_dir=None,
        validation_examples=None,
        train_per_class=None,
        test_per_class=None,
        seed=0,
    )
    return ml_collections.ConfigDict({**defaults, **changes}, convert_dict=False)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def example_files(name: str = "mnist", num_train: int = 12, num_test: int = 5):
    """Returns what tiny official files of a set hold, by name less ".gz", and the arrays."""
    rng = np.random.default_rng(0)
    official_set = official.SETS[name]
    files, arrays = {}, []
    for prefix, n in ((official_set.train_prefix, num_train), (official_set.test_prefix, num_test)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = np.arange(n) % len(official_set.class_names)
        stored = images.swapaxes(1, 2) if official_set.transposed else images
        files[f"{prefix}-images-idx3-ubyte"] = idx_bytes(stored)
        files[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(labels + official_set.first_label)
        arrays.append((images, labels))
    return files, arrays


def write_files(folder: Path, files: dict[str, bytes], form: str = "gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if form == "zip":
        with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
            for stem, content in files.items():
                archive.writestr(f"gzip/{stem}.gz", gzip.compress(content))
    for stem, content in files.items():
        if form == "gz":
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        elif form == "plain":
            (folder / stem).write_bytes(content)
        elif form == "dotted":
            (folder / stem.replace("-idx", ".idx")).write_bytes(content)


RNG = np.random.default_rng(0)
IMAGES = np.concatenate([np.zeros((1, 28, 28), np.uint8), RNG.integers(0, 256, (2, 28, 28), np.uint8)])
LABELS = RNG.integers(0, 10, 50).astype(np.uint8)
# (array, shape of one of its items)
ARRAYS = [(IMAGES, (28, 28)), (LABELS, ())]
MEMBERS = ["gzip/images.gz", "gzip/labels.gz"]


def archive_of(contents: list[bytes], method: int, packed: bool = False) -> bytes:
    """Returns a zip with the layout of NIST's; `packed`: the contents are gzipped already."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", method) as archive:
        for name, content in zip(MEMBERS, contents, strict=False):
            archive.writestr(name, content if packed else gzip.compress(content, mtime=0))
        archive.writestr("gzip/readme.txt", "read me")
    return stored.getvalue()


def write_h5(path, layers: dict, group: str | None = None) -> None:
    """Writes what Keras 2 and `keras.applications` call weights in HDF5 format."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, variables in layers.items():
            names = {f"{layer}/{name}:0": array for name, array in variables.items()}
            root.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name, array in names.items():
                root[layer][name] = array


# What is opened.

_HEARD = ("pickle.find_class", "open", "os.mkdir", "os.rename", "os.link", "os.symlink")
_heard = None


def _hear(event: str, arguments: tuple) -> None:
    if _heard is not None and event in _HEARD:
        _heard.append((event, arguments))


sys.addaudithook(_hear)  # for good: it cannot be removed


@contextlib.contextmanager
def audited():
    """Yields a list that fills with Python's audit events: https://docs.python.org/3/library/audit_events.html."""
    global _heard
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None


def unpickled(events: list) -> list:
    return [arguments for event, arguments in events if event == "pickle.find_class"]


def written(events: list) -> list:
    """Returns the paths that were opened to write, or made."""
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    made = [arguments[0] for event, arguments in events if event.startswith("os.")]
    return made + [arguments[0] for event, arguments in events if event == "open" and (arguments[2] or 0) & flags]


# Bad input.


def repeated(examples: int):
    """The same examples in every run; nothing is kept between runs, and slow machines are no failure."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


randoms = st.randoms(use_true_random=False)


def attempt(call):
    """Returns what `call` returns, or the UserError that it ends with; anything else that it raises is a failure."""
    # No exception that a reader would catch.
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"still busy after {HANG_SECONDS} s"))
    signal.alarm(HANG_SECONDS)
    try:
        return call()
    except errors.UserError as error:
        assert len(str(error).splitlines()) == 1 and not str(error).endswith(": ")
        return error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def memory_of_at_most(size: int):
    """Fails where more than `size` bytes and the allowance are held at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= size + ALLOWANCE, f"{peak:,} bytes"


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Damages it in one to eight places, most often near the ends, where formats keep their records."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        size = len(content)
        at = rng.choice((rng.randrange(size + 1), min(rng.randrange(64), size), max(size - rng.randrange(200), 0)))
        kind = rng.randrange(8)
        if kind == 0:
            del content[at:]
        elif kind == 1 and at < size:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            content[at : at + 1] = rng.randbytes(1)
        elif kind == 3:
            content[at : at + 4] = rng.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
        elif kind == 4:
            content[at:at] = rng.randbytes(1 + rng.randrange(8))
        elif kind == 5:
            del content[at : at + 1 + rng.randrange(8)]
        elif kind == 6:
            start = rng.randrange(size + 1)
            content[at:at] = content[start : start + rng.randrange(64)]
        else:
            content += rng.choice((bytes(8), rng.randbytes(8), bytes(content)))
    return bytes(content)


def fuzz(name: str, inputs: int, check) -> None:
    """Checks many inputs drawn from one seed, and prints the seed, how many there were, and what failed.

    `pytest -m slow -rP` shows it, and EMNIST_JAX_FUZZ_SEED repeats a seed.

    Args:
      name: Of what reads the inputs.
      inputs: How many to draw.
      check: Draws an input, checks what becomes of it, and returns whether it was accepted.
    """
    seed = int(os.environ.get("EMNIST_JAX_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    accepted, failures = 0, collections.Counter()
    for i in range(inputs):
        try:
            accepted += check(random.Random(f"{seed} {i}"))
        except (Exception, pytest.fail.Exception) as error:
            failures[f"{type(error).__name__}: {error}"] += 1
            if failures.total() <= 5:
                print(f"input {i}:")
                traceback.print_exc(file=sys.stdout)
    print(f"{name}: {inputs:,} inputs, {accepted:,} accepted, {failures.total()} failures; EMNIST_JAX_FUZZ_SEED={seed}")
    assert not failures
