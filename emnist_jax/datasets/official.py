"""MNIST, Fashion-MNIST, KMNIST, the six EMNIST sets and the EMNIST pool.

Sizes, classes and orientation: Cohen et al. 2017 (https://arxiv.org/abs/1702.05373) and the files themselves. URLs and
SHA-256 sums: TensorFlow Datasets (TFDS), which is used without TensorFlow. A set is read from the first of these that
is there:

1. `data_dir`: a folder with the official files, or with NIST's gzip.zip.
2. A copy that TFDS has prepared under $TFDS_DATA_DIR (default ~/tensorflow_datasets).
3. The official archive in $TFDS_DATA_DIR/downloads(/manual), after TFDS has downloaded it if need be.

All three give the same rows in the same order. TFDS shuffles what it prepares. Its rows are put back into the order of
the official file, as the conventional validation split is the last rows.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import logging
import os
import pathlib
import struct
import textwrap
import threading
from collections.abc import Iterator

import numpy as np
import requests
from PIL import Image

from emnist_jax import errors
from emnist_jax.datasets import idx

log = logging.getLogger(__name__)

DIGITS = tuple("0123456789")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
# EMNIST keeps the small letters that look unlike their capitals. It merges the others with their capitals.
MERGED = (*DIGITS, *CAPITALS, *"abdefghnqrt")
BY_CLASS = (*DIGITS, *CAPITALS, *"abcdefghijklmnopqrstuvwxyz")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

# NIST's archive of all EMNIST sets.
ZIP_NAME = "gzip.zip"
# Three sets have files of the same names; these are the SHA-256 sums of one of them.
_NAMESAKE = "t10k-labels-idx1-ubyte.gz"
_NAMESAKES = {
    "mnist": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "fashion_mnist": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    "kmnist": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
}

_PROBE_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class OfficialSet:
    """A data set as its authors publish it.

    Attributes:
      class_names: Name of each class, by label.
      train_examples: Official number of training images.
      test_examples: Official number of test images.
      validation_examples: Number of the last training rows that are, by convention, for validation.
      train_prefix: Start of the names of the two training files, up to "-images-idx3-ubyte".
      test_prefix: The same for the test files.
      transposed: Whether rows and columns of the images are exchanged in the files.
      first_label: The smallest label in the files.
    """

    class_names: tuple[str, ...]
    train_examples: int
    test_examples: int
    validation_examples: int
    train_prefix: str = "train"
    test_prefix: str = "t10k"
    transposed: bool = False
    first_label: int = 0


def _emnist(split: str, *counts_and_classes, first_label: int = 0) -> OfficialSet:
    return OfficialSet(
        *counts_and_classes,
        train_prefix=f"emnist-{split}-train",
        test_prefix=f"emnist-{split}-test",
        transposed=True,
        first_label=first_label,
    )


# Validation: in the balanced sets, EMNIST's authors reserve the last training rows, as many as the test set has.
# ByMerge and ByClass have no such convention; ours is the same. The pool's training rows are in random order
# (chi-squared of the last 18,800 labels against all: 36.3, 46 degrees of freedom), so its last rows are a fair sample.
SETS = {
    "mnist": OfficialSet(DIGITS, 60_000, 10_000, 10_000),
    "fashion_mnist": OfficialSet(CLOTHES, 60_000, 10_000, 10_000),
    "kmnist": OfficialSet(HIRAGANA, 60_000, 10_000, 10_000),
    "emnist/balanced": _emnist("balanced", MERGED, 112_800, 18_800, 18_800),
    "emnist/bymerge": _emnist("bymerge", MERGED, 697_932, 116_323, 116_323),
    "emnist/byclass": _emnist("byclass", BY_CLASS, 697_932, 116_323, 116_323),
    "emnist/letters": _emnist("letters", CAPITALS, 124_800, 20_800, 20_800, first_label=1),
    "emnist/digits": _emnist("digits", DIGITS, 240_000, 40_000, 40_000),
    "emnist/mnist": _emnist("mnist", DIGITS, 60_000, 10_000, 10_000),
    # Real EMNIST images with our own splits: see docs/data.md. Never report it as an EMNIST set.
    "emnist_pool": _emnist("pool", MERGED, 204_333, 18_800, 18_800),
}

Arrays = tuple[np.ndarray, np.ndarray]


def read(name: str, data_dir: str | None) -> tuple[Arrays, Arrays]:
    """Reads a data set.

    Args:
      name: One of `SETS`.
      data_dir: Folder with the official files, or None for TFDS' copy or download.

    Returns:
      The training and the test split: upright images, uint8 `[N, 28, 28]`, and labels, int32 `[N]`.

    Raises:
      UserError: A file is missing or damaged, or cannot be downloaded.
    """
    official = SETS[name]
    if data_dir is not None:
        folder = pathlib.Path(os.path.expanduser(data_dir))
        try:
            if name in _NAMESAKES and (folder / _NAMESAKE).is_file():
                found = _sha256(folder / _NAMESAKE)
                if other := next((set_ for set_, sum_ in _NAMESAKES.items() if sum_ == found and set_ != name), None):
                    raise errors.UserError(
                        f"--config.dataset.data_dir={folder} holds the files of {other}, not of {name}"
                    )
            splits = _read_files(official, lambda stem: _find(folder, stem))
        except OSError as error:
            raise errors.UserError(f"cannot read --config.dataset.data_dir={folder}: {error.strerror}") from error
    elif name == "emnist_pool":
        raise errors.UserError("emnist_pool is not published; if you have it, pass --config.dataset.data_dir=FOLDER")
    else:
        splits = _read_tfds(name, official)
    if official.transposed:
        splits = [(np.ascontiguousarray(images.swapaxes(1, 2)), labels) for images, labels in splits]
    train, test = splits
    found, wanted = (len(train[0]), len(test[0])), (official.train_examples, official.test_examples)
    if found != wanted:
        counts = "%s holds %s training and %s test images, not the official %s and %s"
        log.warning(counts, data_dir, *(f"{count:,}" for count in (*found, *wanted)))
    return train, test


def _read_files(official: OfficialSet, find) -> list[Arrays]:
    """Reads both splits; `find` maps the name of a file, without ".gz", to an `idx.File`."""
    return [
        idx.read_split(
            find(f"{prefix}-images-idx3-ubyte"),
            find(f"{prefix}-labels-idx1-ubyte"),
            len(official.class_names),
            official.first_label,
        )
        for prefix in (official.train_prefix, official.test_prefix)
    ]


def _find(folder: pathlib.Path, stem: str) -> idx.File:
    # Unzipped copies of MNIST have "-idx3-" or ".idx3-" in their names.
    names = [f"{s}{suffix}" for s in (stem, stem.replace("-idx", ".idx")) for suffix in (".gz", "")]
    for path in (folder / name for name in names):
        if path.is_file():
            return idx.File(path)
    if (folder / ZIP_NAME).is_file():
        return _zip_member(folder / ZIP_NAME, stem)
    if not folder.is_dir():
        raise errors.UserError(f"--config.dataset.data_dir={folder} is no folder")
    raise errors.UserError(
        f"--config.dataset.data_dir={folder} has no {stem}; looked for {', '.join(names)} and {ZIP_NAME}"
    )


def _zip_member(archive: pathlib.Path, stem: str) -> idx.File:
    return idx.File(archive, f"gzip/{stem}.gz")


def _read_tfds(name: str, official: OfficialSet) -> list[Arrays]:
    # Imported here because it takes half a second, and only these sets need it.
    import tensorflow_datasets as tfds

    root = pathlib.Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")))
    try:
        builder = tfds.builder(name, data_dir=root)
    # A damaged dataset_info.json raises an exception of protobuf, json or TFDS.
    except Exception as error:
        reason = textwrap.shorten(str(error), 160)
        raise errors.UserError(
            f"TFDS cannot read what it prepared in {root / name} ({reason}); delete that folder"
        ) from error
    # `exists` comes first because TFDS writes a warning to stderr if the folder does not exist.
    if builder.data_path.exists() and builder.is_prepared():
        found = {split: info.num_examples for split, info in builder.info.splits.items()}
        if found == {"train": official.train_examples, "test": official.test_examples}:
            return [_read_prepared(builder, split) for split in ("train", "test")]
        # TFDS 4.9.10 cuts EMNIST Letters to 88,800 and 14,800 images.
        log.warning(
            "%s holds %s images, not the official ones; using the archive instead",
            builder.data_path,
            found,
        )
    paths = _fetch(builder, root / "downloads")
    if ZIP_NAME in paths:
        return _read_files(official, lambda stem: _zip_member(paths[ZIP_NAME], stem))
    return _read_files(official, lambda stem: idx.File(paths[f"{stem}.gz"]))


def _read_prepared(builder, split: str) -> Arrays:
    """Reads one split that TFDS has prepared, and restores the order of the official file."""
    import tensorflow_datasets as tfds
    from google.protobuf import message
    from tensorflow_datasets.core import hashing
    from tensorflow_datasets.proto import tf_example_pb2

    info = builder.info.splits[split]
    images = np.empty((info.num_examples, 28, 28), np.uint8)
    labels = np.empty(info.num_examples, np.int32)
    # TFDS sorts examples by a salted hash of their row in the official file.
    hasher = hashing.Hasher(split)
    rows = sorted(range(info.num_examples), key=hasher.hash_key)
    try:
        if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
            # This is TFDS' default format. TFDS reads it only with TensorFlow.
            records = (record for path in info.filepaths for record in _tfrecords(path))
        else:
            source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
            records = source.__getitems__(range(info.num_examples))
        for row, record in zip(rows, records, strict=True):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            images[row] = Image.open(io.BytesIO(feature["image"].bytes_list.value[0]))
            labels[row] = feature["label"].int64_list.value[0]
    except (OSError, ValueError, IndexError, struct.error, message.DecodeError) as error:
        raise errors.UserError(
            f"cannot read the {split} split that TFDS prepared in {builder.data_path} ({error}); delete that folder"
        ) from error
    num_classes = builder.info.features["label"].num_classes
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise errors.UserError(
            f"{builder.data_path} holds labels from {labels.min()} to {labels.max()} for "
            f"{num_classes} classes; delete that folder"
        )
    return images, labels


def _tfrecords(path: os.PathLike) -> Iterator[bytes]:
    """Yields the records of a TFRecord file. Each has its length before it and a CRC after it.

    The CRCs (CRC-32C, which the standard library lacks) are not checked, as the PNG images have their own.
    """
    with open(path, "rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q4x", header)
            # An example has about 300 bytes. The limit keeps a damaged length from taking all the memory.
            record = file.read(min(length, 1 << 20))
            if len(record) != length or len(file.read(4)) != 4:
                raise ValueError(f"{os.path.basename(path)} is truncated or corrupt")
            yield record


def _fetch(builder, downloads: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the paths of the official files by name, and downloads them if they are missing."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    manual = downloads / "manual"
    paths = {}
    for url, url_info in builder.url_infos.items():
        cached = downloads / builder.name / resource.get_dl_fname(url, url_info.checksum)
        places = (manual / builder.name / url_info.filename, manual / url_info.filename, cached)
        paths[url] = _verified([path for path in places if path.is_file()], url, url_info.checksum)
    missing = [url for url, path in paths.items() if path is None]
    if missing:
        try:
            # Without a network TFDS would retry for minutes.
            _probe(missing[0])
            log.info("downloading %s to %s", ", ".join(missing), downloads)
            downloads.mkdir(parents=True, exist_ok=True)
            with open(downloads / "lock", "w") as lock:
                with contextlib.suppress(OSError):  # a file system without locks
                    # One process downloads at a time. The others then find its files.
                    fcntl.flock(lock, fcntl.LOCK_EX)
                manager = tfds.download.DownloadManager(
                    download_dir=downloads, url_infos=builder.url_infos, dataset_name=builder.name
                )
                paths |= manager.download({url: url for url in missing})
        # TFDS' exception for a wrong checksum is no public class. Whatever fails, the user can do the same things.
        except Exception as error:
            # Without a connection, requests' own text is long and says little more.
            lost = isinstance(error, requests.ConnectionError)
            reason = f"{type(error).__name__}: {'no connection' if lost else error}"
            reason = textwrap.shorten(reason, 160)
            raise errors.UserError(
                f"cannot download {builder.name} ({reason}). Either put {' '.join(missing)} into "
                f"{manual / builder.name} (same file names), or pass --config.dataset.data_dir=FOLDER with the "
                "official files"
            ) from error
    return {builder.url_infos[url].filename: path for url, path in paths.items()}


def _probe(url: str) -> None:
    """Raises a `requests.RequestException` unless the server answers within `_PROBE_SECONDS`."""
    outcome = []

    def attempt():
        try:
            with requests.get(url, stream=True, timeout=5) as response:
                response.raise_for_status()
            outcome.append(None)
        except requests.RequestException as error:
            outcome.append(error)

    # It runs in a thread because requests' timeout does not cover the look-up of the host's name.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    error = outcome[0] if outcome else requests.Timeout(f"no answer within {_PROBE_SECONDS} s")
    if error is not None:
        raise error


def _verified(paths: list[pathlib.Path], url: str, checksum: str) -> pathlib.Path | None:
    """Returns the first path that holds the file; None if there are no paths. TFDS does not verify its cache."""
    for path in paths:
        if _sha256(path) == checksum:
            return path
    if paths:
        raise errors.UserError(
            f"{paths[0]} is not the file at {url}, whose SHA-256 is {checksum}; delete it, move another set's into "
            "manual/SET/, or pass --config.dataset.data_dir=FOLDER to use other files"
        )
    return None


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
