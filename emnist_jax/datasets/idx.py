"""Reads IDX files, the format of MNIST and EMNIST: plain, gzipped, or gzipped inside NIST's zip.

Format: http://yann.lecun.com/exdb/mnist (two zero bytes, type code 0x08 for unsigned bytes, number of dimensions, each
dimension as a big-endian uint32, then the values in C order). Nothing is extracted to disk. Memory is taken for the
bytes that a file really holds, not for those that its header claims.
"""

import contextlib
import dataclasses
import gzip
import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from emnist_jax import errors

_IMAGE_SHAPE = (28, 28)
# EMNIST has 814,255 images. A header with many more is damaged.
_MAX_EXAMPLES = 1_000_000
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """An IDX file, gzipped or not: `path` itself, or the member of that name in the zip `path`."""

    path: pathlib.Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Opens the stored bytes, which may be gzipped."""
        if self.member is None:
            with self.path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(self.path) as archive:
                member = archive.getinfo(self.member)
                # NIST uses these two. zipfile inflates the others (bzip2, LZMA) without a limit on memory.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile(
                        f"it is packed by method {member.compress_type}, neither stored nor deflated"
                    )
                # A gzip file hardly shrinks again. One that does may be mostly padding, which gzip reads byte by byte.
                if member.file_size > 2 * member.compress_size + _CHUNK_BYTES:
                    raise zipfile.BadZipFile(
                        f"{member.compress_size:,} bytes claim to hold a gzip file of {member.file_size:,}"
                    )
                with archive.open(member) as file:
                    yield file


def read_split(
    images_file: File, labels_file: File, num_classes: int, first_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images and the labels of one split.

    Args:
      images_file: File of the images.
      labels_file: File of the labels.
      num_classes: Number of classes.
      first_label: The smallest label in the file (1 for EMNIST Letters).

    Returns:
      Images as stored, uint8 `[N, 28, 28]`, and 0-based labels, int32 `[N]`.

    Raises:
      UserError: A file is damaged, the files hold different numbers of examples, or a label is out of range.
    """
    images = read(images_file, _IMAGE_SHAPE)
    labels = read(labels_file, ()).astype(np.int32) - first_label
    if len(images) != len(labels):
        raise errors.UserError(f"{images_file} holds {len(images):,} images, but {labels_file} {len(labels):,} labels")
    if not len(labels):
        raise errors.UserError(f"{labels_file} holds no labels")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise errors.UserError(
            f"{labels_file} holds labels from {labels.min() + first_label} to "
            f"{labels.max() + first_label}, expected {first_label} to "
            f"{first_label + num_classes - 1}"
        )
    return images, labels


def read(file: File, item_shape: tuple[int, ...]) -> np.ndarray:
    """Reads one IDX file of examples of the given shape.

    Args:
      file: The file.
      item_shape: The shape of one example, `()` for labels.

    Returns:
      uint8 `[N, *item_shape]`.

    Raises:
      UserError: It cannot be read, or it is not an intact IDX file of such examples.
    """
    try:
        with file.open() as stored:
            zipped = stored.peek(2)[:2] == b"\x1f\x8b"
            return _parse(gzip.GzipFile(fileobj=stored) if zipped else stored, file, item_shape)
    # `zipfile` raises KeyError if the member is missing, RuntimeError if it is encrypted, NotImplementedError (a
    # RuntimeError) if its version is unknown, ValueError if its name or offset is invalid, and EOFError without a text.
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, KeyError, RuntimeError, ValueError) as error:
        raise errors.UserError(f"cannot read {file}: {str(error) or 'it ends too early'}") from error


def _parse(content: BinaryIO, file: File, item_shape: tuple[int, ...]) -> np.ndarray:
    rank = 1 + len(item_shape)
    header = content.read(4 + 4 * rank)
    if header[:4] != bytes([0, 0, 8, rank]):
        raise errors.UserError(
            f"{file} is no IDX file of rank {rank}: its magic number is {header[:4].hex()!r}, "
            f"expected '000008{rank:02x}'"
        )
    if len(header) < 4 + 4 * rank:
        raise errors.UserError(f"{file} ends inside its header")
    shape = struct.unpack(f">{rank}I", header[4:])
    if shape[1:] != item_shape:
        raise errors.UserError(f"{file} holds images of {shape[1:]} pixels, expected {item_shape}")
    if shape[0] > _MAX_EXAMPLES:
        raise errors.UserError(f"{file} claims to hold {shape[0]:,} examples: damaged header")
    expected = math.prod(shape)
    values = bytearray()
    # It asks for one byte more than expected. This detects a file that is too long, and makes gzip verify its checksum.
    while chunk := content.read(min(_CHUNK_BYTES, expected + 1 - len(values))):
        values += chunk
    if len(values) != expected:
        found = f"{len(values):,}" if len(values) < expected else "more"
        raise errors.UserError(f"{file} should hold {expected:,} bytes after its header {shape}, but holds {found}")
    return np.frombuffer(values, np.uint8).reshape(shape)
