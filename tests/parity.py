"""What the tests of parity share: random weights in a reference implementation, its logits and its gradients.

Gradients are compared one by one in float64, and their norm in float32 too, there with a tolerance for rounding: it
turns single ReLUs on or off, so that a change of the input by 1e-7 moves the norm of ResNet-50's gradient by up to
4e-3, Keras' as ours.
"""

import contextlib
import os
from unittest import mock

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emnist_jax.training import weights

FLOAT64_TOLERANCE = 1e-9
TOLERANCES = {
    "logits, float32": 1e-4,
    "gradient norm, float32": 1e-2,
    "logits, float64": FLOAT64_TOLERANCE,
    "gradients, float64": FLOAT64_TOLERANCE,
    "running statistics, float64": FLOAT64_TOLERANCE,
}
# Compiling is nearly all of the time.
FAST = {"xla_backend_optimization_level": 0}


def random_weight(name: str, shape: tuple[int, ...], fan_in: int, rng) -> np.ndarray:
    """Returns weights that keep the activations' size and leave no parameter without effect."""
    if name in ("kernel", "depthwise_kernel", "weight") and len(shape) > 1:
        return rng.normal(0, np.sqrt(2 / fan_in), shape)
    if name in ("gamma", "weight", "moving_variance", "running_var"):
        return rng.uniform(0.7, 1.3, shape)
    return rng.normal(0, 0.1, shape)


def random_batch(input_shape: tuple[int, int, int], size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns normalised images of random pixels, `[size, *input_shape]`, and labels."""
    images = np.random.default_rng(1).normal(size=(size, *input_shape))
    return images, np.arange(size) % classes


@contextlib.contextmanager
def float64():
    """Within it, JAX and the Keras models that are built compute in float64."""
    from keras.src.backend.common import dtypes

    # By itself Keras computes BatchNorm in float32 all the same.
    exact = mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, float64="float64")
    try:
        _set_keras_dtype("float64")
        with jax.enable_x64(True), exact:
            yield
    finally:
        _set_keras_dtype("float32")


def _set_keras_dtype(dtype: str) -> None:
    import keras

    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def keras_reference(model, images, labels) -> tuple:
    """Gives a Keras model of float64 random weights, and returns what it makes of a batch.

    Args:
      model: Built within `float64()`, and called within it.
      images: `[B, H, W, C]`.
      labels: `[B]`.

    Returns:
      Its weights, its logits in evaluation mode, its gradients of the mean cross-entropy in training mode, and the
      running statistics after that; all but the logits as `weights.from_keras` gives them.
    """
    rng = np.random.default_rng(0)
    variables = [(layer, v) for layer in model.layers for v in layer.variables if v.name != "seed_generator_state"]
    for layer, v in variables:
        # Keras' depthwise kernels are [h, w, C, 1].
        depthwise = type(layer).__name__ == "DepthwiseConv2D"
        fan_in = np.prod(v.shape[:-2] if depthwise else v.shape[:-1])
        if type(layer).__name__ not in ("Normalization", "Rescaling"):
            v.assign(random_weight(v.name, v.shape, fan_in, rng))

    def nested(values: dict) -> dict:
        layers = {}
        for layer, v in variables:
            if id(v) in values:
                layers.setdefault(layer.name, {})[v.name] = np.asarray(values[id(v)])
        return layers

    trainable = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]

    def apply(trainable, training):
        logits, updated = model.stateless_call(trainable, fixed, images, training=training)
        return logits.reshape(len(images), -1), updated

    def loss(trainable):
        logits, updated = apply(trainable, True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    # Unlike ours, its depthwise convolutions would run for minutes in float64.
    optimized = {"xla_backend_optimization_level": 3}
    evaluated = jax.jit(lambda t: apply(t, False)[0], compiler_options=optimized)(trainable)
    gradients, updated = jax.jit(jax.grad(loss, has_aux=True), compiler_options=optimized)(trainable)
    return (
        weights.from_keras(nested({id(v): v.value for _, v in variables})),
        np.asarray(evaluated),
        weights.from_keras(nested(dict(zip(map(id, model.trainable_variables), gradients, strict=True))))[0],
        weights.from_keras(nested(dict(zip(map(id, model.non_trainable_variables), updated, strict=True))))[1],
    )


def pytorch_reference(module, images, labels) -> tuple:
    """The same of a PyTorch module, as `weights.from_pytorch` gives them, without running variances.

    PyTorch averages them with n - 1 degrees of freedom, Keras and flax with n.
    """
    import torch

    rng = np.random.default_rng(0)
    state = module.double().state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            fan_in = int(np.prod(value.shape[1:]))
            value.copy_(torch.from_numpy(random_weight(key.rpartition(".")[2], tuple(value.shape), fan_in, rng)))
    state = {key: value.numpy().copy() for key, value in state.items()}
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        evaluated = module.eval()(inputs).flatten(1)
    torch.nn.functional.cross_entropy(module.train()(inputs).flatten(1), torch.from_numpy(labels)).backward()
    gradients = {key: p.grad.numpy() for key, p in module.named_parameters()}
    updated = {key: value.numpy() for key, value in module.state_dict().items() if key.endswith("running_mean")}
    return (
        weights.from_pytorch(state),
        evaluated.numpy(),
        weights.from_pytorch(gradients)[0],
        weights.from_pytorch(updated)[1],
    )


def assert_parity(model, images, labels, reference) -> None:
    """Asserts that our network, without dropout, computes what the reference does.

    Args:
      model: Ours, with every dropout at 0.
      images: `[B, *model.input_shape]`.
      labels: `[B]`.
      reference: As `keras_reference` and `pytorch_reference` return it.

    Prints the largest differences (`pytest -rP` shows them): of logits relative to the largest logit, of a parameter's
    gradient relative to the norm of all of them.
    """
    # Programs of former tests are of no use; with all of them in one process, jaxlib 0.10.2 crashed in the last test.
    jax.clear_caches()
    (params, batch_stats), expected_logits, expected_gradients, expected_stats = reference
    variables = {"params": params, "batch_stats": batch_stats}
    single = jax.tree.map(np.float32, (variables, images))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), single[1], train=False))
    assert jax.tree.map(np.shape, variables) == {"batch_stats": {}, **jax.tree.map(jnp.shape, shapes)}

    compute = jax.jit(_compute, static_argnums=0, compiler_options=FAST)
    logits, gradients, _ = compute(model, *single, labels)
    expected_norm = norm(expected_gradients)
    differences = {
        "logits, float32": [relative(logits, expected_logits)],
        "gradient norm, float32": [abs(norm(gradients) / expected_norm - 1)],
    }
    with jax.enable_x64(True):
        outputs = compute(model.clone(dtype=jnp.float64), variables, images, labels)
        logits, gradients, stats = jax.tree.map(np.asarray, outputs)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected_gradients)
    by_gradient = jax.tree.map(lambda ours, theirs: norm(ours - theirs) / expected_norm, gradients, expected_gradients)
    by_statistic = [
        relative(stats[layer][name], values)
        for layer, names in expected_stats.items()
        for name, values in names.items()
    ]
    differences |= {
        "logits, float64": [relative(logits, expected_logits)],
        "gradients, float64": jax.tree.leaves(by_gradient),
        "running statistics, float64": by_statistic or [0.0],
    }
    largest = {what: max(values) for what, values in differences.items()}
    print({what: f"{value:.0e}" for what, value in largest.items()})
    assert {what: value for what, value in largest.items() if not value < TOLERANCES[what]} == {}


def _compute(model, variables, images, labels):
    """Returns logits in evaluation mode, and gradients and running statistics in training mode."""

    def loss(params):
        logits, updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates.get("batch_stats", {})

    gradients, batch_stats = jax.grad(loss, has_aux=True)(variables["params"])
    return model.apply(variables, images, train=False), gradients, batch_stats


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree))))


def relative(values, expected) -> float:
    """Returns the largest difference as a fraction of the largest expected value."""
    return float(np.abs(np.asarray(values) - expected).max() / np.abs(expected).max())
