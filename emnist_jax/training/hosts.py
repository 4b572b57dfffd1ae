"""Several processes (`jax.distributed`) as one: they start together, agree, fail together and end together.

The first process alone reads and writes the workdir. A single process waits for nobody here.
"""

import contextlib
import hashlib
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from emnist_jax.errors import Stopped, UserError

# Seconds without a sign of life, or seconds after the others have ended, after which a process counts as lost.
HEARTBEAT_TIMEOUT = 30
# Seconds that the processes wait for each other to start.
START_TIMEOUT = 600


def is_address(address: str) -> bool:
    """Tells whether a text is HOST:PORT."""
    found = re.fullmatch(r".+:(\d{1,5})", address)
    return bool(found) and int(found[1]) < 2**16


def join(address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Starts `jax.distributed`; None: the scheduler (SLURM, MPI) knows.

    Args:
      address: HOST:PORT at which process 0 listens.
      num_processes: Number of all processes.
      process_id: Which one this is, from 0.

    Raises:
      UserError: The port is taken, or nobody knows what is not passed.
      Stopped: Process 0 does not start in time.
    """
    # JAX's own handler would swallow SIGTERM until training starts.
    jax.config.update("jax_enable_preemption_service", False)
    passed = (address, num_processes, process_id)
    if address and process_id == 0:
        _check_port(int(address.rpartition(":")[2]))
        _say_waiting(f"the others at {address}")
    elif None not in passed:
        _wait_for_port(address)
    try:
        # In a thread, so that this one hears signals while it waits for the others.
        with ThreadPoolExecutor(1) as executor:
            executor.submit(
                jax.distributed.initialize,
                *passed,
                # If everything is passed, a scheduler's settings could only hide devices.
                cluster_detection_method="deactivate" if None not in passed else None,
                initialization_timeout=START_TIMEOUT,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
            ).result()
    except ValueError as error:
        raise UserError(
            f"--distributed: {error} Pass --coordinator_address, --num_processes and --process_id"
        ) from error


def _check_port(port: int) -> None:
    """Raises UserError if the port is taken: JAX would share it with the other program, or crash."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(f"cannot listen at port {port} of --coordinator_address ({error}); pass another") from error


def _wait_for_port(address: str) -> None:
    """Raises Stopped if nobody listens in time: JAX would abort with a C++ stack."""
    host, _, port = address.rpartition(":")
    started = None
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            if started is None:
                started = time.monotonic()
                _say_waiting(f"process 0 at {address}")
            elif time.monotonic() > started + START_TIMEOUT:
                raise Stopped(f"process 0 does not listen at --coordinator_address={address} ({error})") from error
            time.sleep(1)


def _say_waiting(for_whom: str) -> None:
    print(f"waiting for {for_whom}, at most {START_TIMEOUT / 60:g} minutes", file=sys.stderr)


def check_devices() -> None:
    """Raises UserError if JAX finds no device, or unequal numbers of them in the processes."""
    try:
        devices = jax.devices()
    # JAX asserts if JAX_PLATFORMS=cuda and there is no GPU.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms
        reason = str(error).strip().partition("\n")[0] or f"none for JAX_PLATFORMS={platforms}"
        if platforms and platforms.startswith("cuda"):
            reason += "; install JAX with CUDA (pip install -e '.[cuda]'), or set JAX_PLATFORMS=cpu"
        raise UserError(f"JAX finds no device: {reason}") from error
    if len(set(Counter(device.process_index for device in devices).values())) > 1:
        raise UserError("the processes must have equal numbers of devices")
    if jax.process_count() > 1 and devices[0].platform == "gpu":
        # The processes share out XLA's measurements of one program, and wait for each other's. One that finds the
        # program in its cache would not measure.
        jax.config.update("jax_enable_compilation_cache", False)


def is_first() -> bool:
    return jax.process_index() == 0


@contextlib.contextmanager
def all_or_none(done: str) -> Iterator[None]:
    """Waits for all processes at the end of the block, and raises in all of them if it failed in one.

    Otherwise the others would take the failed process for lost, and a scheduler would start it again.

    Args:
      done: What the block has done; the same in all processes.
    """
    error = None
    try:
        yield
    except (UserError, OSError) as own:
        error = own
    if jax.process_count() > 1:
        # Collectives time out after 30 s on a CPU, so wait at a barrier first. In a thread, to hear signals meanwhile.
        with ThreadPoolExecutor(1) as executor:
            executor.submit(ocp.multihost.get_barrier_sync_fn(), key=done, timeout_ms=3_600_000).result()
        failed = multihost_utils.process_allgather(np.bool_(error is not None))
        if failed.any():
            error = error or UserError(f"process {failed.argmax()} cannot go on, and says why")
    if error:
        raise error


def broadcast(tree):
    """Returns in all processes what the first one passes: dicts, lists, arrays and what JSON knows."""
    if jax.process_count() == 1:
        return tree
    content = np.frombuffer(flax.serialization.msgpack_serialize(tree) if is_first() else b"", np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.uint32(content.size))
    content = multihost_utils.broadcast_one_to_all(content if is_first() else np.zeros(size, np.uint8))
    return flax.serialization.msgpack_restore(content.tobytes())


def all_equal(content: str) -> bool:
    """Tells whether all processes pass the same text."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(content.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    return bool((digests == digests[0]).all())
