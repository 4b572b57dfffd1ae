"""What the device can do at most, measured, and what a network asks of it at least, counted."""

import time

import jax
import jax.numpy as jnp

from emnist_jax.benchmarking.contenders import Setting
from emnist_jax.models import MODELS
from emnist_jax.models.summary import summarize


def measure(dtype: str) -> dict[str, float]:
    """Measures a large matrix product and a sweep through memory: the best of several, per second."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    # Far more than the caches hold.
    vector = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**28, jnp.float32)
    return {
        "multiply_adds": size**3 / _best_seconds(jax.jit(jnp.matmul), matrix, matrix),
        "bytes": 2 * vector.nbytes / _best_seconds(jax.jit(lambda x: x + 1), vector),
    }


def _best_seconds(function, *arguments) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def images_per_second(setting: Setting, device: dict[str, float]) -> float:
    """Returns the limit for a setting: that of arithmetic or that of memory, whichever is lower.

    Training takes three times the multiply-adds of inference. What convolutions and matrix products put out is written
    and read in inference; in training also read by the backward pass, and its gradient written and read.

    Args:
      setting: The setting.
      device: As `measure` returns it.
    """
    summary = summarize(MODELS[setting.model](num_classes=setting.num_classes))
    passes, accesses = (1, 2) if setting.task == "inference" else (3, 5)
    arithmetic = passes * summary.multiply_adds / device["multiply_adds"]
    memory = accesses * summary.product_outputs * jnp.dtype(setting.dtype).itemsize / device["bytes"]
    return 1 / max(arithmetic, memory)
