"""Measures what it is worth if test images are in the pretraining: LeNet-5 on the EMNIST pool, each image both ways.

    python launch/leak.py POOL_FOLDER runs/leak [--seeds=3] [--epochs=10]

The pool's test images are split into two halves with as many of each class. For each seed, two networks are pretrained
on the pool's training images, the one together with the first half, the other with the second. Both are fine-tuned on
the same 517 training images of each class, and tested on both halves. So each test image is tested by a network that
has seen it and by one that has not, and the two differ in nothing else. It prints a table and writes
WORKDIR/leak.json. The same command resumes.

The folders that it makes have the names of ByMerge's and Balanced's files, as the pool's images stand for both.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

import emnist_jax
from emnist_jax import command_line, datasets
from emnist_jax.config import base

_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds, from 0 on", lower_bound=1)
_EPOCHS = flags.DEFINE_float("epochs", 10, "Of the pretraining, and of the fine-tuning")
_PER_CLASS = 517  # training images of the pool's rarest class


def main(pool: str, workdir: str) -> None:
    from emnist_jax.reporting.environment import environment
    from emnist_jax.training import loop

    config = base().dataset
    config.name, config.data_dir, config.validation_examples = "emnist_pool", pool, 0
    found = datasets.load(config)
    labels = found.test.labels
    half = np.zeros(len(labels), int)
    for label in range(len(found.class_names)):
        half[np.flatnonzero(labels == label)[1::2]] = 1
    fine_tuning = _first_of_each_class(found.train.labels, len(found.class_names))
    balanced = found.train.images[fine_tuning], found.train.labels[fine_tuning]
    folders = [Path(workdir, f"with_half_{i}") for i in (0, 1)]
    for i, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        images = np.concatenate([found.train.images, found.test.images[half == i]])
        _write(folder, "bymerge-train", images, np.concatenate([found.train.labels, labels[half == i]]))
        for name in ("bymerge-test", "balanced-test"):
            _write(folder, name, found.test.images, labels)
        _write(folder, "balanced-train", *balanced)

    right, programs = {"pretrained": [], "fine-tuned": []}, ({}, {})
    for seed in range(_SEEDS.value):
        for i, folder in enumerate(folders):
            pretrained = folder / f"pretrained_seed{seed}"
            changes = {"dataset.name": "emnist/bymerge", "transfer.target": "emnist/balanced"}
            changes |= {"transfer.allow_leak": True}
            loop.train_and_evaluate(_config(seed, folder, changes), pretrained, programs[0])
            changes = {"dataset.name": "emnist/balanced", "init_from": str(pretrained)}
            fine_tuned = folder / f"fine_tuned_seed{seed}"
            loop.train_and_evaluate(_config(seed, folder, changes), fine_tuned, programs[1])
            for name, run in (("pretrained", pretrained), ("fine-tuned", fine_tuned)):
                of_each = emnist_jax.load(run).logits(found.test.images).argmax(-1) == labels
                right[name].append([int(of_each[half == i].sum()), int(of_each[half != i].sum())])
    images = len(labels) // 2
    record = {
        "what": "right answers on the half of the test images that pretraining had, and on the other, by network",
        "network": "lenet5",
        "epochs": _EPOCHS.value,
        "seeds": _SEEDS.value,
        "images_per_half": images,
        "environment": environment(),
        "right": right,
    }
    Path(workdir, "leak.json").write_text(json.dumps(record, indent=1) + "\n")
    print("| network | leaked images, % | other images, % | difference, points, by seed |\n|---|---|---|---|")
    for name, of_networks in right.items():
        # Both networks of a seed: each image once among the leaked, and once among the others.
        percent = 100 * np.array(of_networks).reshape(_SEEDS.value, 2, 2).sum(1) / (2 * images)
        by_seed = ", ".join(f"{leaked - other:+.2f}" for leaked, other in percent)
        print(f"| {name} | {percent[:, 0].mean():.2f} | {percent[:, 1].mean():.2f} | {by_seed} |")


def _config(seed: int, folder: Path, changes: dict):
    config = base()
    config.seed, config.dataset.data_dir, config.dataset.validation_examples = seed, str(folder), 0
    config.model.name = "lenet5"
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.epsilon = "adam", 0.001, 1e-7
    config.training.batch_size, config.training.epochs, config.training.select = 512, _EPOCHS.value, "last"
    config.update_from_flattened_dict(changes)
    return config


def _first_of_each_class(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == label)[:_PER_CLASS] for label in range(classes)])


def _write(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    for kind, values in (("images-idx3", images.swapaxes(1, 2)), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder / f"emnist-{name}-{kind}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())


if __name__ == "__main__":
    command_line.run(main, config=None, positional=True)
