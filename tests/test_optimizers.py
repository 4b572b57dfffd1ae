"""Tests of the optimizers and schedules, against values stored from PyTorch 2.13.0 and Keras 3.15.1.

Every stored optimizer value is the kernel and the bias after six steps at learning rate 0.1 and momentum 0.9,
made like this (`KERNEL`, `BIAS` and `gradients` are those below; epsilon 1e-8 unless said otherwise):

    kernel, bias = (torch.nn.Parameter(torch.tensor(x)) for x in (KERNEL, BIAS))
    groups = [{"params": [kernel], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    for t in range(6):
        kernel.grad, bias.grad = (torch.tensor(x) for x in gradients(t))
        optimizer.step()
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emnist_jax.config import READ_BY, base
from emnist_jax.errors import UserError
from emnist_jax.training import optimizers

KERNEL = [[1.0, -2.0], [0.5, 3.0]]
BIAS = [0.5, -1.0]


def gradients(t: int):
    kernel = [[math.sin(t + 1), math.cos(2 * t)], [0.5 * math.sin(3 * t + 2), -1 + 0.25 * t]]
    return kernel, [0.1 * t - 0.2, math.cos(t + 1)]


# (optimizer, weight decay, epsilon) -> [kernel, bias].
STORED = {
    # torch.optim.SGD(lr=0.1), (momentum=0.9), (momentum=0.9, nesterov=True).
    ("sgd", 0.0, 1e-8): [1.0103254, -1.9905808, 0.5015525, 3.2249999, 0.47, -0.9724351],
    ("sgd", 0.1, 1e-8): [0.9574668, -1.870456, 0.473601, 3.0396013, 0.47, -0.9724351],
    ("momentum", 0.0, 1e-8): [0.6000544, -2.2220085, 0.4026555, 3.9903913, 0.5395628, -0.7150641],
    ("momentum", 0.1, 1e-8): [0.4641969, -1.8585057, 0.3241323, 3.4268639, 0.5395628, -0.7150641],
    ("nesterov", 0.0, 1e-8): [0.6503744, -2.1903887, 0.4139424, 4.1163526, 0.5056065, -0.715993],
    ("nesterov", 0.1, 1e-8): [0.5058794, -1.7405725, 0.3229887, 3.4023802, 0.5056065, -0.715993],
    # torch.optim.Adam, AdamW, Adamax.
    ("adam", 0.0, 1e-8): [0.7132776, -2.1585665, 0.3668971, 3.5047863, 0.7353359, -0.9542431],
    ("adam", 0.1, 1e-8): [0.680648, -2.0242321, 0.3260442, 3.3732395, 0.7353359, -0.9542431],
    ("adamw", 0.0, 1e-8): [0.7132776, -2.1585665, 0.3668971, 3.5047863, 0.7353359, -0.9542431],
    ("adamw", 0.1, 1e-8): [0.6665774, -2.0349007, 0.3432832, 3.3152013, 0.7353359, -0.9542431],
    ("adamax", 0.0, 1e-8): [0.7341635, -2.1454525, 0.3680935, 3.3946748, 0.7015103, -1.0026838],
    ("adamax", 0.1, 1e-8): [0.7071612, -2.0389338, 0.331377, 3.296428, 0.7015103, -1.0026838],
    # torch.optim.NAdam(momentum_decay=1e6): Dozat's method at constant beta1. The defaults of PyTorch (0.004)
    # and Keras (0.96 ** step) raise it from beta1 / 2: they end at 0.94131 and 0.92165 in the first place.
    ("nadam", 0.0, 1e-8): [0.7356644, -2.1322343, 0.3699438, 3.511296, 0.6708757, -0.9521565],
    ("nadam", 0.1, 1e-8): [0.7001836, -1.9885987, 0.3299448, 3.3352113, 0.6708757, -0.9521565],
    # keras.optimizers.RMSprop(0.1, rho=0.9, epsilon=1e-3): epsilon is under the root, where
    # PyTorch adds it to the root; the two agree at 1e-8.
    ("rmsprop", 0.0, 1e-3): [0.838038, -2.0185013, 0.3869916, 3.6306911, 0.349163, -0.9570208],
    # torch.optim.RMSprop(alpha=0.9); Keras' weight decay is decoupled.
    ("rmsprop", 0.0, 1e-8): [0.8358817, -2.0189092, 0.3817171, 3.6332695, 0.3639986, -0.9592538],
    ("rmsprop", 0.1, 1e-8): [0.7852975, -1.7941017, 0.3348505, 3.1622808, 0.3639986, -0.9592538],
}


def config_of(name: str = "sgd", schedule: str = "constant", rate: float = 0.1, **settings):
    config = base()
    config.optimizer.name, config.optimizer.learning_rate = name, rate
    config.schedule.name = schedule
    for key, value in settings.items():
        section = config.schedule if key in config.schedule else config.optimizer
        section[key] = value
    return config


def course(optimizer, params, gradients_of, steps: int):
    """Returns the parameters after each of `steps` steps along `gradients_of(params, step)`, stacked."""

    def step(carry, t):
        params, state = carry
        updates, state = optimizer.update(gradients_of(params, t), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    def run(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[1]

    # Compiling is all of the time.
    return jax.device_get(jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(params))


def descend(*arguments):
    """Returns the parameters at the end of a `course`."""
    return jax.tree.map(lambda x: x[-1], course(*arguments))


def layers() -> dict:
    """Returns a convolution's and a dense layer's parameters; nothing in them is 0."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 8), "dense": (16, 6), "bias": (8,), "scale": (6,)}
    return {k: jnp.asarray(rng.uniform(0.5, 1, s) * rng.choice([-1, 1], s), "float32") for k, s in shapes.items()}


@pytest.mark.parametrize(("name", "weight_decay", "epsilon"), STORED)
def test_stored_values(name, weight_decay, epsilon):
    config = config_of(name, weight_decay=weight_decay, epsilon=epsilon)
    optimizer, _ = optimizers.make_optimizer(config, 6, 1)
    kernels, biases = (jnp.array(x) for x in zip(*map(gradients, range(6)), strict=True))
    start = {"kernel": jnp.array(KERNEL), "bias": jnp.array(BIAS)}
    end = descend(optimizer, start, lambda _, t: {"kernel": kernels[t], "bias": biases[t]}, 6)
    values = np.concatenate([end["kernel"].ravel(), end["bias"]])
    # RMSprop divides by the root of gradients near 0, which magnifies rounding.
    np.testing.assert_allclose(values, STORED[name, weight_decay, epsilon], atol=4e-6, rtol=0)


def test_stored_values_cover_every_optimizer_but_muon():
    # No PyTorch or Keras release has this Muon: test_muon_orthogonalises checks what defines it.
    assert {name for name, *_ in STORED} == optimizers.OPTIMIZERS.keys() - {"muon"}


@functools.cache
def trained(name: str, **changes):
    """Returns the kernel after three steps."""
    optimizer, _ = optimizers.make_optimizer(config_of(name, **changes), 3, 1)
    kernels = jnp.array([gradients(t)[0] for t in range(3)])
    return descend(optimizer, jnp.array(KERNEL), lambda _, t: kernels[t], 3)


@pytest.mark.parametrize("key", ["momentum", "beta1", "beta2", "epsilon"])
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_keys_are_read_by_the_optimizers_that_are_listed(name, key):
    change = np.abs(trained(name) - trained(name, **{key: 0.5})).max()
    assert change > 1e-3 if name in READ_BY[f"optimizer.{key}"] else change == 0


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_lowers_a_quadratic_loss(name):
    optimizer, _ = optimizers.make_optimizer(config_of(name, rate=0.02), 40, 1)
    target = jax.tree.map(lambda x: x + 0.3 * jnp.sign(jnp.sin(50 * x)), layers())
    end = descend(optimizer, layers(), lambda params, _: jax.tree.map(jnp.subtract, params, target), 40)
    for key, value in layers().items():
        before, after = (float(jnp.square(x - target[key]).sum()) for x in (value, end[key]))
        assert after < 0.5 * before, key


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_shrinks_kernels_only(name):
    start = layers()
    zeros = jax.tree.map(jnp.zeros_like, start)
    for weight_decay in (0.0, 0.1):
        optimizer, _ = optimizers.make_optimizer(config_of(name, weight_decay=weight_decay, rate=0.01), 3, 1)
        end = descend(optimizer, start, lambda *_: zeros, 3)
        for key in ("bias", "scale") if weight_decay else start:
            np.testing.assert_array_equal(end[key], start[key], err_msg=key)
    for key in ("conv", "dense"):
        assert (np.abs(end[key]) < np.abs(start[key])).all(), key


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_shrinks_all_where_asked(name):
    start = layers()
    settings = dict(weight_decay=0.1, decay_biases_and_norms=True, rate=0.01)
    optimizer, _ = optimizers.make_optimizer(config_of(name, **settings), 3, 1)
    end = descend(optimizer, start, lambda *_: jax.tree.map(jnp.zeros_like, start), 3)
    for key in start:
        assert (np.abs(end[key]) < np.abs(start[key])).all(), key


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_is_decoupled(name):
    optimizer, _ = optimizers.make_optimizer(config_of(name, weight_decay=0.5, rate=0.01), 1, 1)
    gradient = jax.tree.map(lambda x: jnp.sin(50 * x), layers())
    bare, _ = optimizers.make_optimizer(config_of(name, weight_decay=0.0, rate=0.01), 1, 1)
    end, without = (descend(o, layers(), lambda *_: gradient, 1) for o in (optimizer, bare))
    for key in ("conv", "dense"):
        np.testing.assert_allclose(end[key], without[key] - 0.01 * 0.5 * layers()[key], atol=1e-6)


@pytest.mark.parametrize(("layer", "fan_in"), [("conv", 36), ("dense", 16)])
def test_muon_orthogonalises(layer, fan_in):
    # A gradient of very unequal directions; the five Newton-Schulz steps bring singular values to about 1.
    rng = np.random.default_rng(0)
    params = layers()
    fan_out = params[layer].shape[-1]
    directions = np.linalg.qr(rng.normal(size=(fan_in, fan_out)))[0] * np.geomspace(1, 0.05, fan_out)
    params_gradients = jax.tree.map(jnp.ones_like, params)
    params_gradients[layer] = jnp.asarray(directions, "float32").reshape(params[layer].shape)
    optimizer, _ = optimizers.make_optimizer(config_of("muon", rate=0.1), 1, 1)
    end = descend(optimizer, params, lambda *_: params_gradients, 1)
    step = np.asarray(end[layer] - params[layer]).reshape(fan_in, fan_out) / 0.1
    singular_values = np.linalg.svd(step, compute_uv=False)
    assert singular_values.min() > 0.6 and singular_values.max() < 1.3
    assert np.sum(step * directions) < 0


def rates(config, steps: int, steps_per_epoch: int) -> np.ndarray:
    """Returns the learning rate of step 0 to `steps`, the last being the one after the end."""
    _, schedule = optimizers.make_optimizer(config, steps, steps_per_epoch)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps + 1)))


def test_step_equals_pytorch():
    # torch.optim.lr_scheduler.StepLR(SGD(lr=0.1), 3, gamma=0.18), one step an epoch.
    stored = [0.1, 0.1, 0.1, 0.018, 0.018, 0.018, 0.00324, 0.00324, 0.00324, 0.0005832]
    config = config_of(schedule="step", step_epochs=3.0, factor=0.18)
    np.testing.assert_allclose(rates(config, 50, 5)[:50], np.repeat(stored, 5), rtol=1e-5)
    # Floats round 41 / 41 to less than 1 if they multiply by 1 / 41.
    config = config_of(schedule="step", step_epochs=1.0, factor=0.18)
    np.testing.assert_allclose(rates(config, 123, 41)[:123], np.repeat([0.1, 0.018, 0.00324], 41), rtol=1e-5)


def test_onecycle_equals_pytorch():
    # torch.optim.lr_scheduler.OneCycleLR(SGD(lr=...), 0.015, total_steps=200, cycle_momentum=False), every
    # 20th step and the last. (PyTorch's peak may lie between two steps, ours on one: where the warm-up is no
    # whole number of steps, the two differ by up to 3e-4 of the peak.)
    stored = [0.0006, 0.004311234, 0.011619031, 0.014998112, 0.014182552, 0.012043437, 0.009004445]
    stored += [0.005667484, 0.002693482, 0.000671476, 6e-08]
    config = config_of(schedule="onecycle", rate=0.015)
    np.testing.assert_allclose(rates(config, 200, 10)[[*range(0, 200, 20), 199]], stored, rtol=1e-5, atol=2e-9)


def test_onecycle_settings():
    settings = dict(warmup_fraction=0.5, initial_divisor=10.0, final_divisor=100.0)
    values = rates(config_of(schedule="onecycle", rate=1.0, **settings), 101, 10)[:101]
    np.testing.assert_allclose(values[[0, 50, 100]], [0.1, 1.0, 0.001], rtol=1e-5)
    assert rates(config_of(schedule="onecycle"), 1, 1)[0] > 0, "a single step must work"


# Key -> another value than the default; those that only plateau reads: test_record.
CHANGES = {
    "warmup_epochs": 2.0,
    "step_epochs": 3.0,
    "factor": 0.5,
    "warmup_fraction": 0.5,
    "initial_divisor": 10.0,
    "final_divisor": 100.0,
}


@pytest.mark.parametrize("name", sorted(optimizers.SCHEDULES.keys() - {"plateau"}))
def test_keys_are_read_by_the_schedules_that_are_listed(name):
    before = rates(config_of(schedule=name), 80, 8)
    for key, value in CHANGES.items():
        changed = not np.array_equal(rates(config_of(schedule=name, **{key: value}), 80, 8), before)
        assert changed == (name in READ_BY[f"schedule.{key}"]), key


def test_every_key_is_read_by_all_or_listed():
    listed = {f"schedule.{key}" for key in CHANGES} | {key for key, names in READ_BY.items() if names == ("plateau",)}
    assert listed == {f"schedule.{key}" for key in base().schedule if key != "name"}


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant(name):
    np.testing.assert_array_equal(rates(config_of(schedule=name, rate=0.3), 9, 3), np.float32(0.3))


def test_cosine_warms_up_to_the_peak_and_ends_at_zero():
    values = rates(config_of(schedule="cosine", warmup_epochs=2.5, rate=0.3), 110, 4)
    np.testing.assert_allclose(values[:11], np.linspace(0, 0.3, 11), atol=1e-7)
    angles = np.pi * np.arange(101) / 100
    np.testing.assert_allclose(values[10:], 0.15 * (1 + np.cos(angles)), atol=1e-6)
    without = rates(config_of(schedule="cosine", rate=0.3), 100, 4)
    np.testing.assert_allclose(without, 0.15 * (1 + np.cos(angles)), atol=1e-6)


def test_too_long_a_warmup_is_an_error():
    rates(config_of(schedule="cosine", warmup_epochs=4.0), 41, 10)
    with pytest.raises(UserError, match=r"warmup_epochs=4\.0 are 40 steps.*only 40"):
        rates(config_of(schedule="cosine", warmup_epochs=4.0), 40, 10)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizer_follows_the_schedule(name):
    """At rate 0 from the fourth step on nothing may move: also not by momentum or weight decay."""
    config = config_of(name, schedule="step", step_epochs=3.0, factor=1e-9, weight_decay=0.1, rate=0.01)
    optimizer, _ = optimizers.make_optimizer(config, 8, 1)
    steps = course(optimizer, layers(), lambda p, _: p, 5)
    assert all(np.allclose(x[2], x[4], rtol=0, atol=1e-6) for x in steps.values())
    assert not np.allclose(steps["conv"][2], layers()["conv"], atol=1e-3)
