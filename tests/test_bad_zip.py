"""A bad archive in place of NIST's: never a traceback, a hang, much memory, a wrong answer, or anything extracted."""

import gzip
import io
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from emnist_jax import datasets, errors
from emnist_jax.datasets import idx
from shared import (
    ALLOWANCE,
    ARRAYS,
    IMAGES,
    LABELS,
    MEMBERS,
    archive_of,
    attempt,
    audited,
    dataset_config,
    example_files,
    fuzz,
    idx_bytes,
    memory_of_at_most,
    mutated,
    randoms,
    repeated,
    write_files,
    written,
)

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


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_zips_are_read_right_or_refused_and_nothing_is_extracted(folder, what):
    stored, readable = CRAFTED[what]
    path = folder / "gzip.zip"
    path.write_bytes(stored)
    with audited() as events, memory_of_at_most(ALLOWANCE):
        found = attempt(lambda: idx.read(idx.File(path, MEMBERS[0]), (28, 28)))
    assert events and not written(events)
    if readable:
        np.testing.assert_array_equal(found, IMAGES)
    else:
        assert isinstance(found, errors.UserError)


@repeated(60)
@given(randoms)
def test_a_set_from_a_damaged_zip_is_whole_or_an_error(folder, rng):
    name = "emnist/balanced"
    files, arrays = example_files(name)
    write_files(folder / "nist", files, "zip")
    path = folder / "nist/gzip.zip"
    path.write_bytes(mutated(rng, path.read_bytes()))
    found = attempt(
        lambda: datasets.load(dataset_config(name=name, data_dir=str(folder / "nist"), validation_examples=0))
    )
    if not isinstance(found, errors.UserError):
        for split, (images, labels) in zip((found.train, found.test), arrays, strict=True):
            np.testing.assert_array_equal(split.images, images)
            np.testing.assert_array_equal(split.labels, labels)


@pytest.mark.slow
def test_fuzz_zip(folder):
    fuzz("zip reader", 50_000, lambda rng: check_zip(folder / "gzip.zip", *random_zip(rng)))
