"""Measures what it is worth if test images are in the pretraining: on the EMNIST pool, each image both ways.

    python launch/leak.py --pool=FOLDER [--model=lenet5] [--out=results/leak/lenet5.json] [--seeds=3] [--epochs=5]

The pool's test images are split into two halves, 200 of each class. For each seed, two networks are pretrained on the
pool's training images, the one together with the first half, the other with the second. Both are fine-tuned on the same
517 training images of each class, and tested on both halves. So each test image is tested by a network that has seen it
and by one that has not. It prints a table, and writes the counts to a file. The same command resumes.

The folders that it makes have the names of ByMerge's and Balanced's files, as the pool's images stand for both.
"""

import json
import os
from pathlib import Path

import numpy as np
from absl import flags

import emnist_jax
from emnist_jax import command_line, datasets
from emnist_jax.config import base
from emnist_jax.errors import UserError

_POOL = flags.DEFINE_string("pool", None, "Folder of the pool's files")
_MODEL = flags.DEFINE_string("model", "lenet5", "Network", allow_override=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Takes the images and the runs; default: runs/leak_MODEL", allow_override=True
)
_OUT = flags.DEFINE_string(
    "out", None, "JSON file that takes the counts; default: WORKDIR/leak.json", allow_override=True
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds, from 0 on", lower_bound=1)
_EPOCHS = flags.DEFINE_float("epochs", 5, "Of the pretraining, and of the fine-tuning")
_PER_CLASS = 517  # training images of the pool's rarest class


def main() -> None:
    from emnist_jax.environment import environment
    from emnist_jax.reporting import tables, terminal
    from emnist_jax.training import hosts, loop

    hosts.check_devices()
    if not _POOL.value:
        raise UserError("pass --pool=FOLDER_OF_ITS_FILES")
    config, workdir = base().dataset, Path(os.path.expanduser(_WORKDIR.value or f"runs/leak_{_MODEL.value}"))
    config.name, config.data_dir, config.validation_examples = "emnist_pool", _POOL.value, 0
    pool = datasets.load(config)
    half = _halves(pool.test.labels)
    _write_sets(workdir, pool, half)
    terminal.CONSOLE.quiet = True  # the log lines of the runs are in their folders
    right = {"pretrained": [], "fine_tuned": []}
    for seed in range(_SEEDS.value):
        for i in (0, 1):
            folder = workdir / f"with_half_{i}"
            before = None
            for name, dataset in (("pretrained", "emnist/bymerge"), ("fine_tuned", "emnist/balanced")):
                run = folder / f"{name}_seed{seed}"
                loop.train_and_evaluate(_config(seed, dataset, folder, before), run)
                correct = emnist_jax.load(run).logits(pool.test.images).argmax(-1) == pool.test.labels
                right[name].append([int(correct[half == i].sum()), int(correct[half != i].sum())])
                print(f"{run}: {right[name][-1]} of {[int((half == i).sum()), int((half != i).sum())]}", flush=True)
                before = run
    record = {
        "what": "right answers on the half of the test images that pretraining had, and on the other, by network",
        "network": _MODEL.value,
        "epochs": _EPOCHS.value,
        "seeds": _SEEDS.value,
        "images": len(half),
        "pool_sha256": pool.sha256,
        "environment": environment(),
        "right": right,
    }
    out = Path(os.path.expanduser(_OUT.value)) if _OUT.value else workdir / "leak.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(tables.leaks({_MODEL.value: record}))


def _halves(labels: np.ndarray) -> np.ndarray:
    """Returns 0 or 1 for each image, in turns within its class."""
    half = np.zeros(len(labels), int)
    for label in np.unique(labels):
        half[np.flatnonzero(labels == label)[1::2]] = 1
    return half


def _write_sets(workdir: Path, pool: datasets.Dataset, half: np.ndarray) -> None:
    """Writes the files of both networks' sets.

    Raises:
      UserError: The workdir holds those of another pool.
    """
    train, test = pool.train, pool.test
    first = [np.flatnonzero(train.labels == label)[:_PER_CLASS] for label in range(len(pool.class_names))]
    fine_tuning = datasets.Split(train.images[np.concatenate(first)], train.labels[np.concatenate(first)])
    workdir.mkdir(parents=True, exist_ok=True)
    digest = workdir / "pool.sha256"
    if digest.exists() and digest.read_text() != pool.sha256:
        raise UserError(f"{workdir} was begun with another pool: pass another --workdir")
    digest.write_text(pool.sha256)
    for i in (0, 1):
        pretraining = datasets.Split(
            np.concatenate([train.images, test.images[half == i]]),
            np.concatenate([train.labels, test.labels[half == i]]),
        )
        for name, split in (
            ("bymerge-train", pretraining),
            ("bymerge-test", test),
            ("balanced-train", fine_tuning),
            ("balanced-test", test),
        ):
            folder = workdir / f"with_half_{i}"
            folder.mkdir(exist_ok=True)
            for kind, values in (("images-idx3", split.images.swapaxes(1, 2)), ("labels-idx1", split.labels)):
                header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
                (folder / f"emnist-{name}-{kind}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())


def _config(seed: int, dataset: str, folder: Path, init_from: Path | None):
    config = base()
    config.seed = seed
    config.init_from = str(init_from) if init_from else None
    config.dataset.name, config.dataset.data_dir, config.dataset.validation_examples = dataset, str(folder), 0
    config.model.name = _MODEL.value
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.epsilon = "adam", 0.001, 1e-7
    config.training.batch_size, config.training.epochs, config.training.select = 512, _EPOCHS.value, "last"
    return config


if __name__ == "__main__":
    command_line.run(main, config=None)
