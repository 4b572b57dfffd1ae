"""Bad input of every kind: never a traceback, a hang, memory beyond what the input holds, or a wrong answer.

The default tests try the same inputs each time. The slow ones draw many more from a seed that they print
(EMNIST_JAX_FUZZ_SEED repeats it) and say how many: pytest -m slow -rP tests/test_bad_input.py
"""

import collections
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import traceback
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from emnist_jax import command_line, config, datasets, errors, models
from emnist_jax.datasets import idx, official, synthetic
from emnist_jax.models import layers
from emnist_jax.reporting import terminal
from emnist_jax.training import checkpoints, loop, train_step, weights
from emnist_jax.training.optimizers import OPTIMIZERS, SCHEDULES
from emnist_jax.training.run import build
from test_datasets import config as dataset_config
from test_datasets import example_files, idx_bytes, write
from test_loop import make_config
from test_weights import write_h5

# ml_collections loads experiment files as Python 3.11 did.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ALLOWANCE = 3 << 20  # bytes: a chunk of the file, its copy, and zipfile's records
HANG_SECONDS = 60

RNG = np.random.default_rng(0)
IMAGES = np.concatenate([np.zeros((1, 28, 28), np.uint8), RNG.integers(0, 256, (2, 28, 28), np.uint8)])
LABELS = RNG.integers(0, 10, 50).astype(np.uint8)
# (array, shape of one of its items)
ARRAYS = [(IMAGES, (28, 28)), (LABELS, ())]
MEMBERS = ["gzip/images.gz", "gzip/labels.gz"]


def repeated(examples: int):
    """The same examples in every run; nothing is kept between runs, and slow machines are no failure."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


randoms = st.randoms(use_true_random=False)


@pytest.fixture(scope="module", autouse=True)
def end_of_hangs():
    # No exception that a reader would catch.
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"still busy after {HANG_SECONDS} s"))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(autouse=True)
def close_log_files():
    yield
    terminal.stop_log()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad_input")


def attempt(call):
    """Returns what `call` returns, or the UserError that it ends with; anything else that it raises is a failure."""
    signal.alarm(HANG_SECONDS)
    try:
        return call()
    except errors.UserError as error:
        assert len(str(error).splitlines()) == 1 and not str(error).endswith(": ")
        return error
    finally:
        signal.alarm(0)


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


# IDX files, gzipped or not.


def inflated(stored: bytes) -> bytes | None:
    """Returns the content of gzip's members, or None where zlib finds fault with them."""
    content = b""
    while stored:
        member = zlib.decompressobj(wbits=31)
        try:
            content += member.decompress(stored)
        except zlib.error:
            return None
        if not member.eof:
            return None
        stored = member.unused_data.lstrip(b"\0")  # padding
    return content


def says(stored: bytes, item_shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns what an intact IDX file says, whatever it was written from, or None where it is none."""
    content = inflated(stored) if stored[:2] == b"\x1f\x8b" else stored
    head = 8 + 4 * len(item_shape)
    if content is None or len(content) < head or content[:4] != bytes([0, 0, 8, 1 + len(item_shape)]):
        return None
    shape = struct.unpack(f">{1 + len(item_shape)}I", content[4:head])
    if shape[1:] != item_shape or shape[0] > 1_000_000 or len(content) - head != math.prod(shape):
        return None
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def check_idx(path: Path, stored: bytes, item_shape: tuple[int, ...], written: np.ndarray | None = None) -> bool:
    """Reads it: what it says, or an error, or what was `written`, where only gzip's own notes are damaged.

    Returns whether it could be read, as the other checks do.
    """
    path.write_bytes(stored)
    said = says(stored, item_shape)
    with memory_of_at_most(0 if said is None else 1.2 * said.nbytes):
        found = attempt(lambda: idx.read(idx.File(path), item_shape))
    if said is None and stored[:2] == b"\x1f\x8b" and not isinstance(found, errors.UserError):
        said = written
    if said is None:
        assert isinstance(found, errors.UserError)
    else:
        np.testing.assert_array_equal(found, said)
    if stored[:2] == b"\x1f\x8b" and written is not None and isinstance(found, np.ndarray):
        np.testing.assert_array_equal(found, written)  # the CRC
    return not isinstance(found, errors.UserError)


def random_idx(rng: random.Random) -> tuple[bytes, tuple[int, ...], np.ndarray | None]:
    """Draws a damaged file, the shape to ask for, and what was written, if that is known."""
    array, item_shape = rng.choice(ARRAYS)
    content = idx_bytes(array)
    kind = rng.randrange(5)
    if kind == 0:
        return mutated(rng, content), item_shape, None
    if kind == 1:
        return mutated(rng, gzip.compress(content, mtime=0)), item_shape, array
    if kind == 2:  # with a name and a comment
        stored = gzip.compress(content, mtime=0)
        return mutated(rng, stored[:3] + b"\x18" + stored[4:10] + b"name\0note\0" + stored[10:]), item_shape, array
    if kind == 3:  # intact gzip of what is not intact
        stored = mutated(rng, content)
        return b"".join(gzip.compress(part, mtime=0) for part in (stored[:99], stored[99:])), item_shape, None
    sizes = (0, 1, 3, 28, 50, 784, 999_999, 1_000_000, 1_000_001, 2**31, 2**32 - 1)
    shape = [rng.choice(sizes) if rng.randrange(3) else size for size in array.shape]
    head = rng.choice((b"\0\0\x08", b"\0\0\x08", b"\0\0\x0d", b"\0\0\x09", rng.randbytes(3)))
    head += bytes([rng.choice((len(shape), len(shape), rng.randrange(256)))]) + struct.pack(f">{len(shape)}I", *shape)
    stored = head + array.tobytes() * rng.choice((0, 1, 1, 2))
    return gzip.compress(stored, mtime=0) if rng.randrange(2) else stored, item_shape, None


def pack(content: bytes, form: str) -> bytes:
    if form == "gzip":
        return gzip.compress(content)
    if form == "two members":
        return gzip.compress(content[: len(content) // 2]) + gzip.compress(content[len(content) // 2 :])
    return content


@pytest.mark.parametrize("form", ["plain", "gzip", "two members", "zip"])
@repeated(60)
@given(rows=st.integers(0, 40), pixels=st.binary(min_size=1, max_size=3000))
def test_what_is_written_is_read(folder, form, rows, pixels):
    labels = np.frombuffer(pixels, np.uint8)
    images = np.resize(labels, (rows, 28, 28))
    for array, item_shape in ((images, (28, 28)), (labels, ())):
        path = folder / "written"
        file = idx.File(path)
        if form == "zip":
            path.write_bytes(archive_of([idx_bytes(array)], zipfile.ZIP_DEFLATED))
            file = idx.File(path, MEMBERS[0])
        else:
            path.write_bytes(pack(idx_bytes(array), form))
        np.testing.assert_array_equal(attempt(lambda file=file, shape=item_shape: idx.read(file, shape)), array)


@repeated(800)
@given(randoms)
def test_damaged_idx_files(folder, rng):
    check_idx(folder / "idx", *random_idx(rng))


@repeated(150)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0", idx_bytes(IMAGES)[:16]]))
@example(b"", b"")
def test_random_bytes_as_idx_files(folder, noise, start):
    check_idx(folder / "idx", start + noise, (28, 28))


@pytest.mark.parametrize("at", range(len(gzip.compress(idx_bytes(LABELS)))))
def test_every_cut_and_every_flip_of_a_gzipped_file(folder, at):
    stored = gzip.compress(idx_bytes(LABELS), mtime=0)
    cut = stored[:at]
    check_idx(folder / "idx", cut, (), LABELS)
    assert says(cut, ()) is None
    for bit in range(8):
        check_idx(folder / "idx", stored[:at] + bytes([stored[at] ^ 1 << bit]) + stored[at + 1 :], (), LABELS)


BOMB = gzip.compress(bytes(64 << 20))  # of 64 KiB


@pytest.mark.parametrize(
    ("declared", "present"),
    [(10, 64 << 20), (999_999, 0), (999_999, 64 << 20), (1_000_001, 64 << 20), (2**32 - 1, 0)],
)
@pytest.mark.parametrize("form", ["plain", "gzip", "zip"])
def test_neither_a_header_nor_a_bomb_takes_memory(folder, form, declared, present):
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", declared, 28, 28)
    stored = gzip.compress(head) + (BOMB if present else b"")
    if form == "plain":
        stored = head + bytes(present)
    path = folder / "bomb"
    path.write_bytes(stored)
    file = idx.File(path)
    if form == "zip":
        file = idx.File(path, MEMBERS[0])
        path.write_bytes(archive_of([stored], zipfile.ZIP_DEFLATED, packed=True))
    with memory_of_at_most(1.2 * min(present, declared * 784) if declared < 1_000_000 else 0):
        assert isinstance(attempt(lambda: idx.read(file, (28, 28))), errors.UserError)


@pytest.mark.parametrize("kind", ["directory", "pipe", "endless", "broken link", "link to itself", "not readable"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "gzip.zip"])
def test_what_is_no_file_is_named_in_an_error(tmp_path, kind, name):
    files, _ = example_files()
    write(tmp_path, files)
    path = tmp_path / name
    if name == "gzip.zip":
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    path.unlink(missing_ok=True)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "not readable":
        path.mkdir()
        (tmp_path / "train-images-idx3-ubyte").symlink_to("/proc/self/mem")
    else:
        path.symlink_to({"endless": "/dev/zero", "broken link": "nowhere", "link to itself": path}[kind])
    with memory_of_at_most(0):
        found = attempt(lambda: datasets.load(dataset_config(data_dir=str(tmp_path), validation_examples=0)))
    assert isinstance(found, errors.UserError) and str(tmp_path) in str(found)


@pytest.mark.parametrize(
    "data_dir", ["", "x" * 300, "x/" * 3000, "a\nb", "\0", "~nobody", "/dev/null", "/dev/null/x", "é"]
)
def test_odd_data_dirs(data_dir):
    found = attempt(lambda: datasets.load(dataset_config(data_dir=data_dir)))
    assert isinstance(found, errors.UserError) and "data_dir" in str(found)


# NIST's zip.


def archive_of(contents: list[bytes], method: int, packed: bool = False) -> bytes:
    """Returns a zip with the layout of NIST's; `packed`: the contents are gzipped already."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", method) as archive:
        for name, content in zip(MEMBERS, contents, strict=False):
            archive.writestr(name, content if packed else gzip.compress(content, mtime=0))
        archive.writestr("gzip/readme.txt", "read me")
    return stored.getvalue()


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
ARCHIVES = {method: archive_of([idx_bytes(array) for array, _ in ARRAYS], method) for method in METHODS}


def check_zip(path: Path, stored: bytes, which: int, must_read: bool = False) -> bool:
    """Reads a member: the array that was written, or an error."""
    path.write_bytes(stored)
    array, item_shape = ARRAYS[which]
    with memory_of_at_most(20 * len(stored)):
        found = attempt(lambda: idx.read(idx.File(path, MEMBERS[which]), item_shape))
    if must_read or not isinstance(found, errors.UserError):
        np.testing.assert_array_equal(found, array)
    return not isinstance(found, errors.UserError)


def random_zip(rng: random.Random) -> tuple[bytes, int]:
    """Draws a damaged archive, and the member to read from it."""
    stored = rng.choice(list(ARCHIVES.values()))
    if rng.randrange(2):
        return mutated(rng, stored), rng.randrange(2)
    # A field of one of its records, of 1, 2, 4 or 8 bytes.
    record = rng.choice((b"PK\1\2", b"PK\3\4", b"PK\5\6"))
    starts = [at for at in range(len(stored)) if stored.startswith(record, at)]
    at = rng.choice(starts) + rng.randrange(46)
    field = rng.choice(
        (bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\1\0\0\0", b"\x63", rng.randbytes(2), b"\xff" * 8)
    )
    field = field[: rng.choice((1, 2, 4, 8))]
    return stored[:at] + field + stored[at + len(field) :], rng.randrange(2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", [0, 1])
def test_only_nists_methods_are_read(folder, method, which):
    check_zip(folder / "gzip.zip", ARCHIVES[method], which, must_read=method in (0, 8))


def test_bombs_by_other_methods_take_no_memory(folder):
    for method in METHODS[2:]:
        path = folder / "gzip.zip"
        path.write_bytes(archive_of([bytes(32 << 20)], method, packed=True))
        with memory_of_at_most(0):
            found = attempt(lambda: idx.read(idx.File(path, MEMBERS[0]), ()))  # noqa: B023
        assert f"method {method}" in str(found)


def test_a_zip_of_padding_takes_no_time(folder):
    # gzip reads it byte by byte: a gigabyte, in a file of one megabyte, would take many minutes.
    path = folder / "gzip.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(MEMBERS[1], "w") as member:
        member.write(gzip.compress(idx_bytes(LABELS)))
        member.write(bytes(16 << 20))
    assert "claim" in str(attempt(lambda: idx.read(idx.File(path, MEMBERS[1]), ())))


@repeated(500)
@given(randoms)
def test_damaged_zips(folder, rng):
    check_zip(folder / "gzip.zip", *random_zip(rng))


def replaced(stored: bytes, record: bytes, offset: int, field: bytes) -> bytes:
    """Returns the archive with a field of the first such record replaced."""
    at = stored.index(record) + offset
    return stored[:at] + field + stored[at + len(field) :]


def zip64(stored: bytes, place: int) -> bytes:
    """Returns the archive with the first member said to be at `place`."""
    extra = struct.pack("<HHQ", 1, 8, place)
    at = stored.index(b"PK\1\2")
    stored = replaced(replaced(stored, b"PK\1\2", 42, b"\xff" * 4), b"PK\1\2", 30, struct.pack("<H", len(extra)))
    end = at + 46 + len(MEMBERS[0])
    stored = stored[:end] + extra + stored[end:]
    size = struct.unpack_from("<I", stored, stored.index(b"PK\5\6") + 12)[0]
    return replaced(stored, b"PK\5\6", 12, struct.pack("<I", size + len(extra)))


def with_members(*names: str, content: bytes = b"evil", repeat: bool = True) -> bytes:
    """Returns an archive that has members of these names before the right ones."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name in names:
            archive.writestr(name, content)
        for name, (array, _) in zip(MEMBERS, ARRAYS, strict=True) if repeat else ():
            archive.writestr(name, gzip.compress(idx_bytes(array)))
    return stored.getvalue()


ZIP = ARCHIVES[zipfile.ZIP_STORED]
# What -> (archive, whether it is to be read)
CRAFTED = {
    "after other bytes": (b"#!/bin/sh\n" + bytes(9999) + ZIP, True),
    "with a comment": (ZIP[:-2] + b"\x16\0" + b"PK\5\6" + bytes(18), False),
    "without its front": (ZIP[20:], False),
    "empty archive": (b"PK\5\6" + bytes(18), False),
    "encrypted": (replaced(ZIP, b"PK\1\2", 8, b"\1"), False),
    "unknown method": (replaced(ZIP, b"PK\1\2", 10, b"\x63"), False),
    "unknown version": (replaced(ZIP, b"PK\1\2", 6, b"\x63"), False),
    "a name that is no UTF-8": (replaced(replaced(ZIP, b"PK\1\2", 9, b"\x08"), b"PK\1\2", 46, b"\xff"), False),
    "a local name that is no UTF-8": (replaced(replaced(ZIP, b"PK\3\4", 7, b"\x08"), b"PK\3\4", 30, b"\xff"), False),
    "beyond all files": (zip64(ZIP, 2**63 + 5), False),
    "beyond the file": (zip64(ZIP, 2**62), False),
    "where it is, in ZIP64": (zip64(ZIP, 0), True),
    "a size that lies": (replaced(ZIP, b"PK\1\2", 24, struct.pack("<I", 2**31)), False),
    "sizes that lie": (replaced(ZIP, b"PK\1\2", 20, struct.pack("<II", 2**31, 2**31)), False),
    "evil names": (with_members("../../evil", "/evil", "gzip/../../evil", "C:\\evil", "gzip\\images.gz", "\n"), True),
    "evil names alone": (with_members("../../" + MEMBERS[0], "/" + MEMBERS[0], repeat=False), False),
    "a folder of that name": (with_members(MEMBERS[0] + "/", content=b"", repeat=False), False),
    "a zip in its place": (with_members(MEMBERS[0], content=ZIP, repeat=False), False),
    "a zip of zips": (with_members("gzip.zip", content=ZIP), True),
}


@pytest.fixture
def written_paths():
    """The paths that this process opens to write, or makes, while the test asks for them."""
    WATCH.append(paths := [])
    yield paths
    WATCH.clear()


WATCH = []


def watch(event: str, arguments: tuple) -> None:
    if WATCH:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.mkdir", "os.rename", "os.link", "os.symlink"):
            WATCH[0].append(arguments[0])


sys.addaudithook(watch)  # for good: it cannot be removed


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_zips_are_read_right_or_refused_and_nothing_is_extracted(folder, written_paths, what):
    stored, readable = CRAFTED[what]
    path = folder / "gzip.zip"
    path.write_bytes(stored)
    written_paths.clear()
    with memory_of_at_most(ALLOWANCE):
        found = attempt(lambda: idx.read(idx.File(path, MEMBERS[0]), (28, 28)))
    assert not written_paths
    if readable:
        np.testing.assert_array_equal(found, IMAGES)
    else:
        assert isinstance(found, errors.UserError)


@repeated(60)
@given(randoms)
def test_a_set_from_a_damaged_zip_is_whole_or_an_error(folder, rng):
    name = "emnist/balanced"
    files, arrays = example_files(name)
    write(folder / "nist", files, "zip")
    path = folder / "nist/gzip.zip"
    path.write_bytes(mutated(rng, path.read_bytes()))
    found = attempt(
        lambda: datasets.load(dataset_config(name=name, data_dir=str(folder / "nist"), validation_examples=0))
    )
    if not isinstance(found, errors.UserError):
        for split, (images, labels) in zip((found.train, found.test), arrays, strict=True):
            np.testing.assert_array_equal(split.images, images)
            np.testing.assert_array_equal(split.labels, labels)


# Overrides of the config.

VALUES = [
    *("0", "1", "2", "16", "-1", "1.5", "0.5", "1e-3", "-0.0", "+1", "1_0", "0x10", "0b1", "1e", "1j", "١"),
    *("nan", "inf", "-inf", "1e400", "1e-400", "1e9", "1e30", "1e39", "1e-30", "1e-45", "0.999999999", "20000"),
    *("20001", "2147483647", "2147483648", "4294967295", "4294967296", "True", "true", "False", "None", "none"),
    *("null", "[]", "[1]", "(1,2)", "{}", "{'name':1}", "float('nan')", "1;2", "é", "名", "--", "=", "'", "%s"),
    *("{0}", "${HOME}", "../..", "[/x]", "[red]", ":warning:", "keras:", "keras:/dev/zero", "pytorch:x"),
    *("/dev/zero", "/nowhere", "", " ", " 1 ", "1\n", "\n", "a\nb", "a b", "lambda: 1", "\udcff", "\x00"),
    *("\x1b[31m", "9" * 24, "1" * 5000, "x" * 5000),
]
KEYS = list(config.flatten(config.base().to_dict()))
WRONG_KEYS = [
    *(".", "..", "model", "model.", "model.dropout", "dataset", "seed.x", "Seed", "a=b", "model.dropout.keys"),
    *("keys", "__class__", "lock", "", "model.__dict__", "optimizer.learning-rate", "training epochs"),
    *("training.epocs", "é", "\x00"),
]
NAMES = {
    "dataset.name": datasets.NAMES,
    "model.name": list(models.MODELS),
    "model.activation": list(layers.ACTIVATIONS),
    "model.initializer": list(layers.INITIALIZERS),
    "model.dtype": ["float32", "bfloat16"],
    "model.convolution": ["auto", "xla", "matmul"],
    "optimizer.name": list(OPTIMIZERS),
    "schedule.name": list(SCHEDULES),
    "training.select": ["best", "last"],
    "on_nan": ["stop", "rollback"],
}


@pytest.fixture(scope="module")
def experiment(folder):
    """An experiment file of a tiny run, whose images are black and rendered in no time."""
    path = folder / "tiny.py"
    path.write_text(
        "from emnist_jax.config import base\n"
        "def get_config():\n"
        "    config = base()\n"
        "    config.dataset.name = 'synthetic/digits'\n"
        "    config.dataset.train_per_class = 10\n"
        "    config.dataset.test_per_class = 2\n"
        "    config.model.name = 'mnist_gap_v3'\n"
        "    config.training.batch_size = 16\n"
        "    return config\n"
    )

    def no_data(name, official_set):
        raise errors.UserError(f"no network for {name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_glyphs", functools.cache(synthetic._glyphs))
        patch.setattr(synthetic, "_distorted", lambda glyphs, ranges, rng: np.zeros((len(ranges), 28, 28), np.uint8))
        patch.setattr(official, "_read_tfds", no_data)
        yield path


def prepare(experiment: Path, *arguments: str):
    """Does all that comes before training; returns the run, or the UserError."""

    def start():
        flag_values = flags.FlagValues()
        command_line.parse(["program", f"--config={experiment}", *arguments], flag_values=flag_values)
        config.validate(flag_values.config)
        return build(flag_values.config)

    return attempt(start)


def check_overrides(experiment: Path, *arguments: str):
    """Prepares a run; if it is accepted, its numbers and its learning rates are finite."""
    run = prepare(experiment, *arguments)
    if not isinstance(run, errors.UserError):
        values = config.flatten(run.config.to_dict()).values()
        assert all(math.isfinite(value) for value in values if isinstance(value, (int, float)))
        assert 0 < run.total_steps < 2**31
        steps = {0, 1, run.total_steps // 3, run.total_steps // 2, run.total_steps - 1}
        rates = [float(run.schedule(step)) for step in steps]
        assert all(0 <= rate <= run.config.optimizer.learning_rate * (1 + 1e-6) for rate in rates), rates
    return run


def random_overrides(rng: random.Random) -> list[str]:
    arguments = []
    for _ in range(rng.choice((1, 2, 3, 6))):
        key = rng.choice(KEYS)
        # Mostly what is right, or no combination would be reached.
        if key in NAMES and rng.randrange(8):
            value = rng.choice(NAMES[key])
        elif key in ("init_from", "dataset.data_dir", *NAMES) or rng.randrange(8):
            value = rng.choice(("1", "2", "0", "0.5", "0.1", "3", "1e-3", "True", "16", "4"))
        else:
            value = rng.choice(VALUES)
        if not rng.randrange(20):
            key = rng.choice(WRONG_KEYS)
        if not rng.randrange(20):
            key = mutated(rng, key.encode()).decode(errors="replace")
        if not rng.randrange(20):
            value = mutated(rng, value.encode(errors="replace")).decode(errors="replace")
        form = rng.randrange(8)
        if form == 0:
            arguments += [f"--config.{key}", value]
        else:
            arguments.append(f"-config.{key}={value}" if form == 1 else f"--config.{key}={value}")
    return arguments


@pytest.mark.parametrize("key", [*KEYS, *WRONG_KEYS])
def test_every_key_with_values_of_every_sort(experiment, key):
    for value in VALUES if key in KEYS else ("", "1", "{}", "é"):
        run = check_overrides(experiment, f"--config.{key}={value}")
        if key in WRONG_KEYS:
            assert isinstance(run, errors.UserError)
    for arguments in ((f"--config.{key}",), (f"--noconfig.{key}",), (f"--config.{key}", "--config.seed=1")):
        check_overrides(experiment, *arguments)


@repeated(150)
@given(randoms)
def test_combinations_of_overrides(experiment, rng):
    check_overrides(experiment, *random_overrides(rng))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model={}"], "is a section; set its keys, e.g. --config.model.activation"),
        (["--config.model.dropout={'head': 0.5}"], "--config.model.dropout.block"),
        (["-config.training.epocs=3"], "did you mean 'epochs'?"),
        (["--config.seed=1", "--config.seed=x"], "invalid literal"),
        (["--config.seed=1\n2"], "invalid literal"),
        (["--config.dataset.data_dir=\udcff"], "no UTF-8"),
        (["--config.dataset.mean=nan"], "config.dataset.mean is nan; it must be between -1000 and 1000"),
        (["--config.dataset.std=1e-9"], "between 1e-06 and 1e+06"),
        (["--config.dataset.seed=1267650600228229401496703205376"], "config.dataset.seed"),
        (["--config.dataset.train_per_class=20001"], "20,000"),
        (["--config.optimizer.epsilon=0"], "config.optimizer.epsilon"),
        (["--config.optimizer.beta2=0.999999999"], "config.optimizer.beta2"),
        (["--config.training.epochs=1e9"], "too many"),
        (["--config.training.steps_per_call=2147483648"], "config.training.steps_per_call"),
        (["--config.training.steps=None"], "invalid literal"),
        (["--flagfile=/nowhere"], "flagfile"),
        (["rest"], "unexpected argument 'rest'"),
        (["--workdir"], "Unknown command line flag"),
    ],
)
def test_what_is_wrong_is_said(experiment, arguments, message):
    assert message in str(prepare(experiment, *arguments))


def test_the_last_of_an_overrides_values_counts(experiment):
    assert prepare(experiment, "--config.seed=1", "--config.seed", "2").config.seed == 2


BASE = "from emnist_jax.config import base\ndef get_config():\n    config = base()\n"
DICT = "from ml_collections import ConfigDict\ndef get_config():\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{DICT}    return None", "pass --config"),
        (f"{DICT}    return 3", "to_dict"),
        (f"{DICT}    return ConfigDict({{'modl': 3}})", 'Did you mean "model" instead of "modl"?'),
        (f"{DICT}    return ConfigDict({{'model': 3}})", "items"),
        (f"{DICT}    return ConfigDict({{'seed': 'x'}})", "seed"),
        (f"{DICT}    raise KeyError", "KeyError"),
        (f"{DICT}    assert False", "AssertionError"),
        (f"{BASE}    config.model = None\n    return config", "items"),
        (f"{BASE}    config.training.batch_size = None\n    return config", "config.training.batch_size is None"),
        (f"{BASE}    config.dataset.name = None\n    return config", "unknown data set None"),
        (f"{BASE}    config.training.steps = 2.5\n    return config", "steps"),
        ("\0", "null bytes"),
        ("(" * 1000, "("),
    ],
)
def test_faulty_experiment_files(folder, content, message):
    (folder / "faulty.py").write_text(content)
    found = prepare(folder / "faulty.py")
    assert isinstance(found, errors.UserError) and message in str(found) and len(str(found)) < 300


def test_an_experiment_file_may_leave_keys_out(folder, experiment):
    (folder / "short.py").write_text(f"{DICT}    return ConfigDict({{'seed': 7}})")
    run = prepare(folder / "short.py", "--config.seed=8")
    assert run.config.seed == 8 and run.config.is_locked
    assert run.config.optimizer == config.base().optimizer


@pytest.mark.parametrize("allocation", ["numpy.zeros(1 << 50)", "jax.numpy.zeros(1 << 46).block_until_ready()"])
def test_running_out_of_memory_is_one_line(allocation):
    program = f"import jax, numpy\nfrom emnist_jax import command_line\ncommand_line.run(lambda _: {allocation}, False)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: out of memory") and "batch_size" in done.stderr


def trace(run) -> None:
    """Traces a training step and an evaluation, without computing anything."""
    state = run.create_state.eval_shape(jax.random.key(0))
    size = run.config.training.batch_size
    images = jax.ShapeDtypeStruct((size, 28, 28), np.uint8)
    rows = jax.ShapeDtypeStruct((1, size), np.int32)
    steps = train_step.make_train_steps(run.model, run.optimizer, run.config, run.mesh)
    key = jax.random.key(0)
    after = steps.eval_shape(state, images, jax.ShapeDtypeStruct((size,), np.int32), rows, key, 1)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    logits = jax.eval_shape(
        lambda variables, images: run.model.clone(axis_name=None).apply(
            variables, train_step.network_input(images, run.config, run.model.input_shape), train=False
        ),
        state.variables,
        images,
    )
    assert logits.shape == (size, len(run.dataset.class_names)) and logits.dtype == np.float32


# Each at the end of its range, and what goes with it.
EXTREMES = [
    ("optimizer.name=muon", "optimizer.momentum=0", "model.dtype=bfloat16", "training.ema_decay=1"),
    ("optimizer.name=adamw", "optimizer.epsilon=1e9", "optimizer.beta2=0.999999", "optimizer.weight_decay=1e9"),
    ("schedule.name=step", "schedule.step_epochs=1e9", "schedule.factor=1e-30", "training.steps=1000000000"),
    ("schedule.name=onecycle", "schedule.warmup_fraction=0", "schedule.initial_divisor=1e9", "training.steps=1"),
    ("schedule.name=onecycle", "schedule.warmup_fraction=0.99", "schedule.final_divisor=1e9", "training.epochs=1e8"),
    ("schedule.name=plateau", "schedule.patience_epochs=1000000000", "schedule.min_learning_rate=0.001"),
    ("schedule.name=cosine", "schedule.warmup_epochs=0.2", "training.label_smoothing=1", "model.sync_batch_norm=False"),
    (
        "augmentation.max_rotation_degrees=180",
        "augmentation.max_shear_degrees=80",
        "augmentation.max_zoom_fraction=.99",
    ),
    ("augmentation.elastic_displacement_pixels=1e9", "augmentation.elastic_smoothness_pixels=1e9"),
    ("model.name=lenet5", "model.dropout.head=0.99", "dataset.name=synthetic/byclass", "model.convolution=xla"),
    ("training.batch_size=80", "training.steps_per_call=1000000000", "evaluation.batch_size=1000000000"),
]


@pytest.mark.parametrize("extremes", EXTREMES)
def test_what_is_accepted_can_be_built(experiment, extremes):
    run = check_overrides(experiment, *(f"--config.{override}" for override in extremes))
    assert not isinstance(run, errors.UserError), run
    trace(run)


# What lies in a workdir.

JSON_GARBAGE = [
    *(b"", b"\0\xff\xfe", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"NaN", b'{"test": []}', b"[" * 100_000),
    *(b'{"a":' * 5000, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"parameters": ' + b"9" * 5000 + b"}"),
]
JSON_VALUES = [None, [], {}, "", "[/x]", -1, 2, 10**400, math.nan, math.inf, True, [1], {"a": 1}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with checkpoints 10 and 11."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train_and_evaluate(make_config(**{"training.steps": 11}), workdir)


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def start_again(workdir: Path):
    return attempt(lambda: loop.train_and_evaluate(make_config(**{"training.steps": 11}), workdir))


@pytest.mark.parametrize("name", ["result.json", "config.json"])
def test_garbage_for_json_is_an_error_that_names_the_file(copy, name):
    for content in JSON_GARBAGE:
        (copy / name).write_bytes(content)
        found = start_again(copy)
        assert isinstance(found, errors.UserError), content[:20]
        assert str(copy) in str(found)


def paths_in(tree: dict, prefix=()):
    """Yields the path of every key of nested dictionaries."""
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_in(value, (*prefix, key))


@pytest.mark.parametrize("name", ["result.json", "config.json"])
def test_json_of_wrong_types_and_without_keys(copy, name, capsys):
    content = (copy / name).read_text()
    outcomes = set()
    for path in paths_in(json.loads(content)):
        for value in (*JSON_VALUES, "missing"):
            changed = json.loads(content)
            parent = functools.reduce(dict.get, path[:-1], changed)
            parent[path[-1]] = value
            if value == "missing":
                del parent[path[-1]]
            (copy / name).write_text(json.dumps(changed))
            found = start_again(copy)
            outcomes.add(type(found))
            if name == "config.json" and not isinstance(found, errors.UserError):
                found, wanted = config.flatten(changed), config.flatten(json.loads(content))
                differing = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
                assert differing <= {"dataset.data_dir", "on_nan"}
    assert outcomes == {dict, errors.UserError}


@repeated(60)
@given(randoms, st.sampled_from(["result.json", "config.json"]))
def test_damaged_json(finished, folder, rng, name):
    workdir = folder / "json"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    for kept in ("result.json", "config.json"):
        shutil.copy(finished[0] / kept, workdir)
    (workdir / name).write_bytes(mutated(rng, (workdir / name).read_bytes()))
    start_again(workdir)
    terminal.stop_log()


@pytest.mark.parametrize("name", ["result.json", "config.json", "lock", "log.txt", "checkpoints"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "endless", "link to itself"])
def test_what_is_no_file_in_a_workdir(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else path)
    if (name, kind) in {("checkpoints", "directory"), ("lock", "endless"), ("log.txt", "endless")}:
        return  # what it should be, or what can be written
    if (name, kind) in {("result.json", "link to itself"), ("config.json", "link to itself")}:
        return  # as if it were not there
    found = start_again(tmp_path)
    assert isinstance(found, errors.UserError) and str(tmp_path) in str(found)


def record_file(workdir: Path, step: int) -> Path:
    (path,) = (workdir / f"checkpoints/{step}/record").rglob("metadata")
    return path


@pytest.fixture(scope="module")
def restorable(finished, folder):
    """A copy of the checkpoints, what is in them, and how to read them."""
    workdir = folder / "restorable"
    shutil.copytree(finished[0], workdir)
    run = build(make_config(**{"training.steps": 11}))
    target = run.create_state.eval_shape(jax.random.key(0))
    with contextlib.closing(checkpoints.Checkpoints(workdir)) as saved:
        yield record_file(workdir, 11), lambda: saved.restore(target, [11])


def check_record(restorable, content: bytes) -> bool:
    """Restores a checkpoint with this for its record: what was saved, or nothing."""
    path, restore = restorable
    intact = path.read_bytes()
    path.write_bytes(content)
    try:
        found = attempt(restore)
    finally:
        path.write_bytes(intact)
    assert found is None or dataclasses.asdict(found[1]) == json.loads(intact)["record"]
    return found is not None


@pytest.mark.parametrize("content", JSON_GARBAGE, ids=lambda content: repr(content[:12]))
def test_garbage_for_a_record_is_a_damaged_checkpoint(restorable, content):
    check_record(restorable, content)


@repeated(40)
@given(randoms)
def test_damaged_record_is_whole_or_a_damaged_checkpoint(restorable, rng):
    check_record(restorable, mutated(rng, restorable[0].read_bytes()))


def test_a_run_goes_on_from_the_checkpoint_before_damaged_record(finished, copy):
    (copy / "result.json").unlink()
    path = record_file(copy, 11)
    path.write_bytes(path.read_bytes().replace(b'"step": 10', b'"step": 11'))
    result = start_again(copy)
    assert "resumed at step 10 of 11" in (copy / "log.txt").read_text()
    assert (result["test"], result["validation"]) == (finished[1]["test"], finished[1]["validation"])


def test_without_intact_record_no_run_goes_on(copy):
    (copy / "result.json").unlink()
    for step in (10, 11):
        record_file(copy, step).write_text("[]")
    assert "no checkpoint" in str(start_again(copy))


def test_a_workdirs_name_is_printed_as_it_is(finished, tmp_path, capsys):
    workdir = tmp_path / "[red] :warning: [" / "x]"
    shutil.copytree(finished[0], workdir)
    assert not isinstance(start_again(workdir), errors.UserError)
    assert f"tensorboard --logdir {workdir}\n" in capsys.readouterr().out


# Weights of other frameworks.


@pytest.fixture(scope="module")
def weight_files(folder):
    """What intact files of weights hold, by kind."""
    kernel, head = np.ones((3, 3, 1, 2), np.float32), np.ones((2, 10), np.float32)
    write_h5(folder / "keras", {"c1": {"kernel": kernel, "bias": kernel[0, 0, 0]}, "predictions": {"kernel": head}})
    save_file({"c1.weight": kernel.T, "c1.bias": kernel[0, 0, 0], "fc.weight": head.T}, folder / "pytorch")
    return {kind: (folder / kind).read_bytes() for kind in ("keras", "pytorch")}


def check_weights(folder: Path, kind: str, stored: bytes) -> bool:
    """Loads them: arrays of floating-point numbers, or an error."""
    path = folder / "weights"
    path.write_bytes(stored)
    found = attempt(lambda: weights.load_file(f"{kind}:{path}"))
    if not isinstance(found, errors.UserError):
        assert all(array.dtype.kind == "f" for array in jax.tree.leaves(found))
        assert sum(array.nbytes for array in jax.tree.leaves(found)) <= 2 * len(stored)
    return not isinstance(found, errors.UserError)


@pytest.mark.parametrize("kind", ["keras", "pytorch"])
@repeated(200)
@given(rng=randoms)
def test_damaged_weights(folder, weight_files, kind, rng):
    check_weights(folder, kind, mutated(rng, weight_files[kind]))


@pytest.mark.parametrize("kind", ["keras", "pytorch"])
@repeated(50)
@given(noise=st.binary(max_size=200))
def test_random_bytes_as_weights(folder, weight_files, kind, noise):
    check_weights(folder, kind, noise)
    check_weights(folder, kind, weight_files[kind][:8] + noise)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shape": (1 << 20, 1 << 20), "dtype": "f4", "chunks": (1, 64)}, "larger than what the file holds"),
        ({"data": np.ones(3, np.int32)}, "int32"),
        ({"data": ["a", "b"]}, "object"),
        ({"data": np.ones(3, np.complex64)}, "complex64"),
    ],
)
def test_what_are_no_weights(tmp_path, data, message):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["c1"]
        file.create_dataset("c1/c1/kernel:0", **data)
    with memory_of_at_most(0):
        found = attempt(lambda: weights.load_file(f"keras:{path}"))
    assert isinstance(found, errors.UserError) and message in str(found)


def test_links_in_a_keras_file_lead_nowhere(tmp_path):
    path = tmp_path / "weights.h5"
    write_h5(tmp_path / "other.h5", {"c2": {"kernel": np.ones((2, 2))}})
    write_h5(path, {"c1": {"kernel": np.ones((2, 2))}})
    with h5py.File(path, "a") as file:
        file["c2"] = h5py.ExternalLink(tmp_path / "other.h5", "c2")
        file["c3"] = h5py.SoftLink("/c3")
        file["c1/self"] = file["c1"]
    params, _ = attempt(lambda: weights.load_file(f"keras:{path}"))
    assert params.keys() == {"c1"}


@pytest.mark.parametrize("source", ["", ":", "keras:", "keras:/dev/zero", "pytorch:/", f"keras:{'x' * 300}", "x" * 300])
def test_sources_that_are_no_files(source):
    assert isinstance(attempt(lambda: weights.transfer(source, {}, {})), errors.UserError)


@pytest.mark.parametrize("kind", ["keras", "pytorch"])
def test_a_pipe_for_weights(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    assert isinstance(attempt(lambda: weights.load_file(f"{kind}:{tmp_path / 'pipe'}")), errors.UserError)


# Many more.


def fuzz(name: str, inputs: int, check) -> None:
    """Checks inputs drawn from one seed, and prints how many and what failed; `check` tells which were accepted."""
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


@pytest.mark.slow
def test_fuzz_idx(folder):
    fuzz("IDX reader", 100_000, lambda rng: check_idx(folder / "idx", *random_idx(rng)))


@pytest.mark.slow
def test_fuzz_zip(folder):
    fuzz("zip reader", 50_000, lambda rng: check_zip(folder / "gzip.zip", *random_zip(rng)))


@pytest.mark.slow
def test_fuzz_overrides(experiment):
    fuzz(
        "config overrides",
        20_000,
        lambda rng: not isinstance(check_overrides(experiment, *random_overrides(rng)), errors.UserError),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "pytorch"])
def test_fuzz_weights(folder, weight_files, kind):
    fuzz(f"weights, {kind}", 5_000, lambda rng: check_weights(folder, kind, mutated(rng, weight_files[kind])))


@pytest.mark.slow
def test_fuzz_record(restorable, caplog):
    caplog.set_level("ERROR", checkpoints.log.name)
    intact = restorable[0].read_bytes()
    fuzz("checkpoints' records", 500, lambda rng: check_record(restorable, mutated(rng, intact)))


@pytest.mark.slow
def test_accepted_overrides_can_be_built_and_some_trained(experiment, tmp_path):
    rng = random.Random(0)
    traced = 0
    while traced < 40:
        run = check_overrides(experiment, *random_overrides(rng))
        if not isinstance(run, errors.UserError):
            trace(run)
            traced += 1
    for i, extremes in enumerate(EXTREMES):
        run = prepare(experiment, *(f"--config.{override}" for override in extremes), "--config.training.steps=2")
        found = attempt(functools.partial(loop.train_and_evaluate, run.config, tmp_path / str(i)))
        assert isinstance(found, dict) or "not finite" in str(found), found
    print(f"{traced} accepted configs traced, {len(EXTREMES)} trained")
