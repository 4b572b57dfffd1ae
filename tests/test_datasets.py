"""Tests of the data sets: what the files say arrives, upright, and damage is named."""

import concurrent.futures
import dataclasses
import fcntl
import hashlib
import http.server
import io
import pathlib
import shutil
import struct
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import requests
from PIL import Image

from emnist_jax import datasets, errors
from emnist_jax.datasets import official
from shared import REAL_DATA, dataset_config, example_files, idx_bytes, needs_real_data, write_files


def assert_holds(dataset: datasets.Dataset, arrays) -> None:
    (train_images, train_labels), (test_images, test_labels) = arrays
    pairs = [
        (np.concatenate([dataset.train.images, dataset.validation.images]), train_images),
        (np.concatenate([dataset.train.labels, dataset.validation.labels]), train_labels),
        (dataset.test.images, test_images),
        (dataset.test.labels, test_labels),
    ]
    for got, expected in pairs:
        np.testing.assert_array_equal(got, expected)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.dtype == np.uint8 and split.images.flags.c_contiguous
        assert split.labels.dtype == np.int32


@pytest.mark.parametrize("form", ["gz", "plain", "dotted", "zip"])
@pytest.mark.parametrize("name", ["mnist", "emnist/balanced", "emnist/letters", "emnist_pool"])
def test_every_form_of_the_files_gives_upright_images_and_0_based_labels(tmp_path, name, form):
    files, arrays = example_files(name, num_train=60)
    write_files(tmp_path, files, form)
    dataset = datasets.load(dataset_config(name=name, data_dir=str(tmp_path), validation_examples=0))
    assert_holds(dataset, arrays)
    assert len(dataset.validation.images) == 0
    assert not dataset.synthetic


def test_emnist_files_are_transposed_and_letters_count_from_1(tmp_path):
    stored = np.zeros((26, 28, 28), np.uint8)
    stored[:, 0, :] = 255  # The file's first row is the first column of what was written.
    files = {}
    for split in ("train", "test"):
        files[f"emnist-letters-{split}-images-idx3-ubyte"] = idx_bytes(stored)
        files[f"emnist-letters-{split}-labels-idx1-ubyte"] = idx_bytes(np.arange(1, 27))
    write_files(tmp_path, files)
    config = dataset_config(name="emnist/letters", data_dir=str(tmp_path), validation_examples=0)
    dataset = datasets.load(config)
    assert (dataset.train.images[:, :, 0] == 255).all() and not dataset.train.images[:, :, 1:].any()
    assert "".join(dataset.class_names[i] for i in dataset.test.labels)[:4] == "ABCD"


def test_sizes_and_class_names():
    sizes = {
        name: (len(s.class_names), s.train_examples - s.validation_examples, s.validation_examples, s.test_examples)
        for name, s in official.SETS.items()
    }
    assert sizes == {
        "mnist": (10, 50_000, 10_000, 10_000),
        "fashion_mnist": (10, 50_000, 10_000, 10_000),
        "kmnist": (10, 50_000, 10_000, 10_000),
        "emnist/balanced": (47, 94_000, 18_800, 18_800),
        "emnist/bymerge": (47, 581_609, 116_323, 116_323),
        "emnist/byclass": (62, 581_609, 116_323, 116_323),
        "emnist/letters": (26, 104_000, 20_800, 20_800),
        "emnist/digits": (10, 200_000, 40_000, 40_000),
        "emnist/mnist": (10, 50_000, 10_000, 10_000),
        "emnist_pool": (47, 185_533, 18_800, 18_800),
    }
    merged = official.SETS["emnist/balanced"].class_names
    assert "".join(merged) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
    assert official.SETS["fashion_mnist"].class_names[9] == "Ankle boot"


def test_validation_is_the_last_rows_of_train(tmp_path, caplog):
    files, arrays = example_files()
    write_files(tmp_path, files)
    dataset = datasets.load(dataset_config(data_dir=str(tmp_path), validation_examples=3))
    assert "holds 12 training and 5 test images, not the official 60,000 and 10,000" in caplog.text
    np.testing.assert_array_equal(dataset.train.images, arrays[0][0][:9])
    np.testing.assert_array_equal(dataset.validation.labels, arrays[0][1][9:])


@pytest.mark.parametrize("count", [-1, 12, None])
def test_validation_must_leave_something_to_train_on(tmp_path, count):
    files, _ = example_files()
    write_files(tmp_path, files)
    with pytest.raises(errors.UserError, match="validation_examples"):
        datasets.load(dataset_config(data_dir=str(tmp_path), validation_examples=count))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="emnist/balance"), "did you mean 'emnist/balanced'"),
        (dict(name="mnist", train_per_class=3), "train_per_class"),
        (dict(name="mnist", test_per_class=3), "test_per_class"),
        (dict(name="emnist_pool"), "--config.dataset.data_dir"),
        (dict(name="mnist", data_dir="/nowhere"), "/nowhere"),
        (dict(name="synthetic/digits", data_dir="/nowhere"), "data_dir"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(errors.UserError, match=message):
        datasets.load(dataset_config(**changes))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


DAMAGE = {
    "empty": (IMAGES, lambda c: b"", "magic"),
    "wrong magic number": (IMAGES, lambda c: b"\0\0\x0d\x03" + c[4:], "0d03"),
    "labels for images": (IMAGES, lambda c: header(12) + bytes(12), "magic"),
    "header cut": (IMAGES, lambda c: c[:10], "header"),
    "payload too short": (IMAGES, lambda c: c[:-1], "9,407"),
    "payload too long": (IMAGES, lambda c: c + b"\0", "more"),
    "not 28x28": (IMAGES, lambda c: header(12, 14, 56) + c[16:], "14, 56"),
    "lying header": (IMAGES, lambda c: header(900_000, 28, 28) + c[16:], "9,408"),
    "absurd header": (IMAGES, lambda c: header(2**32 - 1, 28, 28) + c[16:], "damaged header"),
    "a label too few": (LABELS, lambda c: header(11) + c[8:-1], "11 labels"),
    "label out of range": (LABELS, lambda c: c[:-1] + b"\x0a", "0 to 10, expected 0 to 9"),
}


@pytest.mark.parametrize("form", ["gz", "plain", "zip"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_content_is_a_user_error_that_names_the_file(tmp_path, damage, form):
    files, _ = example_files()
    stem, spoil, message = DAMAGE[damage]
    files[stem] = spoil(files[stem])
    write_files(tmp_path, files, form)
    with pytest.raises(errors.UserError, match=message) as caught:
        datasets.load(dataset_config(data_dir=str(tmp_path), validation_examples=0))
    assert stem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "bit flip", "bad block", "crc", "trailing garbage"])
def test_damaged_gzip(tmp_path, damage):
    files, _ = example_files()
    write_files(tmp_path, files)
    path = tmp_path / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "bit flip":
        content[len(content) // 2] ^= 1
    elif damage == "bad block":
        content[10] = 7  # The first byte after gzip's header: deflate has no block type 3.
    elif damage == "crc":
        content[-8] ^= 1
    else:
        content += b"garbage"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=f"{IMAGES}.gz"):
        datasets.load(dataset_config(data_dir=str(tmp_path), validation_examples=0))


@pytest.mark.parametrize("damage", ["truncated", "bit flip", "member missing", "no zip"])
def test_damaged_zip(tmp_path, damage):
    files, _ = example_files("emnist/digits")
    if damage == "member missing":
        del files["emnist-digits-train-images-idx3-ubyte"]
    write_files(tmp_path, files, "zip")
    path = tmp_path / "gzip.zip"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "bit flip":
        content[5000] ^= 1
    elif damage == "no zip":
        content[:] = b"<html>404</html>"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match="gzip.zip:gzip/emnist-digits-train-images"):
        datasets.load(dataset_config(name="emnist/digits", data_dir=str(tmp_path), validation_examples=0))


def test_a_missing_file_is_named_with_the_names_looked_for(tmp_path):
    files, _ = example_files()
    del files[LABELS]
    write_files(tmp_path, files)
    with pytest.raises(errors.UserError) as caught:
        datasets.load(dataset_config(data_dir=str(tmp_path), validation_examples=0))
    for part in (str(tmp_path), f"{LABELS}.gz", "train-labels.idx1-ubyte", "gzip.zip"):
        assert part in str(caught.value)


# The sets as TFDS supplies them.


@pytest.mark.parametrize("name", [name for name in official.SETS if name != "emnist_pool"])
def test_tfds_records_a_url_and_a_checksum_for_every_file(name, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder(name, data_dir=tmp_path)
    names = {info.filename for info in builder.url_infos.values()}
    if name.startswith("emnist/"):
        assert names == {official.ZIP_NAME}
    else:
        assert names == {f"{stem}.gz" for stem in example_files(name)[0]}
    assert all(len(info.checksum) == 64 for info in builder.url_infos.values())


@pytest.fixture
def tfds_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "emnist/letters"])
def test_without_a_network_the_ways_out_are_named(tfds_dir, monkeypatch, name):
    def fail(*args, **kwargs):
        raise requests.ConnectionError("no\nnetwork")

    monkeypatch.setattr(requests, "get", fail)
    start = time.monotonic()
    with pytest.raises(errors.UserError) as caught:
        datasets.load(dataset_config(name=name))
    assert time.monotonic() - start < 15
    archive = "gzip.zip" if name == "emnist/letters" else "t10k-labels-idx1-ubyte.gz"
    for part in (f"/{archive}", str(tfds_dir / "downloads/manual"), "data_dir="):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_network_is_given_up(monkeypatch):
    def hang(*args, **kwargs):
        time.sleep(1)
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", hang)
    monkeypatch.setattr(official, "_PROBE_SECONDS", 0.1)
    with pytest.raises(requests.Timeout, match="0.1 s"):
        official._probe("http://localhost")


@pytest.fixture
def archive(tmp_path):
    """A builder whose one file, "file.gz", is served on this machine; and the server."""
    checksums = pytest.importorskip("tensorflow_datasets").download.checksums
    (tmp_path / "served").mkdir()
    (tmp_path / "served/file.gz").write_bytes(b"content")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "served")

        def log_message(self, *args):
            server.requests.append(args)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    checksum = hashlib.sha256(b"content").hexdigest()
    url = f"http://127.0.0.1:{server.server_port}/file.gz"
    info = checksums.UrlInfo(checksum=checksum, size=7, filename="file.gz")
    yield types.SimpleNamespace(name="mnist", url_infos={url: info}), server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_archive_is_downloaded_once(archive, tmp_path, monkeypatch):
    builder, _ = archive
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    first = official._fetch(builder, tmp_path / "downloads")
    assert first["file.gz"].read_bytes() == b"content"
    monkeypatch.setattr(official, "_probe", None)  # Any use of the network now fails.
    assert official._fetch(builder, tmp_path / "downloads") == first


def test_of_two_that_fetch_at_once_one_downloads(archive, tmp_path, monkeypatch):
    builder, server = archive
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        with open(downloads / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            both = [executor.submit(official._fetch, builder, downloads) for _ in range(2)]
            while len(server.requests) < 2:  # each asks whether there is a network
                time.sleep(0.01)
        paths = [fetch.result() for fetch in both]
    assert paths[0] == paths[1] and paths[0]["file.gz"].read_bytes() == b"content"
    assert len(server.requests) == 3


def test_what_is_downloaded_must_have_the_right_checksum(archive, tmp_path, monkeypatch):
    builder, _ = archive
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served/file.gz").write_bytes(b"changed")
    with pytest.raises(errors.UserError, match="NonMatchingChecksumError") as caught:
        official._fetch(builder, tmp_path / "downloads")
    assert "\n" not in str(caught.value)


def test_what_is_cached_must_have_the_right_checksum(archive, tmp_path, monkeypatch):
    builder, _ = archive
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path = official._fetch(builder, tmp_path / "downloads")["file.gz"]
    path.write_bytes(b"changed")
    with pytest.raises(errors.UserError, match=f"{path.name} .*SHA-256"):
        official._fetch(builder, tmp_path / "downloads")


def test_another_sets_file_of_the_same_name_is_passed_over(archive, tmp_path):
    builder, _ = archive
    manual = tmp_path / "downloads/manual"
    manual.mkdir(parents=True)
    (manual / "file.gz").write_bytes(b"another set's")
    with pytest.raises(errors.UserError, match="file.gz is not .*SHA-256 .* move another set's into manual/SET/"):
        official._fetch(builder, tmp_path / "downloads")
    (manual / "mnist").mkdir()
    (manual / "mnist/file.gz").write_bytes(b"content")
    assert official._fetch(builder, tmp_path / "downloads") == {"file.gz": manual / "mnist/file.gz"}


def test_files_of_another_set_with_the_same_names_are_refused(tmp_path, monkeypatch):
    files, _ = example_files("mnist")
    write_files(tmp_path, files)
    name = "t10k-labels-idx1-ubyte.gz"
    monkeypatch.setitem(official._NAMESAKES, "mnist", hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(datasets.load(dataset_config(data_dir=str(tmp_path), validation_examples=2)).test.labels) == 5
    with pytest.raises(errors.UserError, match=f"data_dir={tmp_path} holds the files of mnist, not of kmnist"):
        datasets.load(dataset_config(name="kmnist", data_dir=str(tmp_path), validation_examples=2))


def test_a_refusing_server_is_a_user_error(archive, tmp_path, monkeypatch):
    builder, _ = archive
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served/file.gz").unlink()
    with pytest.raises(errors.UserError, match="HTTPError: 404"):
        official._fetch(builder, tmp_path / "downloads")


def prepare(root: pathlib.Path, name: str, arrays) -> pathlib.Path:
    """Writes what TFDS would prepare from the arrays: PNGs in TFRecords, in hashed order."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import hashing
    from tensorflow_datasets.proto import tf_example_pb2

    builder = tfds.builder(name, data_dir=root)
    builder.data_path.mkdir(parents=True)
    split_infos = []
    for split, (images, labels) in zip(("train", "test"), arrays, strict=True):
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=builder.name,
            split=split,
            filetype_suffix="tfrecord",
        )
        info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[2, len(images) - 2],
            num_bytes=0,
            filename_template=template,
        )
        hasher = hashing.Hasher(split)
        rows = sorted(range(len(images)), key=hasher.hash_key)
        for path, shard_rows in zip(info.filepaths, (rows[:2], rows[2:]), strict=True):
            content = b""
            for row in shard_rows:
                example, png = tf_example_pb2.Example(), io.BytesIO()
                Image.fromarray(images[row]).save(png, "png")
                feature = example.features.feature
                feature["image"].bytes_list.value.append(png.getvalue())
                feature["label"].int64_list.value.append(int(labels[row]))
                record = example.SerializeToString()
                content += struct.pack("<Q4x", len(record)) + record + bytes(4)
            path.write_bytes(content)
        split_infos.append(info)
    builder.info.set_splits(tfds.core.splits.SplitDict(split_infos))
    builder.info.write_to_directory(builder.data_path)
    return pathlib.Path(builder.data_path)


def shrink(monkeypatch, name: str) -> None:
    """Makes the official sizes of the set those of `example_files`."""
    small = dataclasses.replace(official.SETS[name], train_examples=12, test_examples=5)
    monkeypatch.setitem(official.SETS, name, small)


@pytest.mark.parametrize("name", ["mnist", "emnist/balanced"])
def test_a_prepared_set_is_read_in_the_official_order(tfds_dir, monkeypatch, name):
    _, arrays = example_files(name)
    transposed = official.SETS[name].transposed
    stored = [(x.swapaxes(1, 2) if transposed else x, y) for x, y in arrays]
    prepare(tfds_dir, name, stored)
    shrink(monkeypatch, name)
    monkeypatch.setattr(official, "_fetch", None)
    assert_holds(datasets.load(dataset_config(name=name, validation_examples=4)), arrays)


def test_a_prepared_set_of_other_than_the_official_size_is_passed_over(tfds_dir, monkeypatch):
    _, arrays = example_files()
    prepare(tfds_dir, "mnist", arrays)
    monkeypatch.setattr(official, "_probe", lambda url: 1 / 0)
    with pytest.raises(errors.UserError, match="cannot download mnist"):
        datasets.load(dataset_config())


@pytest.mark.parametrize("damage", ["truncated", "bad length", "bad image", "shard missing", "bad json"])
def test_a_damaged_prepared_set_is_a_user_error(tfds_dir, monkeypatch, damage):
    _, arrays = example_files()
    folder = prepare(tfds_dir, "mnist", arrays)
    shrink(monkeypatch, "mnist")
    path = folder / "mnist-train.tfrecord-00001-of-00002"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-3:]
    elif damage == "bad length":
        content[6] = 0x7F
    elif damage == "bad image":
        content[content.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(content)
    if damage == "shard missing":
        path.unlink()
    if damage == "bad json":
        (folder / "dataset_info.json").write_text("{")
    with pytest.raises(errors.UserError, match=str(tfds_dir / "mnist")) as caught:
        datasets.load(dataset_config(validation_examples=0))
    assert "\n" not in str(caught.value)


# Real data.


@needs_real_data
def test_real_mnist_through_tfds_manual_folder_needs_no_network(tfds_dir):
    shutil.copytree(REAL_DATA / "mnist", tfds_dir / "downloads/manual", copy_function=shutil.copy)
    program = (
        "import sys, ml_collections\n"
        "from emnist_jax import datasets\n"
        f"config = ml_collections.ConfigDict({dataset_config().to_dict()!r})\n"
        "dataset = datasets.load(config)\n"
        "assert 'tensorflow' not in sys.modules\n"
        "print(len(dataset.train.images), dataset.test.labels[:5].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("50000 [7, 2, 1, 0, 4]\n", "")


@needs_real_data
def test_real_mnist_altered_by_one_byte_is_refused(tfds_dir):
    manual = tfds_dir / "downloads/manual"
    shutil.copytree(REAL_DATA / "mnist", manual, copy_function=shutil.copyfile)
    path = manual / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # The time stamp in gzip's header, which gzip itself does not check.
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=f"{path} .*SHA-256"):
        datasets.load(dataset_config())


@needs_real_data
def test_real_pool():
    folder = REAL_DATA / "emnist-pool"
    dataset = datasets.load(dataset_config(name="emnist_pool", data_dir=str(folder)))
    assert [len(s.images) for s in (dataset.train, dataset.validation, dataset.test)] == [
        185_533,
        18_800,
        18_800,
    ]
    assert np.bincount(dataset.test.labels).tolist() == [400] * 47
    lines = (folder / "emnist-pool-mapping.txt").read_text().split("\n")
    codes = [int(line.split()[1]) for line in lines if line]
    assert dataset.class_names == tuple(map(chr, codes))
    # Upright: a T's bar is on top, and an L's foot below.
    rows = np.arange(28)[:, None]
    for letter, above in (("T", True), ("L", False)):
        images = dataset.test.images[dataset.test.labels == dataset.class_names.index(letter)]
        mean = images.mean(axis=0)
        assert ((rows * mean).sum() / mean.sum() < 13.5) == above
