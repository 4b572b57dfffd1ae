"""Whole runs in this process: what they write, how they go on after a stop, and what they carry over."""

import json
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from emnist_jax import config as config_lib
from emnist_jax.errors import UserError
from emnist_jax.training import checkpoints, evaluation, loop


def make_config(**changes):
    config = config_lib.base()
    config.dataset.name = "synthetic/digits"
    config.dataset.train_per_class = 20
    config.dataset.test_per_class = 5
    config.model.name = "mnist_gap_v3"
    config.model.initializer = "keras"
    config.augmentation.max_rotation_degrees = 5.0
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


def test_a_run_writes_what_it_found(finished):
    workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert json.loads((workdir / "config.json").read_text())["model"]["name"] == "mnist_gap_v3"
    assert result["parameters"] == 6053
    assert result["test"]["examples"] == 50
    assert result["validation"]["examples"] == 40
    assert result["epochs"] == 3
    assert result["test"]["top5"] > result["test"]["top1"]
    for key in ("train_seconds", "compile_seconds", "images_per_second", "inference_seconds"):
        assert result[key] > 0
    assert result["evaluation_seconds"] > result["inference_seconds"]
    assert {"seed", "device", "versions", "commit"} <= result.keys()
    log = (workdir / "log.txt").read_text()
    assert all(f"epoch {epoch} " in log for epoch in (1, 2, 3))
    assert "synthetic" in log


def test_tensorboard_has_every_epoch_once(finished):
    workdir, result = finished
    images = EventAccumulator(str(workdir)).Reload().Tags()["images"]
    assert {"augmented_inputs", "confusion_matrix"} <= set(images)
    for tag in ("train/loss", "validation/top1", "validation/top5", "learning_rate", "images_per_second"):
        assert [step for step, _ in scalars_of(workdir, tag)] == [10, 20, 30], tag
    assert scalars_of(workdir, "test/top1") == [(30, pytest.approx(result["test"]["top1"]))]
    # The first epoch is the best so far; the second is worse and halves the rate of the third.
    assert [rate for _, rate in scalars_of(workdir, "learning_rate")] == pytest.approx([0.02, 0.02, 0.01])


def test_a_finished_run_prints_its_result_again(finished, capsys):
    workdir, result = finished
    changed = (workdir / "checkpoints").stat().st_mtime_ns
    assert loop.train_and_evaluate(make_config(), workdir) == result
    assert (workdir / "checkpoints").stat().st_mtime_ns == changed
    printed = capsys.readouterr().out
    assert "6,053" in printed and f"tensorboard --logdir {workdir}" in printed.replace("\n", "")


def stop_after(monkeypatch, epochs: int):
    """Makes the next run end, as by Ctrl-C, once it has saved that many epochs."""
    save = checkpoints.Checkpoints.save

    def save_and_stop(self, state, record):
        save(self, state, record)
        if len(record.epochs) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_stop)


def fake_validation(monkeypatch, accuracies: list[float]):
    """Makes validation find these top-1 accuracies, epoch by epoch; the test set is measured as it is."""
    measure, left = evaluation.measure, list(accuracies)

    def measure_or_fake(logits, labels):
        measured = measure(logits, labels)
        return {**measured, "top1": left.pop(0)} if len(labels) == 40 else measured

    monkeypatch.setattr(evaluation, "measure", measure_or_fake)


def damage(checkpoint: Path):
    """Cuts every file of a checkpoint in half."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("stopped_after", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_best_epoch_is_tested_also_after_a_stop(tmp_path, monkeypatch, stopped_after):
    config = make_config(**{"training.epochs": 6.0})
    accuracies = [0.1, 0.9, 0.2, 0.3, 0.4, 0.5]
    if stopped_after:
        fake_validation(monkeypatch, accuracies)
        stop_after(monkeypatch, stopped_after)
        with pytest.raises(KeyboardInterrupt):
            loop.train_and_evaluate(config, tmp_path)
        monkeypatch.undo()
    fake_validation(monkeypatch, accuracies[stopped_after:])
    result = loop.train_and_evaluate(config, tmp_path)
    assert (result["step"], result["epochs"]) == (20, 6)
    assert result["validation"]["top1"] == 0.9
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [20, 50, 60]


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(tmp_path, monkeypatch):
    fake_validation(monkeypatch, [0.9, 0.2, 0.1])
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        loop.train_and_evaluate(make_config(), tmp_path)
    damage(tmp_path / "checkpoints/10")
    assert loop.train_and_evaluate(make_config(), tmp_path)["step"] == 20
    assert "checkpoint 10" in (tmp_path / "log.txt").read_text()


def test_a_damaged_newest_checkpoint_falls_back(finished, tmp_path):
    workdir, result = finished
    loop.train_and_evaluate(make_config(), tmp_path)
    (tmp_path / "result.json").unlink()
    damage(tmp_path / "checkpoints/30")
    again = loop.train_and_evaluate(make_config(), tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "checkpoint 30" in log and "cannot be read" in log and "resumed at step 20" in log
    assert numbers_of(again) == numbers_of(result)
    np.testing.assert_array_equal(parameters_of(tmp_path, 30), parameters_of(workdir, 30))


def test_early_stopping(tmp_path):
    config = make_config(**{"training.early_stopping_epochs": 1, "optimizer.learning_rate": 1e-30})
    config.schedule.name = "constant"
    config.training.ema_decay = 0.0
    config.model.batch_norm_momentum = 1.0  # so that nothing changes between epochs
    result = loop.train_and_evaluate(config, tmp_path)
    assert result["epochs"] == 2
    assert "early stopping" in (tmp_path / "log.txt").read_text()


def test_steps_override_epochs_and_the_last_epoch_may_be_short(tmp_path):
    config = make_config(**{"training.steps": 13, "training.select": "last"})
    result = loop.train_and_evaluate(config, tmp_path)
    assert (result["step"], result["epochs"]) == (13, 1.3)


def test_transfer_takes_the_tested_parameters_and_a_new_head(finished, tmp_path):
    workdir, result = finished
    config = make_config(**{"init_from": str(workdir), "training.steps": 1, "optimizer.learning_rate": 1e-30})
    config.training.ema_decay = 0.0
    config.model.batch_norm_momentum = 1.0
    same = loop.train_and_evaluate(config, tmp_path / "same")
    assert same["test"]["top1"] == result["test"]["top1"]

    config.dataset.name = "synthetic/letters"
    loop.train_and_evaluate(config, tmp_path / "letters")
    assert "keeps its initial weights" in (tmp_path / "letters/log.txt").read_text()
    config.model.name = "mnist_gap_v2"
    with pytest.raises(UserError, match="another network"):
        loop.train_and_evaluate(config, tmp_path / "other")
    config.init_from = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no finished run"):
        loop.train_and_evaluate(config, tmp_path / "missing")
    # A start that failed leaves the workdir to the corrected command.
    assert not (tmp_path / "missing/config.json").exists()
    damage(tmp_path / "same/checkpoints")
    config.init_from = str(tmp_path / "same")
    with pytest.raises(UserError, match="cannot be read"):
        loop.train_and_evaluate(config, tmp_path / "missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.batch_size": 18}, "nearest that can is 16"),
        ({"training.batch_size": 1000}, "more than the 160 training images"),
        ({"dataset.validation_examples": 0}, "select=last"),
        ({"model.name": "densnet"}, "did you mean 'densenet'"),
        ({"optimizer.name": "nestrov"}, "did you mean 'nesterov'"),
        ({"schedule.name": "cosin"}, "did you mean 'cosine'"),
        ({"dataset.name": "emnist/ballanced"}, "did you mean 'emnist/balanced'"),
        ({"training.label_smoothing": 1.5}, "between 0 and 1"),
        ({"training.select": "first"}, "'first'"),
        ({"model.dropout.block": 0.5}, "block_dropout"),
    ],
)
def test_bad_values_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train_and_evaluate(make_config(**changes), tmp_path)


def test_another_configs_workdir_is_refused(finished):
    with pytest.raises(UserError, match=r"seed was 0, is 1"):
        loop.train_and_evaluate(make_config(seed=1), finished[0])


def test_a_loss_that_has_blown_up_is_said_at_the_end_of_the_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "BLOWN_UP", 0.1)
    loop.train_and_evaluate(make_config(**{"training.steps": 2}), tmp_path)
    assert (
        "times that of chance: training has diverged; lower config.optimizer.learning_rate"
        in (tmp_path / "log.txt").read_text()
    )


def test_a_folder_of_other_things_is_no_workdir(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"is not empty and holds no run \(but thesis.tex\)"):
        loop.train_and_evaluate(make_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_init_from_refuses_a_network_that_computes_something_else(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    config = make_config(**{"init_from": str(workdir), "training.steps": 1, "model.activation": "elu"})
    with pytest.raises(UserError, match="holds another network: activation is relu, not elu"):
        loop.train_and_evaluate(config, tmp_path / "elu")
    config = make_config(**{"init_from": str(workdir), "training.steps": 1, "dataset.mean": 0.5})
    loop.train_and_evaluate(config, tmp_path / "mean")
    assert "init_from: dataset.mean was 0.1307 there, is 0.5 here" in (tmp_path / "mean/log.txt").read_text()
