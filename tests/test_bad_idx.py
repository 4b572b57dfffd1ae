"""Bad IDX files, gzipped or not: never a traceback, a hang, memory beyond what a file holds, or a wrong answer.

The default tests of bad input try the same inputs each time. The slow ones draw many more: see `shared.fuzz`.
"""

import gzip
import math
import os
import random
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emnist_jax import datasets, errors
from emnist_jax.datasets import idx
from shared import (
    ARRAYS,
    IMAGES,
    LABELS,
    MEMBERS,
    archive_of,
    attempt,
    dataset_config,
    example_files,
    fuzz,
    idx_bytes,
    memory_of_at_most,
    mutated,
    randoms,
    repeated,
    write_files,
)


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
    write_files(tmp_path, files)
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


@pytest.mark.slow
def test_fuzz_idx(folder):
    fuzz("IDX reader", 100_000, lambda rng: check_idx(folder / "idx", *random_idx(rng)))
