"""What a network that is pretrained for another data set may see of it, and what its results say of that."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from emnist_jax import datasets
from emnist_jax.config import base
from emnist_jax.datasets import Split, duplicates
from emnist_jax.errors import UserError
from emnist_jax.training import loop, run, weights
from shared import idx_bytes, make_config

ROOT = Path(__file__).parent.parent
CHANGES = {"training.steps": 1, "transfer.target": "synthetic/digits"}


@pytest.fixture
def planted(monkeypatch):
    """Plants 3 test and 2 validation images of synthetic/digits in synthetic/mnist: one in validation, 4 in train."""
    load = run.datasets.load

    def load_planted(config):
        dataset = load(config)
        if config.name == "synthetic/mnist":
            own = config.copy_and_resolve_references()
            own.name = "synthetic/digits"
            digits = load(own)
            planted = np.concatenate([digits.test.images[:3], digits.validation.images[:2]])
            for name, images in (("train", planted[:4]), ("validation", planted[4:])):
                split = getattr(dataset, name)
                images = np.concatenate([images, split.images[len(images) :]])
                object.__setattr__(dataset, name, Split(images, split.labels))
        return dataset

    monkeypatch.setattr(run.datasets, "load", load_planted)


def test_images_that_the_target_tests_on_are_left_out(planted):
    clean = run.build(make_config(**CHANGES, **{"dataset.name": "synthetic/mnist"}))
    leaking = run.build(make_config(**CHANGES, **{"dataset.name": "synthetic/mnist", "transfer.allow_leak": True}))
    assert (clean.shared_images, leaking.shared_images) == (5, 5)
    target = run.datasets.load(make_config().dataset)
    looked_at = np.concatenate([target.validation.images, target.test.images])
    for name, planted in (("train", 4), ("validation", 1)):
        without, with_all = (getattr(built.dataset, name) for built in (clean, leaking))
        assert len(with_all.labels) - len(without.labels) == planted
        assert not duplicates.rows_in(without.images, looked_at).any()
        assert duplicates.rows_in(with_all.images, looked_at).sum() == planted
    assert (clean.leaked(), leaking.leaked()) == (False, True)


@pytest.mark.ci
def test_results_say_what_leaked_also_after_fine_tuning(planted, tmp_path, capsys, monkeypatch):
    told = {}
    for name, changes in {
        "clean": CHANGES,
        "leaking": {**CHANGES, "transfer.allow_leak": True},
        "unknown": {"training.steps": 1},
    }.items():
        source = tmp_path / name
        before = loop.train_and_evaluate(make_config(**changes, **{"dataset.name": "synthetic/mnist"}), source)
        fine_tuning = make_config(**{"training.steps": 1, "init_from": str(source)})
        after = loop.train_and_evaluate(fine_tuning, tmp_path / f"{name}_fine_tuned")
        told[name] = (before["shared_images"], before["leaked"], after["leaked"])
    assert told == {"clean": (5, False, False), "leaking": (5, True, True), "unknown": (None, False, None)}
    printed = capsys.readouterr().out
    assert "were trained on" in printed and "not known" in printed

    def leaked(source: str, **changes) -> bool | None:
        source = source if source.startswith("~") else str(tmp_path / source)
        return run.build(make_config(init_from=source, **changes)).leaked()

    assert [leaked(f"{name}_fine_tuned") for name in ("clean", "leaking", "unknown")] == [False, True, None]
    # Other images than those that were left out, or than those that were trained on, under the same names.
    for source in ("clean", "clean_fine_tuned"):
        assert leaked(source, **{"dataset.validation_examples": 30}) is None
        assert leaked(source, **{"dataset.seed": 1}) is None
    # A second pretraining with a target that the first did not leave out.
    assert leaked("unknown", **{"dataset.name": "synthetic/mnist"}, **CHANGES) is None
    assert leaked("clean", **{"dataset.name": "synthetic/mnist"}, **CHANGES) is False
    assert weights.leaked(make_config(init_from="keras:weights.h5"), "") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert leaked("~/clean") is False


@pytest.mark.parametrize(
    ("target_of_source", "target", "leaked"),
    [(None, None, False), ("other", None, False), ("ours", None, False), (None, "t", None), ("t", "t", False)],
)
def test_a_clean_source_is_clean_of_what_it_was_compared_with(monkeypatch, target_of_source, target, leaked):
    result = {"leaked": False, "dataset_sha256": "ours", "target_sha256": target_of_source}
    monkeypatch.setattr(weights, "_load", lambda source: SimpleNamespace(result=result))
    assert weights.leaked(make_config(init_from="a run"), "ours", target) is leaked


def test_a_target_that_cannot_be_compared_is_refused():
    for name in ("mnist", "folder", "emnist_pool"):
        with pytest.raises(UserError, match=f"target={name} cannot be compared with synthetic/digits"):
            run.build(make_config(**{"transfer.target": name}))


@pytest.mark.ci
def test_the_launch_script_pretrains_and_fine_tunes(tmp_path):
    flags = ("train_per_class=10", "test_per_class=2", "training.batch_size=16", "training.steps=2")
    flags = [f"--config.{'dataset.' if 'per_class' in flag else ''}{flag}" for flag in flags]
    command = [ROOT / "launch/transfer.sh", "4", tmp_path, *flags, "--config.evaluation.batch_size=47"]
    environment = {**os.environ, "SETS": "synthetic", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    before, after = (json.loads((tmp_path / half / "result.json").read_text()) for half in ("pretrained", "fine_tuned"))
    assert (before["dataset"], after["dataset"]) == ("synthetic/bymerge", "synthetic/balanced")
    assert before["model"] == after["model"] == "densenet_layer_4_2"
    assert before["shared_images"] is not None and after["leaked"] is False


def test_a_signal_to_the_launch_script_stops_its_training(tmp_path):
    python, calls = tmp_path / "python", tmp_path / "python.calls"
    python.write_text(
        "#!/usr/bin/env bash\ntrap 'kill %1; sleep 0.2; exit 75' TERM\necho $@ >>$0.calls\nsleep 60 &\nwait\n"
    )
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen([ROOT / "launch/transfer.sh", "3", tmp_path], env=environment)
    while not calls.exists():
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=30) == 75
    (call,) = calls.read_text().splitlines()
    assert "densenet.py:pretrain_3" in call and "dataset.name=emnist/byclass" in call


@pytest.mark.slow
def test_what_a_leak_is_worth(tmp_path):
    """Each test image is in the pretraining of one network; of noise, a network knows what it has seen."""
    rng = np.random.default_rng(0)
    images = {}
    for split, per_class in (("train", 12), ("test", 4)):
        labels = np.repeat(np.arange(47), per_class).astype(np.uint8)
        images[split] = rng.integers(0, 256, (len(labels), 28, 28), np.uint8)
        (tmp_path / f"emnist-pool-{split}-images-idx3-ubyte").write_bytes(idx_bytes(images[split]))
        (tmp_path / f"emnist-pool-{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    command = [sys.executable, ROOT / "launch/leak.py", f"--pool={tmp_path}", f"--workdir={tmp_path / 'runs'}"]
    done = subprocess.run([*command, "--seeds=1", "--epochs=100"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "runs/leak.json").read_text())
    seen_by = []
    for i in (0, 1):
        folder = tmp_path / f"runs/with_half_{i}"
        config = base().dataset
        config.name, config.data_dir, config.validation_examples = "emnist/bymerge", str(folder), 0
        seen_by.append(duplicates.rows_in(images["test"].swapaxes(1, 2), datasets.load(config).train.images))
        config.name = "emnist/balanced"
        assert not duplicates.rows_in(images["test"].swapaxes(1, 2), datasets.load(config).train.images).any()
        seen, unseen = record["right"]["pretrained"][i]
        assert seen > unseen + 10
        result = json.loads((folder / "fine_tuned_seed0/result.json").read_text())
        assert result["config"]["init_from"] == str(folder / "pretrained_seed0")
        assert sum(record["right"]["fine_tuned"][i]) == round(188 * result["test"]["top1"])
    assert (seen_by[0] != seen_by[1]).all() and seen_by[0].sum() == 94
    again = subprocess.run([*command, "--seeds=1", "--epochs=100"], capture_output=True, text=True, timeout=900)
    assert again.stdout == done.stdout
