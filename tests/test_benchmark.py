"""The benchmark: PyTorch's networks are ours, each contender gets its turns, and the table says what was measured."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from emnist_jax import models
from emnist_jax.benchmark import MODELS
from emnist_jax.benchmarking import limits
from emnist_jax.benchmarking.contenders import CONTENDERS, SOURCES_WAY, Setting
from emnist_jax.benchmarking.race import race
from emnist_jax.reporting import speed
from parity import assert_parity, pytorch_reference, random_batch
from processes import Processes, run, wait_until

SETTING = Setting("lenet5", 16, "inference")


@pytest.mark.parity
@pytest.mark.parametrize("name", [*MODELS, "mnist_small"])
def test_a_network_in_pytorch_is_ours(name):
    pytest.importorskip("torch", reason="needs the extra 'benchmark'")
    from emnist_jax.benchmarking import pytorch_networks

    classes = Setting(name, 1, "training").num_classes
    model = models.MODELS[name](num_classes=classes)
    model = model.clone(**{f"{place}_dropout": 0.0 for place in model.dropout_places})
    network = pytorch_networks.create(name, classes)
    # The layouts of what is flattened differ, and no benchmark needs the weights in both.
    if name == "mnist_cnn":
        ours = limits.summarize(model).trainable
        assert sum(parameter.numel() for parameter in network.parameters()) == ours
        return
    for module in network.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    images, labels = random_batch(model.input_shape, 8, classes)
    assert_parity(model, images, labels, pytorch_reference(network, images, labels))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("contender", "task"),
    [
        *((contender, task) for contender in CONTENDERS for task in ("augmented training", "inference")),
        (SOURCES_WAY, "augmented training"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_contender_runs(contender, task):
    pytest.importorskip("torch", reason="needs the extra 'benchmark'")
    (outcome,) = race([contender], Setting("mnist_gap_v5", 16, task), rounds=1, seconds=0.01)
    assert not outcome.error and min(outcome.images_per_second) > 0 and outcome.peak_bytes > 1e6


def working(setting):
    return lambda batches: None


def broken(setting):
    raise ValueError("no such thing\nas this")


def dying(setting):
    return lambda batches: os._exit(1)


@pytest.mark.ci
def test_each_contender_gets_its_turns_and_failures_are_told():
    outcomes = {outcome.name: outcome for outcome in race([working, broken, dying], SETTING, 3, 0.001)}
    assert len(outcomes["working"].images_per_second) == 3
    assert outcomes["working"].error == "" and outcomes["working"].peak_bytes > 1e6
    assert outcomes["broken"].error == "ValueError: no such thing"
    assert outcomes["dying"].error == "its process ended"


def test_the_limit_is_the_lower_of_arithmetic_and_memory():
    # 28 x 28 x 6 + 10 x 10 x 16 + 120 + 84 + 47 values, from 5 x 5 x 3, 5 x 5 x 6, 400, 120 and 84 each.
    outputs = np.array([28 * 28 * 6, 10 * 10 * 16, 120, 84, 47])
    multiply_adds = float(outputs @ [75, 150, 400, 120, 84])
    plenty = 1e30
    arithmetic = {"multiply_adds": 1e9, "bytes": plenty}
    memory = {"multiply_adds": plenty, "bytes": 1e9}
    training = Setting("lenet5", 16, "training", "bfloat16")
    assert limits.images_per_second(SETTING, arithmetic) == pytest.approx(1e9 / multiply_adds)
    assert limits.images_per_second(training, arithmetic) == pytest.approx(1e9 / multiply_adds / 3)
    assert limits.images_per_second(SETTING, memory) == pytest.approx(1e9 / (2 * 4 * outputs.sum()))
    assert limits.images_per_second(training, memory) == pytest.approx(1e9 / (5 * 2 * outputs.sum()))
    assert limits.images_per_second(SETTING, {"multiply_adds": 1e9, "bytes": 1e6}) == pytest.approx(
        1e6 / (2 * 4 * outputs.sum())
    )


def outcome(speeds, error=""):
    return {"images_per_second": speeds, "first_batch_seconds": 1.25, "peak_bytes": 2e6, "error": error}


def test_a_row_has_the_ratio_to_the_fastest_pytorch():
    row = {
        **{"model": "lenet5", "batch_size": 1024, "task": "training", "dtype": "bfloat16"},
        "limit_images_per_second": 1000.0,
        "contenders": {
            "emnist_jax": outcome([100.0, 200.0, 300.0]),
            "pytorch": outcome([50.0, 50.0, 50.0]),
            "pytorch_channels_last": outcome([100.0, 100.0, 200.0]),
            "pytorch_compiled": outcome([], "RuntimeError: no compiler"),
            "pytorch_dataloader": outcome([9000.0] * 3),
        },
    }
    assert speed.line(row) == (
        "| `lenet5` | 1,024 | training, bfloat16 | 200 | 50 | 100 | – | 9,000 | 1.50 (1.00 to 2.00) | 20% | "
        "1.2, 1.2, – | 2, 2 |"
    )
    row["contenders"]["emnist_jax"] = outcome([100.0], "OutOfMemory")
    assert speed.ratio(row) is None and "| – | 50 | 100 | – | 9,000 | – | – | –, 1.2, – | –, 2 |" in speed.line(row)
    row["contenders"] = {"emnist_jax": outcome([100.0])}
    assert speed.ratio(row) is None and "| 100 | – | – | – | – | – | 10% |" in speed.line(row)


def test_examples_fill_whole_batches():
    images, labels = Setting("mnist_gap_v5", 3000, "training").examples()
    assert images.shape == (9000, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (9000,) and labels.dtype == jnp.int32 and labels.max() == 9


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--models=lenet", "did you mean 'lenet5'?"),
        ("--tasks=train", "did you mean 'training'?"),
        ("--batch_sizes=64,x", "whole numbers"),
    ],
)
def test_wrong_flags_are_one_line(argument, message):
    done = run("benchmark", argument)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.ci
def test_a_benchmark_that_is_stopped_leaves_no_process(tmp_path):
    with Processes(tmp_path) as processes:
        process = processes.start(sys.executable, "-m", "emnist_jax.benchmark", "--models=lenet5")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: len(children.read_text().split()) > 1, process)  # Python's resource tracker is one
        process.signal(signal.SIGTERM)
        assert process.code() == 75
        wait_until(lambda: not process.has_group)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_the_command_measures_ours_without_pytorch(tmp_path):
    done = run(
        "benchmark", "--models=lenet5", "--batch_sizes=16", "--rounds=2", "--seconds=0.01", f"--out={tmp_path}/out.json"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert [row["task"] for row in record["rows"]] == ["training", "augmented training", "inference"]
    for row in record["rows"]:
        assert row["contenders"].keys() == {"emnist_jax"}
        assert len(row["contenders"]["emnist_jax"]["images_per_second"]) == 2
    assert speed.table(record).count("`lenet5`") == 3
    assert "PyTorch is not installed" in done.stdout
