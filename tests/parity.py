"""What the tests of parity share: random weights in a reference implementation, its logits and its gradients.

Gradients are compared in float64. In float32 a change of the input by 1e-7 moves the norm of ResNet-50's gradient by
up to 4e-3, Keras' as ours: rounding turns single ReLUs on or off, and BatchNorm makes much of it.
"""

import contextlib
import os
from unittest import mock

os.environ["KERAS_BACKEND"] = "jax"

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from emnist_jax import weights

FLOAT32_TOLERANCE = 1e-4
FLOAT64_TOLERANCE = 1e-9
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
    import keras
    from keras.src.backend.common import dtypes

    # By itself Keras computes BatchNorm in float32 all the same.
    exact = mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, float64="float64")
    keras.config.set_floatx("float64")
    with jax.enable_x64(True), exact:
        yield
    keras.config.set_floatx("float32")


def keras_reference(model, images, labels) -> tuple:
    """Gives a Keras model of float64 random weights, and returns what it makes of a batch.

    Args:
      model: Built within `float64()`, and called within it.
      images: `[B, H, W, C]`.
      labels: `[B]`.

    Returns:
      Its weights, its logits in evaluation mode, and its gradients of the mean cross-entropy in training mode;
      weights and gradients as `weights.from_keras` gives them.
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

    def logits(trainable, training):
        return model.stateless_call(trainable, fixed, images, training=training)[0].reshape(len(images), -1)

    def loss(trainable):
        return optax.softmax_cross_entropy_with_integer_labels(logits(trainable, True), labels).mean()

    # Unlike ours, its depthwise convolutions would run for minutes in float64.
    optimized = {"xla_backend_optimization_level": 3}
    evaluated = jax.jit(lambda t: logits(t, False), compiler_options=optimized)(trainable)
    gradients = jax.jit(jax.grad(loss), compiler_options=optimized)(trainable)
    return (
        weights.from_keras(nested({id(v): v.value for _, v in variables})),
        np.asarray(evaluated),
        weights.from_keras(nested(dict(zip(map(id, model.trainable_variables), gradients, strict=True))))[0],
    )


def pytorch_reference(module, images, labels) -> tuple:
    """The same of a PyTorch module, as `weights.from_pytorch` gives them."""
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
    return weights.from_pytorch(state), evaluated.numpy(), weights.from_pytorch(gradients)[0]


def assert_parity(model, images, labels, reference) -> None:
    """Asserts that our network, without dropout, computes what the reference does.

    Args:
      model: Ours, with every dropout at 0.
      images: `[B, *model.input_shape]`.
      labels: `[B]`.
      reference: As `keras_reference` and `pytorch_reference` return it.
    """
    (params, batch_stats), expected_logits, expected_gradients = reference
    variables = {"params": params, "batch_stats": batch_stats}
    float32_variables, float32_images = jax.tree.map(np.float32, (variables, images))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), float32_images, train=False))
    assert jax.tree.map(np.shape, variables) == {"batch_stats": {}, **jax.tree.map(jnp.shape, shapes)}

    logits = jax.jit(model.apply, static_argnames="train", compiler_options=FAST)(
        float32_variables, float32_images, train=False
    )
    assert relative(logits, expected_logits) < FLOAT32_TOLERANCE

    with jax.enable_x64(True):
        model = model.clone(dtype=jnp.float64)
        logits, gradients = jax.jit(_logits_and_gradients, static_argnums=0, compiler_options=FAST)(
            model, variables, images, labels
        )
        assert relative(logits, expected_logits) < FLOAT64_TOLERANCE
        gradients, expected_gradients = jax.tree.map(np.asarray, (gradients, expected_gradients))
        norm, expected_norm = (float(optax.tree.norm(tree)) for tree in (gradients, expected_gradients))
    assert abs(norm - expected_norm) < FLOAT64_TOLERANCE * expected_norm
    ours, theirs = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (gradients, expected_gradients))
    assert ours.keys() == theirs.keys()
    for path, gradient in theirs.items():
        assert np.linalg.norm(ours[path] - gradient) < FLOAT64_TOLERANCE * expected_norm, path


def _logits_and_gradients(model, variables, images, labels):
    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return model.apply(variables, images, train=False), jax.grad(loss)(variables["params"])


def relative(values, expected) -> float:
    """Returns the largest difference as a fraction of the largest expected value."""
    return float(np.abs(values - expected).max() / np.abs(expected).max())
