"""What the tests of whole processes share: starting them, waiting with a limit, and leaving none behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAIN = (sys.executable, "-m", "emnist_jax.main")
# A few seconds of steps: 6 epochs of 5 steps, on 80 training and 50 test images.
TINY = (
    "--config=configs/mnist_gap.py:v3",
    "--config.dataset.name=synthetic/digits",
    "--config.dataset.train_per_class=8",
    "--config.dataset.test_per_class=5",
    "--config.augmentation.max_rotation_degrees=5",
    "--config.optimizer.learning_rate=0.001",  # so that rounding does not grow
    "--config.training.batch_size=16",
    "--config.training.epochs=6",
    "--config.training.steps_per_call=1",
    "--config.evaluation.batch_size=30",
)
# Compiling is nearly all of the time, so it optimizes little; the newer emitters take three times as long as the older.
# An XLA that lacks such an extra option ignores it.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
# Seconds; a start takes 10 to 20 on two busy cores.
PATIENCE = 240
not_under_nohup = pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="under nohup, programs do not hear SIGHUP"
)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs one of our commands to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"emnist_jax.{program}", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": XLA_FLAGS},
        capture_output=True,
        text=True,
        timeout=600,
    )


class Process:
    """A command in its own process group, with all of its output in one file."""

    def __init__(self, command, output: Path, devices: int, environment: dict):
        self._output = output
        with open(output, "w") as file:
            self._popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}",
                    "NPROC": str(2 * max(devices, 2)),
                    # For what starts `python`.
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    **environment,
                },
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    @property
    def has_group(self) -> bool:
        """Whether it, or anything that it has started, is still there."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def code(self, seconds: float = PATIENCE) -> int:
        """Waits for the end and returns the exit code, as a shell gives it."""
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s: {self.output}") from None
        return code if code >= 0 else 128 - code

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


class Processes:
    """Starts processes, and ends at the latest with them.

    Args:
      folder: Takes their output.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._started = []

    def start(self, *command, devices: int = 2, **environment) -> Process:
        output = self._folder / f"output_{len(self._started)}"
        self._started.append(Process(command, output, devices, environment))
        return self._started[-1]

    def start_two(self, *arguments, mains=(MAIN, MAIN), flags_of_1=(), **environment) -> tuple[Process, Process]:
        """Starts main as two processes of two devices each."""
        address = f"--coordinator_address=127.0.0.1:{free_port()}"
        common = (*arguments, "--distributed", address, "--num_processes=2")
        return (
            self.start(*mains[0], *common, "--process_id=0", **environment),
            self.start(*mains[1], *common, "--process_id=1", *flags_of_1, **environment),
        )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception) -> None:
        for process in self._started:
            process.end()


def free_port(lowest: int = 20_000) -> int:
    """Returns a port at or above `lowest` that nobody listens at."""
    for port in range(lowest + os.getpid() % 1000, 2**16):
        with socket.socket(socket.AF_INET6) as candidate, contextlib.suppress(OSError):
            candidate.bind(("::", port))
            return port
    raise AssertionError(f"no port is free from {lowest} on")


def wait_for(text: str, path: Path, *processes: Process) -> None:
    """Waits until a file holds a text; fails as soon as one of the processes has ended without it."""
    wait_until(lambda: path.exists() and text in path.read_text(), *processes)


def wait_until(happened: Callable[[], bool], *processes: Process) -> None:
    """Waits until something has happened; fails as soon as one of the processes has ended without it."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        outputs = "\n".join(process.output for process in processes)
        assert not any(process.ended for process in processes), outputs
        assert time.monotonic() < deadline, outputs
        time.sleep(0.1)


def result_of(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())
