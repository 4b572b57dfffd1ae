"""Several processes (`jax.distributed`) as one: the first reads and writes the workdir, and they end together.

With one process, none of this does anything.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from emnist_jax.errors import UserError


def is_first() -> bool:
    return jax.process_index() == 0


@contextlib.contextmanager
def together(point: str) -> Iterator[None]:
    """Waits for all processes, and lets an error of one be one of all: a lost process would be started again."""
    error = None
    try:
        yield
    except (UserError, OSError) as own:
        error = own
    if jax.process_count() > 1:
        # A collective waits but half a minute on CPUs. In a thread: this one hears signals meanwhile.
        with ThreadPoolExecutor(1) as executor:
            executor.submit(ocp.multihost.get_barrier_sync_fn(), key=point, timeout_ms=3_600_000).result()
        failed = multihost_utils.process_allgather(np.bool_(error is not None))
        if failed.any():
            error = error or UserError(f"process {failed.argmax()} cannot go on, and says why")
    if error:
        raise error


def from_first(tree):
    """Returns what the first process passes: dicts, lists, arrays and what JSON knows. Of the others it is ignored."""
    if jax.process_count() == 1:
        return tree
    content = np.frombuffer(flax.serialization.msgpack_serialize(tree) if is_first() else b"", np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.uint32(content.size))
    content = multihost_utils.broadcast_one_to_all(content if is_first() else np.zeros(size, np.uint8))
    return flax.serialization.msgpack_restore(content.tobytes())


def agree(content: str) -> bool:
    """Tells whether all processes pass the same text."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(content.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    return bool((digests == digests[0]).all())
