"""Several processes (`jax.distributed`) as one: they wait for each other, err together and agree on what they read.

With one process, none of this does anything.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from emnist_jax.errors import UserError


def is_first() -> bool:
    """Tells whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(point: str) -> None:
    """Lets no process go on before all are at this point: on CPUs, a first collective waits but half a minute."""
    ocp.multihost.get_barrier_sync_fn()(key=point, timeout_ms=3_600_000)


@contextlib.contextmanager
def together(point: str) -> Iterator[None]:
    """Lets a UserError of one process be one of all, instead of a loss after which to start again."""
    error = None
    try:
        yield
    except UserError as own:
        error = own
    wait_for_all(point)
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.bool_(error is not None))
        if failed.any():
            error = error or UserError(f"process {failed.argmax()} cannot go on, and says why")
    if error:
        raise error


def agree(value: np.ndarray) -> bool:
    """Tells whether all processes hold the same array."""
    if jax.process_count() == 1:
        return True
    values = multihost_utils.process_allgather(value)
    return bool((values == values[0]).all())
