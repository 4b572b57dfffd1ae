"""Tests of the warps: against scipy and numpy, in direction, range, size and smoothness."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from emnist_jax import augmentation
from emnist_jax.config import base

SHAPES = [(28, 28), (32, 32), (28, 32)]  # the last one shows swapped axes

augment_all = jax.jit(augmentation.augment, static_argnames="config")
warp_all = jax.jit(jax.vmap(augmentation.warp))
matrices_of = jax.jit(jax.vmap(augmentation.affine_matrix))


def settings(**changes):
    """Returns the base config's section with `changes`; it can be hashed, unlike a locked one."""
    config = base().augmentation
    for key, value in changes.items():
        config[key] = value
    return config.copy_and_resolve_references() if False else _Frozen(config)


class _Frozen:
    pass
