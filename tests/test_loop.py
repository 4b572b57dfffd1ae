"""Whole runs in this process: what they write, how they go on after a stop, and what they carry over."""

import json
import logging
import math
import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from emnist_jax.environment import environment
from emnist_jax.errors import UserError
from emnist_jax.inference import classifier
from emnist_jax.training import checkpoints, evaluation, loop, train_step, weights
from shared import damage, fake_validation, make_config, numbers_of, parameters_of, scalars_of


def test_a_run_writes_what_it_found(finished):
    workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert json.loads((workdir / "config.json").read_text())["model"]["name"] == "tiny"
    assert (result["parameters"], result["trainable_parameters"]) == (322, 306)
    assert result["test"]["examples"] == 50
    assert result["validation"]["examples"] == 40
    assert result["epochs"] == 3
    assert result["test"]["top5"] > result["test"]["top1"]
    for key in ("train_seconds", "compile_seconds", "inference_seconds"):
        assert result[key] > 0
    assert result["seconds_per_epoch"] == pytest.approx(result["train_seconds"] / 3)
    assert result["images_per_second"] == pytest.approx(3 * 10 * 16 / result["train_seconds"])
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


def test_a_run_that_chooses_does_not_look_at_the_test_images(tmp_path, finished, capsys, monkeypatch):
    def batches(self, images, of=evaluation.Evaluator.batches):
        assert len(images) == 40  # the test split has 50
        return of(self, images)

    monkeypatch.setattr(evaluation.Evaluator, "batches", batches)
    _, tested = finished
    config = make_config()
    config.evaluation.test = False
    result = loop.train_and_evaluate(config, tmp_path)
    assert result["test"] is result["evaluation_seconds"] is result["inference_seconds"] is None
    assert (result["validation"], result["step"]) == (tested["validation"], tested["step"])
    table = capsys.readouterr().out.partition("tiny on")[2]
    assert "validation top-1" in table and "test" not in table.partition("tensorboard")[0]
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert not [tag for tag in tags["scalars"] if "test" in tag]
    assert scalars_of(tmp_path, "chosen/top1") == [(30, pytest.approx(result["validation"]["top1"]))]
    config.dataset.validation_examples, config.training.select = 0, "last"
    config.schedule.name, config.training.early_stopping_epochs = "constant", None
    with pytest.raises(UserError, match="without validation images there is no .* accuracy but the test's"):
        loop.train_and_evaluate(config, tmp_path / "unmeasured")


def test_each_epoch_and_each_seed_has_its_own_order(tmp_path):
    orders = []
    for seed in (0, 1):
        run = loop.build(make_config(seed=seed))
        training = loop.Training(run, tmp_path, None)
        training.epoch_order = train_step.make_epoch_order(len(run.dataset.train.labels), 16, run.mesh)
        for epochs in ([], [{}]):
            training.record.epochs = epochs
            orders.append(np.asarray(training._order()).tobytes())
    assert len(set(orders)) == 4


def test_the_metrics_of_an_epoch_are_its_own(finished):
    workdir, _ = finished
    state = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints/30/state")
    assert state["metrics"]["loss"]["count"] == 0


def test_a_finished_run_prints_its_result_again(finished, capsys):
    workdir, result = finished
    changed = (workdir / "checkpoints").stat().st_mtime_ns
    assert loop.train_and_evaluate(make_config(), workdir) == result
    assert (workdir / "checkpoints").stat().st_mtime_ns == changed
    printed = capsys.readouterr().out
    assert re.search(r"parameters\W+306\b", printed) and f"tensorboard --logdir {workdir}" in printed.replace("\n", "")


def stop_after(monkeypatch, epochs: int):
    """Makes the next run end, as by Ctrl-C, once it has saved that many epochs."""
    save = checkpoints.Checkpoints.save

    def save_and_stop(self, state, record):
        record.compile_seconds = 1000.0
        save(self, state, record)
        if len(record.epochs) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_stop)


@pytest.mark.parametrize("stopped_after", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_best_epoch_is_tested_also_after_a_stop(tmp_path, monkeypatch, stopped_after):
    config = make_config(**{"training.epochs": 5.0})
    accuracies = [0.1, 0.9, 0.2, 0.3, 0.4]
    if stopped_after:
        fake_validation(monkeypatch, "top1", accuracies)
        stop_after(monkeypatch, stopped_after)
        with pytest.raises(KeyboardInterrupt):
            loop.train_and_evaluate(config, tmp_path)
        monkeypatch.undo()
    fake_validation(monkeypatch, "top1", accuracies[stopped_after:])
    result = loop.train_and_evaluate(config, tmp_path)
    assert (result["step"], result["epochs"]) == (20, 5)
    assert result["validation"]["top1"] == 0.9
    assert (result["compile_seconds"] > 1000) == (stopped_after > 0), "that of all starts counts"
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [20, 40, 50]


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(tmp_path, monkeypatch):
    fake_validation(monkeypatch, "top1", [0.9, 0.2, 0.1])
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        loop.train_and_evaluate(make_config(), tmp_path)
    damage(tmp_path / "checkpoints/10")
    assert loop.train_and_evaluate(make_config(), tmp_path)["step"] == 20
    assert "checkpoint 10" in (tmp_path / "log.txt").read_text()


def test_a_damaged_newest_checkpoint_falls_back(finished, tmp_path, monkeypatch):
    workdir, result = finished
    again_in = shutil.copytree(workdir, tmp_path / "run")
    (again_in / "result.json").unlink()
    damage(again_in / "checkpoints/30")
    monkeypatch.setattr(loop, "environment", lambda: environment() | {"commit": "another"})
    again = loop.train_and_evaluate(make_config(), again_in)
    log = (again_in / "log.txt").read_text()
    assert "checkpoint 30" in log and "cannot be read" in log and "resumed at step 20" in log
    assert numbers_of(again) == numbers_of(result)
    assert again["commit"] == f"{result['commit']}, another"
    np.testing.assert_array_equal(parameters_of(again_in, 30), parameters_of(workdir, 30))


def test_early_stopping_ends_a_run_whose_validation_loss_does_not_fall(tmp_path, monkeypatch):
    fake_validation(monkeypatch, "loss", [1.0, 0.9, 0.95, 0.92])
    config = make_config(**{"training.early_stopping_epochs": 2, "training.epochs": 5.0})
    result = loop.train_and_evaluate(config, tmp_path)
    assert [epoch["validation"]["loss"] for epoch in result["history"]] == [1.0, 0.9, 0.95, 0.92]
    assert result["epochs"] == 4
    assert "early stopping" in (tmp_path / "log.txt").read_text()


def test_steps_override_epochs_and_the_last_epoch_may_be_short(tmp_path, monkeypatch):
    confusions = []
    monkeypatch.setattr(loop.figures, "confusion_figure", lambda counts, *_: confusions.append(counts))
    config = make_config(**{"training.steps": 13, "training.select": "last", "schedule.name": "cosine"})
    result = loop.train_and_evaluate(config, tmp_path)
    assert (result["step"], result["epochs"]) == (13, 1.3)
    assert confusions[0].sum(1).tolist() == [5] * 10  # test images of each class
    assert confusions[0].trace() == round(50 * result["test"]["top1"])
    # The rates of the epochs' last steps, 9 and 12 of 0 to 12.
    rates = [0.02 * (1 + math.cos(math.pi * step / 13)) / 2 for step in (9, 12)]
    assert [epoch["learning_rate"] for epoch in result["history"]] == pytest.approx(rates, rel=1e-5)
    for epoch, steps in zip(result["history"], (10, 3), strict=True):
        assert epoch["images_per_second"] == pytest.approx(steps * 16 / epoch["seconds"])
    assert loop.build(make_config(**{"training.epochs": 1.1})).total_steps == 11  # 1.1 * 10 is a little more


def test_transfer_begins_with_the_tested_network(finished, tmp_path):
    workdir, result = finished
    config = make_config(**{"init_from": str(workdir), "training.steps": 1})
    again = loop.train_and_evaluate(config, tmp_path)
    assert f"params and batch_stats come from {workdir}" in (tmp_path / "log.txt").read_text()
    assert again["step"] == 1

    run = loop.build(config)
    variables, test, validation = run.initial_state().variables, run.dataset.test, run.dataset.validation
    evaluator = evaluation.Evaluator(run.model, run.config, run.mesh, variables, (28, 28), len(test.labels))
    logits = evaluator.logits(variables, evaluator.batches(validation.images), len(validation.labels))
    # Of the moving averages, which the new run begins with.
    assert evaluation.measure(logits, validation.labels) == pytest.approx(result["validation"], rel=1e-5)
    logits = evaluator.logits(variables, evaluator.batches(test.images), len(test.labels))
    assert evaluation.measure(logits, test.labels) == pytest.approx(result["test"], rel=1e-5)
    assert len(test.labels) % evaluator.batch_size  # so that the last batch is filled up
    x = train_step.network_input(test.images, config, run.model.input_shape)
    np.testing.assert_allclose(logits, run.model.clone(axis_name=None).apply(variables, x, train=False), 1e-4, 1e-5)


def test_transfer_to_other_classes_keeps_the_new_head(finished, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("emnist_jax"), "propagate", True)
    caplog.set_level("INFO", "emnist_jax")
    workdir, result = finished
    ours = abstract_variables(**{"dataset.name": "synthetic/letters"})
    params, batch_stats = weights.initial_weights(str(workdir), **ours)
    assert "keeps its initial weights" in caplog.text
    same, _ = weights.initial_weights(str(workdir), **abstract_variables())
    assert params["head"] == ours["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, {**params, "head": same["head"]}, same)
    assert batch_stats.keys() == ours["batch_stats"].keys()


def test_transfer_from_a_network_that_export_wrote_or_that_comes_with_the_package(finished, tmp_path):
    workdir, result = finished
    path = tmp_path / "network.safetensors"
    classifier.load(workdir).save(path)
    of_run, of_file = (weights.initial_weights(str(source), **abstract_variables()) for source in (workdir, path))
    jax.tree.map(np.testing.assert_array_equal, of_file, of_run)
    other_classes, _ = weights.initial_weights(str(path), **abstract_variables(**{"dataset.name": "synthetic/letters"}))
    assert isinstance(other_classes["head"]["kernel"], jax.ShapeDtypeStruct)
    config = make_config(init_from=str(path))
    digest = result["dataset_sha256"]
    assert (weights.leaked(config, digest), weights.leaked(config, "another")) == (False, None)
    model = loop.build(config).model
    weights.check_same_network(config, model)
    with pytest.raises(UserError, match="holds another network: activation is"):
        weights.check_same_network(config, model.clone(activation="swish"))

    shipped = abstract_variables(**{"model.name": "mnist_squeeze_10"})
    params, _ = weights.initial_weights("mnist_squeeze_10", **shipped)
    variables = classifier.load("mnist_squeeze_10").variables
    jax.tree.map(np.testing.assert_array_equal, params, variables["params"])


def test_a_failed_transfer_is_one_error_and_leaves_the_workdir_as_it_was(finished, tmp_path):
    config = make_config(init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="config.init_from=.*: there is no .*/nowhere"):
        loop.train_and_evaluate(config, tmp_path / "missing")
    # A start that failed leaves the workdir to the corrected command.
    assert not (tmp_path / "missing/config.json").exists()
    with pytest.raises(UserError, match="another network"):
        weights.initial_weights(str(finished[0]), **abstract_variables(**{"model.name": "mnist_gap_v2"}))
    damaged = shutil.copytree(finished[0], tmp_path / "damaged")
    damage(damaged / "checkpoints")
    with pytest.raises(UserError, match="cannot load the network .*/damaged"):
        weights.initial_weights(str(damaged), **abstract_variables())


def abstract_variables(**changes) -> dict:
    """Returns the shapes of a network's parameters and running statistics."""
    state = loop.build(make_config(**changes)).abstract_state
    return {"params": state.params, "batch_stats": state.batch_stats}


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


def test_init_from_refuses_a_network_that_computes_something_else(finished, tmp_path):
    workdir, _ = finished
    config = make_config(**{"init_from": str(workdir), "training.steps": 1, "model.activation": "elu"})
    with pytest.raises(UserError, match="holds another network: activation is relu, not elu"):
        loop.train_and_evaluate(config, tmp_path / "elu")
    config = make_config(**{"init_from": str(workdir), "training.steps": 1, "dataset.mean": 0.5})
    loop.train_and_evaluate(config, tmp_path / "mean")
    assert "init_from: dataset.mean was 0.1307 there, is 0.5 here" in (tmp_path / "mean/log.txt").read_text()
