"""The compiled step: the same on any number of devices, and equal to what optax and flax say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import shared
from emnist_jax import config as config_lib
from emnist_jax.models import plain
from emnist_jax.training import augmentation, evaluation, optimizers, train_step
from emnist_jax.training.run import build

LAYERS = (
    plain.Conv(4, 3, padding=1, bias=True, batch_norm=True, dropout=True),
    plain.MaxPool(),
    plain.Conv(None, 3, relu=False),
    plain.GlobalAveragePool(),
)


def make_model(config, axis_name=train_step.AXIS):
    """Returns a network with all that a step has to deal with, compiled in a second."""
    return plain.Plain(
        num_classes=10,
        layers=LAYERS,
        convolution_dropout=config.model.dropout.convolution,
        sync_batch_norm=config.model.sync_batch_norm,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=axis_name,
        convolution="matmul",
    )


def make_config(**changes):
    config = config_lib.base()
    config.model.dropout.convolution = 0.2
    config.augmentation.max_rotation_degrees = 10.0
    config.augmentation.elastic_displacement_pixels = 1.0
    config.training.batch_size = 16
    config.optimizer.learning_rate = 0.1
    config.update_from_flattened_dict(changes)
    return config


def mesh_of(devices: int) -> Mesh:
    return jax.make_mesh((devices,), (train_step.AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def images_and_labels(examples=64):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (examples, 28, 28), np.uint8), rng.integers(0, 10, examples).astype(np.int32)


def course(config, devices: int, calls) -> list:
    """Returns the initial state, and the state after each of the calls of so many steps."""
    mesh = mesh_of(devices)
    model = make_model(config)
    optimizer, _ = optimizers.make_optimizer(config, 8, 4)
    state = train_step.make_initial_state(model, optimizer, config, mesh)(jax.random.key(config.seed))
    images, labels = images_and_labels()
    epoch_order = train_step.make_epoch_order(len(images), config.training.batch_size, mesh)
    train_steps = train_step.make_train_steps(model, optimizer, config, mesh)
    states = [jax.tree.map(np.array, state)]  # copies, for the next call takes the buffers
    for count in calls:
        order = epoch_order(jax.random.key(1), state.step // 4)
        state = train_steps(state, images, labels, order, jax.random.key(2), 1.0, count)
        states.append(jax.tree.map(np.array, state))
    return states


def train(config, devices: int, steps: int = 5, calls=None):
    """Returns the state after some steps, done in calls of the given sizes."""
    return course(config, devices, calls or (steps,))[-1]


def assert_trees_close(a, b, rtol=1e-4, atol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol, atol)


def gradients_on(config, devices: int, state, images, labels, key):
    model = make_model(config)
    return jax.jit(
        jax.shard_map(
            lambda *args: train_step.loss_and_gradients(model, config, *args),
            mesh=mesh_of(devices),
            in_specs=(P(), P("data"), P("data"), P()),
            out_specs=P(),
        )
    )(state, images, labels, key)


def gradients_of(config, devices: int):
    optimizer, _ = optimizers.make_optimizer(config, 8, 4)
    initial_state = train_step.make_initial_state(make_model(config), optimizer, config, mesh_of(devices))
    return gradients_on(
        config, devices, initial_state(jax.random.key(config.seed)), *images_and_labels(16), jax.random.key(3)
    )


def test_gradients_are_the_same_on_four_devices():
    one, four = (jax.device_get(gradients_of(make_config(), devices)) for devices in (1, 4))
    assert_trees_close(four[0], one[0])
    assert_trees_close(four[1], one[1])
    assert_trees_close(four[2].compute(), one[2].compute())


def test_training_augments_and_evaluation_does_not():
    changes = {"model.dropout.convolution": 0.0, "augmentation.max_brightness_fraction": 0.5}
    changes |= {"augmentation.max_rotation_degrees": 0.0, "augmentation.elastic_displacement_pixels": 0.0}
    augmented = gradients_of(make_config(**changes), 1)[2].compute()
    plain = gradients_of(make_config(**changes | {"augmentation.max_brightness_fraction": 0.0}), 1)[2].compute()
    assert abs(augmented["loss"] - plain["loss"]) > 1e-4


def test_gradients_without_batch_norm_synchronisation_are_the_mean_of_the_shards():
    config = make_config(**{"model.sync_batch_norm": False, "model.dropout.convolution": 0.0})
    config.augmentation = config_lib.base().augmentation
    gradients, batch_stats, _ = jax.device_get(gradients_of(config, 4))
    model = make_model(config, None)
    images, labels = images_and_labels(16)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 28, 28, 1)), train=False))(jax.random.key(0))

    @jax.jit
    def shard_gradients(images, labels):
        def loss_of(params):
            x = train_step.network_input(images, config, model.input_shape)
            logits, updates = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, updates["batch_stats"]

        return jax.grad(loss_of, has_aux=True)(variables["params"])

    shards = [shard_gradients(images[i : i + 4], labels[i : i + 4]) for i in range(0, 16, 4)]
    expected = jax.tree.map(lambda *x: np.mean(x, 0), *shards)
    assert_trees_close((gradients, batch_stats), jax.device_get(expected))


def assert_moving_average(config, states: list):
    """Asserts that the moving averages follow parameters and running statistics, from one step to the next."""
    for before, after in itertools.pairwise(states):
        decay = float(train_step.ema_decay(config, before.step))
        new = {"params": after.params, "batch_stats": after.batch_stats}
        expected = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, before.ema, new)
        assert_trees_close(after.ema, expected, 1e-5, 1e-6)
        assert after.variables is after.ema


@pytest.mark.ci
def test_calls_of_any_length_and_devices_of_any_number_train_the_same():
    config = make_config(**{"training.ema_decay": 0.9, "optimizer.name": "nesterov"})
    whole = train(config, devices=4, calls=(4, 2))
    assert whole.step == 6
    one_by_one = course(config, devices=4, calls=[1] * 6)
    assert_trees_close(one_by_one[-1], whole, 0, 0)
    assert_moving_average(config, one_by_one)
    # Float tolerance grows over the steps of BatchNorm and a high learning rate.
    assert_trees_close(train(config, devices=1, calls=(4, 2)), whole, 1e-2, 2e-3)


def test_bfloat16_keeps_parameters_in_float32_and_learns_alike():
    exact, rounded = (train(make_config(**{"model.dtype": dtype}), 1) for dtype in ("float32", "bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(rounded.params)} == {np.dtype("float32")}
    losses = [float(state.metrics.compute()["loss"]) for state in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_scale_multiplies_the_update():
    config = make_config(**{"optimizer.name": "sgd"})
    model = make_model(config)
    optimizer, _ = optimizers.make_optimizer(config, 8, 4)
    images, labels = images_and_labels()
    train_steps = train_step.make_train_steps(model, optimizer, config, mesh_of(1))
    order = jnp.arange(16, dtype=jnp.int32)[None]
    moves = []
    for scale in (1.0, 0.25):
        state = train_step.make_initial_state(model, optimizer, config, mesh_of(1))(jax.random.key(config.seed))
        before = jax.device_get(state.params)
        after = jax.device_get(train_steps(state, images, labels, order, jax.random.key(2), scale, 1).params)
        moves.append(jax.tree.map(np.subtract, after, before))
    assert_trees_close(moves[1], jax.tree.map(lambda x: 0.25 * x, moves[0]), 1e-3, 1e-6)


def test_accuracies_are_counts():
    logits = np.eye(10, dtype=np.float32)[[0, 1, 2, *[3] * 7]]
    measured = evaluation.measure(logits, np.array([0, 1, 2, *[9] * 7]))
    assert (measured["top1"], measured["top5"], measured["examples"]) == (0.3, 0.3, 10)


def test_an_update_that_is_not_finite_is_not_taken():
    config = make_config(**{"optimizer.name": "sgd"})
    optimizer, _ = optimizers.make_optimizer(config, 8, 4)
    model = make_model(config)
    state = train_step.make_initial_state(model, optimizer, config, mesh_of(1))(jax.random.key(config.seed))
    before = jax.device_get(state)
    train_steps = train_step.make_train_steps(model, optimizer, config, mesh_of(1))
    order = jnp.arange(16, dtype=jnp.int32)[None]
    after = train_steps(state, *images_and_labels(), order, jax.random.key(2), np.inf, 1)
    assert after.step == 0
    assert_trees_close(after.params, before.params, 0, 0)


@pytest.mark.slow
def test_the_moving_average_reads_as_well_as_the_network_that_it_follows():
    changes = {"training.ema_decay": 0.995, "training.batch_size": 32, "training.steps": 120}
    changes |= {"model.name": "mnist_squeeze_10", "dataset.train_per_class": 100, "optimizer.learning_rate": 0.1}
    run = build(shared.make_config(**changes))
    train, test = run.dataset.train, run.dataset.test
    order = train_step.make_epoch_order(len(train.labels), 32, run.mesh)
    train_steps = train_step.make_train_steps(run.model, run.optimizer, run.config, run.mesh)
    state = run.initial_state()
    for epoch in range(120 // run.steps_per_epoch):
        rows = order(jax.random.key(0), epoch)
        state = train_steps(state, train.images, train.labels, rows, jax.random.key(1), 1.0, run.steps_per_epoch)
    evaluator = evaluation.Evaluator(run.model, run.config, run.mesh, state.variables, (28, 28), len(test.labels))
    top1s = {}
    for name, variables in (("raw", {"params": state.params, "batch_stats": state.batch_stats}), ("ema", state.ema)):
        logits = evaluator.logits(variables, evaluator.batches(test.images), len(test.labels))
        top1s[name] = evaluation.measure(logits, test.labels)["top1"]
    print(top1s)
    assert state.variables is state.ema
    assert top1s["ema"] > top1s["raw"] - 0.1 and top1s["raw"] > 0.5


def test_the_decay_of_the_moving_average_rises_to_its_setting():
    config = make_config(**{"training.ema_decay": 0.5})
    decays = [float(train_step.ema_decay(config, jnp.int32(step))) for step in (0, 1, 7, 8, 9, 1000)]
    np.testing.assert_allclose(decays, [1 / 10, 2 / 11, 8 / 17, 0.5, 0.5, 0.5], rtol=1e-6)


def test_the_setting_for_deterministic_gpus_compiles_and_changes_nothing_on_a_cpu():
    plain, deterministic = (train(make_config(deterministic=x), 1, steps=2) for x in (False, True))
    assert_trees_close(plain, deterministic, 0, 0)
    assert train_step.compiler_options(make_config(deterministic=True)) == {"xla_gpu_deterministic_ops": True}


@pytest.mark.parametrize("balanced, ratio", [(False, 5.0), (True, 1.0)])
def test_balanced_classes_are_not_predicted_more_often_for_being_frequent(balanced, ratio):
    config = make_config(
        **{
            "training.balance_classes": balanced,
            "training.batch_size": 64,
            "augmentation.max_rotation_degrees": 0.0,
            "augmentation.elastic_displacement_pixels": 0.0,
            "model.dropout.convolution": 0.0,
        }
    )
    small = {"input_shape": (8, 8, 1)}
    model = make_model(config).clone(**small)
    optimizer, _ = optimizers.make_optimizer(config, 200, 200)
    state = train_step.make_initial_state(model, optimizer, config, mesh_of(1))(jax.random.key(0))
    images = np.full((64, 8, 8), 255, np.uint8)  # they say nothing about the class
    labels = np.repeat(np.arange(10), [40, 8, *[2] * 8]).astype(np.int32)
    train_steps = train_step.make_train_steps(model, optimizer, config, mesh_of(1))
    order = jnp.arange(64, dtype=jnp.int32)[None]
    state = train_steps(state, images, labels, order, jax.random.key(2), 1.0, 200)
    x = train_step.network_input(images[:1], config, model.input_shape)
    logits, _ = (
        make_model(config, None)
        .clone(**small)
        .apply({"params": state.params, "batch_stats": state.batch_stats}, x, train=True, mutable=["batch_stats"])
    )
    probabilities = jax.nn.softmax(logits[0])
    assert probabilities[0] / probabilities[1] == pytest.approx(ratio, rel=0.05)


def rows_of_first_epoch() -> np.ndarray:
    """Returns the rows that the steps of `course` train on first."""
    return np.asarray(train_step.make_epoch_order(64, 16, mesh_of(1))(jax.random.key(1), 0))


def test_label_smoothing_is_in_the_loss():
    config = make_config(**{"training.label_smoothing": 0.3, "model.dropout.convolution": 0.0})
    config.augmentation.max_rotation_degrees = config.augmentation.elastic_displacement_pixels = 0.0
    before, after = course(config, 1, (1,))
    images, labels = (array[rows_of_first_epoch()[0]] for array in images_and_labels())
    model, variables = make_model(config, None), {"params": before.params, "batch_stats": before.batch_stats}
    x = train_step.network_input(images, config, model.input_shape)
    logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
    losses = -np.asarray(jax.nn.log_softmax(logits))
    loss = 0.7 * losses[np.arange(len(labels)), labels].mean() + 0.3 * losses.mean()
    assert after.metrics.compute()["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_step_trains_on_its_rows_with_its_key():
    config = make_config(**{"optimizer.name": "momentum", "optimizer.momentum": 0.0})
    state, after = course(config, 1, (2,))
    (images, labels), metrics = images_and_labels(), train_step.Metrics.empty()
    for step, rows in enumerate(rows_of_first_epoch()[:2]):
        gradients, batch_stats, of_step = gradients_on(
            config, 1, state, images[rows], labels[rows], jax.random.fold_in(jax.random.key(2), step)
        )
        params = jax.tree.map(lambda x, gradient: x - 0.1 * gradient, state.params, gradients)
        state, metrics = state.replace(params=params, batch_stats=batch_stats), metrics.merge(of_step)
    assert_trees_close((after.params, after.batch_stats), (state.params, state.batch_stats))
    assert_trees_close(after.metrics.compute(), metrics.compute())


def test_every_epoch_is_another_permutation():
    epoch_order = train_step.make_epoch_order(70, 16, mesh_of(4))
    epochs = [np.asarray(epoch_order(jax.random.key(0), epoch)).ravel() for epoch in (0, 1, 0)]
    assert all(len(np.unique(rows)) == 64 and rows.max() < 70 for rows in epochs)
    assert (epochs[0] == epochs[2]).all()
    assert (epochs[0] != epochs[1]).any()


def test_network_input_pads_normalises_and_repeats():
    config = config_lib.base()
    config.dataset.mean, config.dataset.std = 0.25, 0.5
    images = images_and_labels(3)[0]
    x = np.asarray(train_step.network_input(images, config, (32, 32, 3)))
    assert x.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(x[:, 2:30, 2:30, 1], (images / 255 - 0.25) / 0.5, rtol=1e-4)
    np.testing.assert_array_equal(x[..., 0], x[..., 2])
    np.testing.assert_allclose(x[:, :2], -0.5)
    # Augmentation comes after the one and before the other.
    config.augmentation.max_rotation_degrees, config.augmentation.max_brightness_fraction = 30.0, 0.5
    keys = jax.random.split(jax.random.key(0), 3)
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2))) / np.float32(255)
    expected = (augmentation.augment(padded, keys, config.augmentation) - 0.25) / 0.5
    augmented = train_step.network_input(images, config, (32, 32, 3), keys)
    np.testing.assert_allclose(augmented[..., 0], expected, atol=1e-5)
    assert np.abs(augmented - x).max() > 0.1


def test_metrics_are_means_over_examples():
    logits = jnp.array([[9.0, 8, 7, 6, 5, 4], [0, 1, 2, 3, 4, 5]])
    metrics = train_step.Metrics.from_logits(logits, jnp.array([0, 0]), jnp.array([1.0, 3.0])).compute()
    assert {k: float(v) for k, v in metrics.items()} == {"loss": 2.0, "top1": 0.5, "top5": 0.5}
