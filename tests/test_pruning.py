"""Pruned weights are the smallest, and stay 0 to the end: with any optimizer, averaged, after a stop, on any device."""

import itertools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emnist_jax.config import validate
from emnist_jax.errors import Stopped, UserError
from emnist_jax.signals import StopRequest
from emnist_jax.training import loop, optimizers, weights
from emnist_jax.training.checkpoints import load_variables
from shared import make_config, parameters_of

RNG = np.random.default_rng(0)


def pruned_config(workdir, **changes):
    return make_config(**{"init_from": str(workdir), "training.pruned_fraction": 0.7, **changes})


def test_the_smallest_weights_of_each_kernel_are_pruned():
    params = {
        "conv": {"kernel": RNG.normal(size=(3, 3, 2, 5)).astype(np.float32), "bias": np.float32([0.1, 0, 3])},
        "large": {"kernel": 100 * RNG.normal(size=(10, 3)).astype(np.float32)},
    }
    found = weights.pruned(params, 0.3)
    np.testing.assert_array_equal(found["conv"]["bias"], params["conv"]["bias"])
    for layer, zeros in (("conv", 27), ("large", 9)):
        kernel, before = found[layer]["kernel"], params[layer]["kernel"]
        assert (kernel == 0).sum() == zeros
        np.testing.assert_array_equal(kernel[kernel != 0], before[kernel != 0])
        assert np.abs(before[kernel == 0]).max() < np.abs(before[kernel != 0]).min()


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_pruned_weights_stay_with_every_optimizer_and_all_else_is_trained(name):
    config = make_config(**{"optimizer.name": name, "optimizer.weight_decay": 0.1, "training.pruned_fraction": 0.5})
    optimizer, _ = optimizers.make_optimizer(config, 10, 5)
    start = {"kernel": jnp.array([[1.0, 0.0], [0.0, -2.0]]), "bias": jnp.zeros(2)}
    gradients = {"kernel": jnp.array([[1.0, 2.0], [-3.0, 0.5]]), "bias": jnp.ones(2)}

    def step(params, state):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, optimizer.init(start)
    for _ in range(3):
        params, state = jax.jit(step)(params, state)
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), params, start)
    assert moved["kernel"].tolist() == [[True, False], [False, True]] and moved["bias"].all()


@pytest.fixture(scope="module")
def fine_tuned(finished, tmp_path_factory):
    """The workdir of a pruned run that was never stopped, its result, and the weights that it began with."""
    workdir = tmp_path_factory.mktemp("fine_tuned")
    before = load_variables(finished[0], finished[1]["step"])["params"]
    return workdir, loop.train_and_evaluate(pruned_config(finished[0]), workdir), before


def test_a_run_ends_with_exactly_the_pruned_weights_at_zero(fine_tuned):
    workdir, result, before = fine_tuned
    wanted = jax.tree.map(lambda x: x == 0, weights.pruned(before, 0.7))
    found = load_variables(workdir, result["step"])["params"]  # the moving averages
    for layer, arrays in found.items():
        if "kernel" in arrays:
            np.testing.assert_array_equal(arrays["kernel"] == 0, wanted[layer]["kernel"])
            assert (arrays["kernel"] == 0).sum() == round(0.7 * arrays["kernel"].size)
            trained = ~wanted[layer]["kernel"]
            assert not np.array_equal(arrays["kernel"][trained], before[layer]["kernel"][trained])
    last = parameters_of(workdir, result["history"][-1]["step"])
    assert (last == 0).sum() == sum(leaf.sum() for leaf in jax.tree.leaves(wanted))


def test_a_stopped_run_ends_with_the_same_bits(finished, fine_tuned, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        found = itertools.chain([None] * 4, itertools.repeat(signal.SIGTERM.name))
        patch.setattr(StopRequest, "received", lambda self: next(found))
        with pytest.raises(Stopped, match="step 14 of 30"):
            loop.train_and_evaluate(pruned_config(finished[0]), tmp_path)
    result = loop.train_and_evaluate(pruned_config(finished[0]), tmp_path)
    workdir, expected, _ = fine_tuned
    last = expected["history"][-1]["step"]
    np.testing.assert_array_equal(parameters_of(tmp_path, last), parameters_of(workdir, last))
    assert result["test"] == expected["test"]


def test_weights_that_are_not_trained_are_not_pruned():
    config = make_config(**{"training.pruned_fraction": 0.5})
    with pytest.raises(UserError, match="prunes trained weights: set config.init_from to a finished run"):
        validate(config)
