"""What the device can do at most, measured, and what a network asks of it at least, counted."""

import time

import jax
import jax.numpy as jnp

from emnist_jax.benchmarking.contenders import Setting
from emnist_jax.models import MODELS
from emnist_jax.models.summary import summarize


def measure(dtype: str) -> dict[str, float]:
    """Measures large matrix products and a sweep through memory: the best of several, per second."""
    sizes = (512, 1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    product = jax.jit(lambda pair: (jnp.matmul(*pair), pair[1]))
    # Far more than the caches hold, and written in place: fresh memory is slower at its first use.
    vector = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**28, jnp.float32)
    bytes_of_a_sweep = 2 * vector.nbytes
    return {
        "multiply_adds": max(size**3 / _best_seconds(product, (jnp.ones((size, size), dtype),) * 2) for size in sizes),
        "bytes": bytes_of_a_sweep / _best_seconds(jax.jit(lambda x: x + 1, donate_argnums=0), vector),
    }


def _best_seconds(function, state) -> float:
    """Times `state = function(state)`."""
    seconds = []
    for _ in range(11):  # the first compiles
        started = time.perf_counter()
        state = jax.block_until_ready(function(state))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def images_per_second(setting: Setting, device: dict[str, float]) -> float:
    """Returns an estimate of the limit for a setting: that of arithmetic or that of memory, whichever is lower.

    Training counts three times the multiply-adds of inference, though the first layer needs less. What convolutions and
    matrix products put out counts as written and read in inference; in training also as read by the backward pass, and
    its gradient as written and read, though a cache may hold it.

    Args:
      setting: The setting.
      device: As `measure` returns it.
    """
    summary = summarize(MODELS[setting.model](num_classes=setting.num_classes))
    passes, accesses = (1, 2) if setting.task == "inference" else (3, 5)
    arithmetic = passes * summary.multiply_adds / device["multiply_adds"]
    memory = accesses * summary.product_outputs * jnp.dtype(setting.dtype).itemsize / device["bytes"]
    return 1 / max(arithmetic, memory)
