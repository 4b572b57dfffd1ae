"""Trains and tests: `python -m emnist_jax.main --config=configs/densenet.py [--config.KEY=VALUE ...]`."""

import faulthandler
import re
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from absl import flags

from emnist_jax import command_line
from emnist_jax.errors import Stopped, UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/NAME_OF_THE_CONFIG; the first process alone uses it")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Train together with other processes; SLURM and MPI name them")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, elsewhere than in SLURM")
flags.register_validator(
    _COORDINATOR,
    lambda address: not address or ((found := re.fullmatch(r".+:(\d{1,5})", address)) and int(found[1]) < 2**16),
    "not HOST:PORT",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0", lower_bound=0)

# Seconds: how long a process may be silent, or may still run after the others, before they take it for lost.
HEARTBEAT_TIMEOUT = 30
# Seconds that the processes wait for each other to start.
COORDINATOR_PATIENCE = 600


def main(config) -> None:
    # Imported late: flag errors should not wait for it.
    from emnist_jax.training import loop

    if _DISTRIBUTED.value:
        # JAX aborts where another process is lost: absl's dump of all threads would bury its message.
        faulthandler.disable()
        # JAX's own handler would swallow SIGTERM until training starts.
        jax.config.update("jax_enable_preemption_service", False)
        if _COORDINATOR.value and _PROCESS_ID.value == 0:
            _check_port(int(_COORDINATOR.value.rpartition(":")[2]))
            _say_waiting(f"the others at {_COORDINATOR.value}")
        named = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if None not in named and _PROCESS_ID.value:
            _wait_for_port(_COORDINATOR.value)
        try:
            # In a thread: this one hears signals while it waits for the others.
            with ThreadPoolExecutor(1) as executor:
                executor.submit(
                    jax.distributed.initialize,
                    *named,
                    # Where all is said, a scheduler could only hide devices.
                    cluster_detection_method="deactivate" if None not in named else None,
                    initialization_timeout=COORDINATOR_PATIENCE,
                    heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                    shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
                ).result()
        except ValueError as error:
            raise UserError(
                f"--distributed: {error} Pass --coordinator_address, --num_processes and --process_id"
            ) from error
    try:
        devices = jax.devices()
    # JAX asserts where JAX_PLATFORMS=cuda and there is no GPU.
    except (RuntimeError, AssertionError) as error:
        reason = command_line.first_line(error) or f"none for JAX_PLATFORMS={jax.config.jax_platforms}"
        raise UserError(f"JAX finds no device: {reason}") from error
    if len(set(Counter(device.process_index for device in devices).values())) > 1:
        raise UserError("the processes must have equal numbers of devices")
    loop.train_and_evaluate(config, Path(_WORKDIR.value or f"runs/{command_line.config_name()}").expanduser())


def _check_port(port: int) -> None:
    """Raises UserError where the port is taken: JAX would share it with the other program, or crash."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(f"cannot listen at port {port} of --coordinator_address ({error}); pass another") from error


def _wait_for_port(address: str) -> None:
    """Raises Stopped where nobody listens in the end: JAX would abort with a C++ stack."""
    host, _, port = address.rpartition(":")
    started = None
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            if started is None:
                started = time.monotonic()
                _say_waiting(f"process 0 at {address}")
            elif time.monotonic() > started + COORDINATOR_PATIENCE:
                raise Stopped(f"process 0 does not listen at --coordinator_address={address} ({error})") from error
            time.sleep(1)


def _say_waiting(for_whom: str) -> None:
    print(f"waiting for {for_whom}, at most {COORDINATOR_PATIENCE / 60:g} minutes", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main)
