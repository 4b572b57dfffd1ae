"""Any number of devices trains the same, and goes on with what any other number saved."""

import itertools
import signal

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from emnist_jax.errors import Stopped
from emnist_jax.signals import StopRequest
from emnist_jax.training import loop, train_step
from processes import MAIN, TINY, Processes, result_of
from shared import make_config, parameters_of


def use_devices(monkeypatch, number: int):
    mesh = jax.make_mesh((number,), (train_step.AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:number])
    monkeypatch.setattr(train_step, "make_mesh", lambda: mesh)


def stop_within_the_second_epoch(monkeypatch):
    """Makes the next run find a signal at step 14 of 20: its fifth look, the fourth being after a validation."""
    found = itertools.chain([None] * 4, itertools.repeat(signal.SIGTERM.name))
    monkeypatch.setattr(StopRequest, "received", lambda self: next(found))


def smooth_config():
    """Returns a config whose rounding errors do not grow, as max-pooling's do where it has equals to choose from."""
    return make_config(**{"model.name": "lenet5", "model.activation": "tanh", "training.epochs": 2.0})


def assert_same_training(result: dict, expected: dict, rel: float):
    assert len(result["history"]) == len(expected["history"])
    for found, wanted in zip([*result["history"], result], [*expected["history"], expected], strict=True):
        for split in {"train", "validation", "test"} & wanted.keys():
            if wanted[split]:
                assert found[split] == pytest.approx(wanted[split], rel=rel), split
    assert result["test"]["examples"] == 50


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, loop.train_and_evaluate(smooth_config(), workdir)


@pytest.mark.ci
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_a_checkpoint_resumes_on_another_number_of_devices(uninterrupted, tmp_path, monkeypatch, before, after):
    with monkeypatch.context() as patch:
        use_devices(patch, before)
        stop_within_the_second_epoch(patch)
        with pytest.raises(Stopped, match="step 14 of 20"):
            loop.train_and_evaluate(smooth_config(), tmp_path)
    use_devices(monkeypatch, after)
    result = loop.train_and_evaluate(smooth_config(), tmp_path)
    assert "resumed at step 14 of 20" in (tmp_path / "log.txt").read_text()
    workdir, expected = uninterrupted
    assert_same_training(result, expected, 1e-5)
    np.testing.assert_allclose(parameters_of(tmp_path, 20), parameters_of(workdir, 20), atol=1e-6)


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path) as processes:
        yield processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "rel", "atol"),
    [
        (("lenet5", "--config.model.activation=tanh", "--config.optimizer.learning_rate=0.02"), 1e-5, 1e-6),
        (("mnist_gap_v3",), 1e-3, 5e-4),  # has BatchNorm, but see `smooth_config`
    ],
    ids=["lenet5", "mnist_gap_v3"],
)
def test_processes_with_1_2_4_and_8_devices_train_the_same(processes, tmp_path, model, rel, atol):
    # Neither the 80 training nor the 50 test images are a multiple of a batch.
    flags = (*TINY, "--config.training.batch_size=24", "--config.training.epochs=1", "--config.model.name", *model)
    results, parameters = {}, {}
    for devices in (1, 2, 4, 8):
        workdir = tmp_path / f"run_{devices}"
        process = processes.start(*MAIN, *flags, f"--workdir={workdir}", devices=devices)
        assert process.code() == 0, process.output
        results[devices], parameters[devices] = result_of(workdir), parameters_of(workdir, 3)
        assert results[devices]["device"].startswith(f"{devices} x CPU")
    for devices in (2, 4, 8):
        assert_same_training(results[devices], results[1], rel)
        np.testing.assert_allclose(parameters[devices], parameters[1], atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_a_batch_that_cannot_be_split_is_refused(processes, tmp_path, devices):
    flags = (*TINY, "--config.training.batch_size=18", f"--workdir={tmp_path / 'run'}")
    process = processes.start(*MAIN, *flags, devices=devices)
    assert process.code() == 2
    assert f"cannot be split over {devices} devices; the nearest that can is 16" in process.output
