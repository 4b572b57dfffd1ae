"""Kernels as 8-bit integers: a quarter of the size.

Symmetric and per output channel, weights alone (Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.1):
`kernel = kernel_scale * integers`. The computation stays in floats.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

WEIGHTS = ("float32", "int8")


def stored(variables: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Returns a network's variables as a file holds them, of numpy arrays.

    Args:
      variables: "params" and "batch_stats".
      weights: "float32": as they are. "int8": every kernel `[..., features]` is int8 from -127 to 127, and a new
        `kernel_scale`, float32 `[features]`, stands beside it.
    """
    flat = traverse_util.flatten_dict(jax.device_get(dict(variables)))
    if weights == "int8":
        for path, kernel in list(flat.items()):
            if path[-1] == "kernel":
                scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / np.float32(127)
                flat[path] = np.round(kernel / np.where(scale, scale, 1)).astype(np.int8)
                flat[(*path[:-1], "kernel_scale")] = scale
    return traverse_util.unflatten_dict(flat)


def restored(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables that a network takes, from what `stored` returned; JAX can trace it."""
    flat = traverse_util.flatten_dict(dict(variables))
    for path in [path for path in flat if path[-1] == "kernel_scale"]:
        kernel = (*path[:-1], "kernel")
        flat[kernel] = flat[kernel].astype(np.float32) * flat.pop(path)
    return traverse_util.unflatten_dict(flat)
