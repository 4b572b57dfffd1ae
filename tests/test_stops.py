"""Stops and faults: nothing is lost, nothing doubled, and what went wrong is said in one line."""

import contextlib
import errno
import fcntl
import gc
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from emnist_jax import datasets
from emnist_jax.errors import Stopped, UserError
from emnist_jax.signals import SIGNALS, StopRequest
from emnist_jax.training import checkpoints, evaluation, loop, train_step
from emnist_jax.training.record import Record
from processes import XLA_FLAGS, not_under_nohup
from shared import (
    damage,
    example_files,
    fake_validation,
    make_config,
    numbers_of,
    parameters_of,
    scalars_of,
    write_files,
)

ROOT = Path(__file__).parent.parent


def all_scalars_of(workdir: Path) -> dict:
    """Returns every TensorBoard curve but that of the speed."""
    tags = EventAccumulator(str(workdir)).Reload().Tags()["scalars"]
    return {tag: scalars_of(workdir, tag) for tag in tags if tag != "images_per_second"}


def assert_same_run(workdir: Path, result: dict, expected_workdir: Path, expected: dict) -> None:
    assert numbers_of(result) == numbers_of(expected)
    last = result["history"][-1]["step"]
    np.testing.assert_array_equal(parameters_of(workdir, last), parameters_of(expected_workdir, last))
    curves, expected_curves = all_scalars_of(workdir), all_scalars_of(expected_workdir)
    assert {"test/top1", "train/loss", "train/top5", "validation/loss", "learning_rate"} <= curves.keys()
    assert curves == expected_curves


def signal_after(monkeypatch, calls: int, number: signal.Signals) -> None:
    """Sends this process a signal right before training looks for one for that time."""
    received = StopRequest.received

    def receive_and_look(self):
        nonlocal calls
        calls -= 1
        if calls == 0:
            signal.raise_signal(number)
        return received(self)

    monkeypatch.setattr(StopRequest, "received", receive_and_look)


@pytest.mark.parametrize(
    # Calls of 4, 4 and 2 steps make an epoch; training looks for signals after each, and after the validation.
    ("number", "calls", "step", "lost"),
    [
        (signal.SIGINT, 3, 10, "nothing"),
        (signal.SIGTERM, 6, 18, "events*"),
        pytest.param(signal.SIGTERM, 4, 10, "nothing", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, 4, "log.txt", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_after_the_call_and_the_run_goes_on(finished, tmp_path, monkeypatch, number, calls, step, lost):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    signal_after(monkeypatch, calls, number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} at step {step} of 30"):
        loop.train_and_evaluate(make_config(), tmp_path)
    monkeypatch.undo()
    assert handlers == [signal.getsignal(each) for each in SIGNALS]
    for path in tmp_path.glob(lost):
        path.unlink()
    result = loop.train_and_evaluate(make_config(), tmp_path)
    assert f"resumed at step {step} of 30" in (tmp_path / "log.txt").read_text()
    assert_same_run(tmp_path, result, *finished)


def test_a_second_interrupt_ends_at_once_but_a_second_sigterm_does_not():
    with pytest.raises(Stopped), StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
        assert request.received() == "SIGTERM"
        raise Stopped


def test_a_signal_that_nobody_looked_at_is_not_lost():
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda *arguments: heard.append(arguments))
    try:
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
        assert len(heard) == 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def small_state(step: int) -> train_step.TrainState:
    params = {"kernel": jnp.arange(400.0) + step, "bias": jnp.full(7, step / 3)}
    return train_step.TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={},
        opt_state=(),
        ema=None,
        metrics=train_step.Metrics.empty(),
    )


def record_of(step: int) -> Record:
    return Record("", epochs=[{"step": i, "validation": {"top1": i / 100}} for i in range(10, step + 1, 10)])


def restore_latest(workdir: Path):
    with contextlib.closing(checkpoints.Checkpoints(workdir)) as saved:
        return saved.restore_latest(small_state(0))


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    with contextlib.closing(checkpoints.Checkpoints(workdir)) as saved:
        for step in (10, 20):
            saved.save(small_state(step), record_of(step))
    return workdir


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = random.Random(path.name).randrange(8 * len(content))
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped bit": flip_a_bit,
    "gone": Path.unlink,
}


# orbax leaves coroutines behind where it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage_file", DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_with_one_damaged_file_is_whole_or_gives_way(two_checkpoints, tmp_path, damage_file):
    files = [
        path.relative_to(two_checkpoints) for path in two_checkpoints.glob("checkpoints/20/**/*") if path.is_file()
    ]
    given_way = 0
    for number, file in enumerate(files):
        workdir = shutil.copytree(two_checkpoints, tmp_path / str(number))
        damage_file(workdir / file)
        state, record = restore_latest(workdir)
        step = int(state.step)
        given_way += step == 10
        jax.tree.map(np.testing.assert_array_equal, state, small_state(step))
        assert record == record_of(step)
    gc.collect()
    assert len(files) > 8 and given_way > 2


def test_a_checkpoint_that_cannot_be_read_is_set_aside(two_checkpoints, tmp_path):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    manifest = workdir / "checkpoints/20/record/metadata"
    assert manifest.exists()
    content = manifest.read_bytes()
    manifest.unlink()
    assert restore_latest(workdir)[0].step == 10
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["10"]
    # For the cause may pass.
    (aside,) = (workdir / "set_aside").iterdir()
    (aside / "record/metadata").write_bytes(content)
    aside.rename(workdir / "checkpoints/20")
    assert restore_latest(workdir)[0].step == 20


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_over(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints")
    result = loop.train_and_evaluate(make_config(), workdir)
    assert "has no checkpoint: training starts over" in (workdir / "log.txt").read_text()
    assert_same_run(workdir, result, *finished)


def test_where_no_checkpoint_is_intact_nothing_starts_over(two_checkpoints, tmp_path):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    damage(workdir / "checkpoints")
    with pytest.raises(UserError, match="delete the workdir to start over"):
        restore_latest(workdir)


def test_the_last_epoch_and_the_best_outlive_stops_within_an_epoch(tmp_path):
    with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as saved:
        for step in (10, 20, 30, 33, 36, 39):
            record = record_of(step)
            record.epochs[0]["validation"]["top1"] = 0.9
            saved.save(small_state(step), record)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [10, 30, 36, 39]


def test_a_full_disk_leaves_the_last_checkpoint_intact(two_checkpoints, tmp_path, monkeypatch):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    usage = shutil.disk_usage(workdir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with (
        pytest.raises(UserError, match="1.0 MiB left.* checkpoint takes up to"),
        contextlib.closing(checkpoints.Checkpoints(workdir)) as saved,
    ):
        saved.save(small_state(30), record_of(30))
    assert restore_latest(workdir)[0].step == 20


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        loop.train_and_evaluate(make_config(), tmp_path)
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("workdir", ["/proc/run", "/dev/null/run"])
def test_a_workdir_that_cannot_be_written_is_refused(workdir):
    with pytest.raises(UserError, match="cannot write the workdir"):
        loop.train_and_evaluate(make_config(), Path(workdir))


def test_a_second_process_on_a_workdir_is_refused(tmp_path):
    with open(tmp_path / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process trains in"):
            loop.train_and_evaluate(make_config(), tmp_path)
    assert not (tmp_path / "log.txt").exists()


def test_images_that_vanish_or_change_between_two_starts_are_noticed(tmp_path, monkeypatch):
    files, _ = example_files("mnist", num_train=200, num_test=50)
    write_files(tmp_path / "data", files)
    config = make_config(**{"dataset.name": "mnist", "dataset.data_dir": str(tmp_path / "data")})
    config.dataset.train_per_class = config.dataset.test_per_class = None
    config.dataset.validation_examples = 40
    signal_after(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path / "run")
    monkeypatch.undo()

    images = "t10k-images-idx3-ubyte"
    write_files(tmp_path / "data", {images: files[images][:-1] + b"\x99"})
    with pytest.raises(UserError, match="was trained on other images"):
        loop.train_and_evaluate(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match="data is no folder"):
        loop.train_and_evaluate(config, tmp_path / "run")
    write_files(tmp_path / "data", files)
    assert loop.train_and_evaluate(config, tmp_path / "run")["step"] in (10, 20, 30)
    assert "resumed at step 8" in (tmp_path / "run/log.txt").read_text()

    # A finished run reads no images, but for another folder: its result is not that of other files.
    assert loop.train_and_evaluate(config, tmp_path / "run")["step"] in (10, 20, 30)
    (tmp_path / "data").rename(tmp_path / "moved")
    config.dataset.data_dir = str(tmp_path / "moved")
    assert loop.train_and_evaluate(config, tmp_path / "run")["step"] in (10, 20, 30)
    write_files(tmp_path / "moved", {images: files[images][:-1] + b"\x99"})
    with pytest.raises(UserError, match="was trained on other images"):
        loop.train_and_evaluate(config, tmp_path / "run")


def diverging_config(**changes):
    """Returns a config whose learning rate rises to what no network bears."""
    changes = {
        "seed": 5,
        "optimizer.learning_rate": 1e9,
        "schedule.name": "cosine",
        "schedule.warmup_epochs": 2.0,
        **changes,
    }
    return make_config(**changes)


@pytest.fixture
def faults():
    """Makes the updates of two steps infinite unless the learning rate is low enough; returns the scale of each call.

    `make_config` trains an epoch in calls of 4, 4 and 2 steps.
    """
    highest_scales = {4: 0.5, 18: 0.125}
    compile_all, scales = loop.Training.compile, []

    def compile_and_spoil(self, programs):
        compile_all(self, programs)
        train_steps = self.train_steps

        def spoilt(state, images, labels, order, key, scale, count):
            scales.append(float(scale))
            if scale > highest_scales.get(int(state.step), np.inf):
                scale = np.float32(np.inf)
            return train_steps(state, images, labels, order, key, scale, count)

        self.train_steps = spoilt

    # Not the tests' own patch, which some undo.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "compile", compile_and_spoil)
        yield scales


def test_a_loss_that_is_not_finite_stops_with_all_to_look_into_it(tmp_path):
    with pytest.raises(UserError) as raised:
        loop.train_and_evaluate(diverging_config(), tmp_path)
    found = re.search(
        r"of step (\d+) \(epoch (.*)\) is not finite; checkpoint (\d+) holds .*, (.*) its images", str(raised.value)
    )
    step = int(found[1])
    assert step == int(found[3]) > 0 and float(found[2]) == pytest.approx(step / 10)
    assert np.isfinite(parameters_of(tmp_path, step)).all()
    saved = np.load(found[4])
    assert saved["images"].shape == (16, 28, 28) and saved["labels"].shape == saved["rows"].shape == (16,)
    config = diverging_config()
    train = datasets.load(config.dataset).train
    order_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    order = train_step.make_epoch_order(len(train.labels), 16, train_step.make_mesh())(order_key, step // 10)
    np.testing.assert_array_equal(saved["rows"], order[step % 10])
    np.testing.assert_array_equal(train.images[saved["rows"]], saved["images"])
    np.testing.assert_array_equal(train.labels[saved["rows"]], saved["labels"])


def test_a_rollback_goes_on_from_the_epoch_before_with_a_lower_learning_rate(tmp_path, faults):
    result = loop.train_and_evaluate(make_config(on_nan="rollback"), tmp_path)
    assert result["rollbacks"] == [
        {"step": 4, "to_step": 0, "learning_rate_scale": 0.5},
        {"step": 18, "to_step": 10, "learning_rate_scale": 0.25},
        {"step": 18, "to_step": 10, "learning_rate_scale": 0.125},
    ]
    # The plateau halves the learning rate of the third epoch.
    assert faults == [1, 1, *[0.5] * 3, *[0.5] * 3, *[0.25] * 3, *[0.125] * 3, *[0.0625] * 3]
    assert [epoch["step"] for epoch in result["history"]] == [10, 20, 30]
    rates = [epoch["learning_rate"] for epoch in result["history"]]
    assert rates == pytest.approx([0.02 / 2, 0.02 / 8, 0.02 / 16])
    assert scalars_of(tmp_path, "learning_rate") == list(zip((10, 20, 30), map(pytest.approx, rates), strict=True))


def test_a_run_that_stopped_for_a_fault_goes_on_with_rollbacks_as_its_error_says(tmp_path, faults):
    for _ in range(2):
        with pytest.raises(UserError, match="of step 4 .* is not finite; .* or set --config.on_nan=rollback"):
            loop.train_and_evaluate(make_config(), tmp_path)
    result = loop.train_and_evaluate(make_config(on_nan="rollback"), tmp_path)
    assert [rollback["step"] for rollback in result["rollbacks"]] == [4, 18, 18]


def test_a_validation_loss_that_is_not_finite_stops_and_stops_again(tmp_path, monkeypatch):
    fake_validation(monkeypatch, "loss", [1.0, np.inf, np.nan])
    for _ in range(2):
        with pytest.raises(UserError, match="the validation loss of step 20 .* is not finite; checkpoint 20 holds"):
            loop.train_and_evaluate(make_config(), tmp_path)


def test_a_validation_loss_that_is_not_finite_rolls_back(tmp_path, monkeypatch):
    fake_validation(monkeypatch, "loss", [1.0, np.nan, 0.9, 0.8])
    result = loop.train_and_evaluate(make_config(on_nan="rollback"), tmp_path)
    assert result["rollbacks"] == [{"step": 20, "to_step": 10, "learning_rate_scale": 0.5}]
    assert [epoch["validation"]["loss"] for epoch in result["history"]] == [1.0, 0.9, 0.8]


def test_a_test_loss_that_is_not_finite_is_no_result(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "result.json").unlink()
    monkeypatch.setattr(evaluation, "measure", lambda logits, labels: {"loss": np.nan})
    with pytest.raises(UserError, match="the test loss is not finite; checkpoint .* holds"):
        loop.train_and_evaluate(make_config(), workdir)
    assert not (workdir / "result.json").exists()


def test_no_rollback_of_the_first_step_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(Record, "learning_rate_scale", lambda self, config: np.inf)
    with pytest.raises(UserError, match=r"of step 0 .*; a rollback cannot help; .*\(1 of it was tried"):
        loop.train_and_evaluate(make_config(on_nan="rollback"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "step"), [(9, 10), (14, 18)], ids=["while it rolls back", "after all rollbacks"])
def test_a_stop_after_a_rollback_changes_nothing(tmp_path, monkeypatch, faults, calls, step):
    config = make_config(on_nan="rollback")
    whole = loop.train_and_evaluate(config, tmp_path / "whole")
    signal_after(monkeypatch, calls, signal.SIGTERM)
    with pytest.raises(Stopped, match=f"at step {step} of 30"):
        loop.train_and_evaluate(config, tmp_path / "stopped")
    monkeypatch.undo()
    again = loop.train_and_evaluate(config, tmp_path / "stopped")
    assert again["rollbacks"] == whole["rollbacks"] and len(whole["rollbacks"]) == 3
    assert_same_run(tmp_path / "stopped", again, tmp_path / "whole", whole)


@pytest.mark.slow
def test_a_rollback_that_cannot_help_stops(tmp_path):
    with pytest.raises(UserError, match="10 rollbacks did not help"):
        loop.train_and_evaluate(diverging_config(on_nan="rollback"), tmp_path)


PROGRAM = (
    *(sys.executable, "-m", "emnist_jax.main", "--config=configs/mnist_onecycle.py"),
    "--config.dataset.name=synthetic/digits",
    "--config.dataset.train_per_class=30",
    "--config.dataset.test_per_class=5",
    "--config.dataset.validation_examples=40",
    "--config.training.batch_size=16",
    "--config.training.epochs=8",
    "--config.training.select=best",
    "--config.training.steps_per_call=3",
)


# A signal after the first epoch comes long before the end.
STEPWISE = ("--config.model.name=lenet5", "--config.training.epochs=3", "--config.training.steps_per_call=1")


def start(workdir: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*PROGRAM, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": XLA_FLAGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def wait_for(happened, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not happened() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def epochs_in(workdir: Path) -> int:
    log = workdir / "log.txt"
    return log.read_text().count("  epoch ") if log.exists() else 0


def is_saving(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp"))


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.ci),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=[pytest.mark.slow, not_under_nohup]),
    ],
)
def test_a_signal_ends_the_program_with_code_75_and_one_line_and_the_same_command_resumes(tmp_path, number):
    process = start(tmp_path, *STEPWISE)
    wait_for(lambda: epochs_in(tmp_path), process)
    process.send_signal(number)
    code, _, stderr = finish(process)
    assert code == 75
    stopped = re.fullmatch(rf"stopped by {number.name} at step ([\d,]+) of 48; the same command resumes\n", stderr)
    assert stopped

    code, stdout, stderr = finish(start(tmp_path, *STEPWISE))
    assert (code, stderr) == (0, "")
    assert f"resumed at step {stopped[1]} of 48" in stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["epochs"], result["test"]["examples"]) == (3, 50)
    assert f"{result['parameters']:,}" in stdout and f"tensorboard --logdir {tmp_path}" in stdout


def start_on_terminal(workdir: Path, *prefix: str) -> tuple[subprocess.Popen, int]:
    """Starts the program on a terminal of its own, and returns the descriptor whose closing hangs up."""
    ours, terminal = pty.openpty()
    output = subprocess.DEVNULL if prefix else terminal  # or nohup would make a file for it
    command = ["setsid", "--ctty", *prefix, *PROGRAM, f"--workdir={workdir}"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=output, stderr=output)
    os.close(terminal)
    return process, ours


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "code"), [((), 75), (("nohup",), 0)])
def test_a_closed_terminal_stops_the_program_but_not_under_nohup(tmp_path, prefix, code):
    process, terminal = start_on_terminal(tmp_path, *prefix)
    os.set_blocking(terminal, False)

    def read_and_look() -> bool:
        with contextlib.suppress(OSError):
            os.read(terminal, 4096)  # the program waits where nobody reads
        return epochs_in(tmp_path) > 0

    wait_for(read_and_look, process)
    os.close(terminal)
    assert process.wait(300) == code
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert (max(steps) < 128) == (code == 75)


KILLED = {
    "plateau": (
        "--config.schedule.name=plateau",
        "--config.schedule.patience_epochs=1",
        "--config.schedule.min_delta=10",
        "--config.schedule.factor=0.5",
    ),
    "onecycle": (),
    "ema": ("--config.training.ema_decay=0.9", "--config.optimizer.name=adamw"),
    "early_stopping": (
        "--config.schedule.name=constant",
        "--config.training.early_stopping_epochs=1",
        "--config.optimizer.learning_rate=1.0",
    ),
    "dropout": ("--config.model.dropout.convolution=0.3", "--config.schedule.name=cosine"),
    "augmentation": (
        "--config.augmentation.max_rotation_degrees=10",
        "--config.augmentation.elastic_displacement_pixels=1",
        "--config.schedule.name=step",
        "--config.schedule.step_epochs=2",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", KILLED.values(), ids=KILLED)
def test_kill_9_at_any_moment_changes_nothing(tmp_path, flags, request):
    expected_workdir, workdir = tmp_path / "expected", tmp_path / "killed"
    assert finish(start(expected_workdir, *flags))[0] == 0
    rng = random.Random(request.node.name)
    kills = {"at the start": 0, "in training": 0, "in a save": 0}
    for moment in (*kills, "in a save"):
        process = start(workdir, *flags)
        before = epochs_in(workdir)
        if moment == "at the start":
            time.sleep(rng.uniform(0, 4))
        elif moment == "in training":
            wait_for(lambda before=before: epochs_in(workdir) > before, process)
            time.sleep(rng.uniform(0, 0.2))
        else:
            skip = rng.randrange(2)
            wait_for(lambda end=before + skip: epochs_in(workdir) >= end and is_saving(workdir), process)
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        kills[moment] += finish(process)[0] == -signal.SIGKILL
    code, _, stderr = finish(start(workdir, *flags))
    assert code == 0, stderr
    assert kills == {"at the start": 1, "in training": 1, "in a save": 2}
    results = [json.loads((path / "result.json").read_text()) for path in (workdir, expected_workdir)]
    assert_same_run(workdir, results[0], expected_workdir, results[1])


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_digits(tmp_path):
    for name in ("a", "b"):
        assert finish(start(tmp_path / name))[0] == 0
    a, b = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("a", "b"))
    assert_same_run(tmp_path / "a", a, tmp_path / "b", b)
    assert [epoch["train"] for epoch in a["history"]] == [epoch["train"] for epoch in b["history"]]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_said_in_one_line(tmp_path):
    assert finish(start(tmp_path))[0] == 0
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints/128/state/d")
    code, stdout, stderr = finish(start(tmp_path))
    assert (code, stderr) == (0, "")
    assert stdout.count("checkpoint 128 in") == 1


@pytest.mark.slow
def test_a_run_outlives_what_reads_its_output(tmp_path):
    command = f"set -o pipefail; {shlex.join([*PROGRAM, f'--workdir={tmp_path}'])} | head -1"
    assert finish(subprocess.Popen(["bash", "-c", command], cwd=ROOT))[0] == 0
    assert (tmp_path / "result.json").exists() and epochs_in(tmp_path) == 8


@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=100k", "size=300k", "size=1400k", "size=1600k", "nr_inodes=70"])
def test_a_really_full_disk_ends_with_one_line_and_loses_nothing(tmp_path, options):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        code, _, stderr = finish(start(disk / "run"))
        assert code == 2
        assert re.fullmatch("error: .*\n", stderr)
        subprocess.run(["mount", "-o", "remount,size=50m,nr_inodes=10000", disk], check=True)
        assert finish(start(disk / "run"))[0] == 0
        assert finish(start(tmp_path / "expected"))[0] == 0
        results = [json.loads((path / "result.json").read_text()) for path in (disk / "run", tmp_path / "expected")]
        assert_same_run(disk / "run", results[0], tmp_path / "expected", results[1])
    finally:
        subprocess.run(["umount", disk], check=True)
