"""Tests of the networks: exact counts, gradients, settings, initial weights, convolution and dropout."""

import functools
from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from emnist_jax import models
from emnist_jax.config import base
from emnist_jax.errors import UserError
from emnist_jax.models.convolution import forward_convolution, matmul_convolution
from emnist_jax.models.layers import ACTIVATIONS, Dropout, Network
from emnist_jax.models.lenet5 import RBF

# Model -> parameters in all, trainable ones: ours, if no count is published for the number of classes that we use.
RECORDED = {
    "densenet121": (7_085_679, 7_002_031),
    "dpn68": (11_882_869, 11_817_753),
    "dpn92": (35_230_991, 35_105_775),
    "efficientnet_b1": (6_635_439, 6_573_391),
    "mnist_cnn": (242_442, 241_994),
    "mnist_m5": (1_129_120, 1_128_160),
    "mnist_mini": (3_198, 2_996),
    "mnist_nano": (676, 610),
    "mnist_small": (5_230, 4_954),
    "mnist_tiny": (1_292, 1_184),
    "mobilenet": (3_277_039, 3_255_151),
    "mobilenet_v2": (2_318_191, 2_284_079),
    "shufflenet": (974_328, 949_848),
    "shufflenet_v2": (1_317_959, 1_301_779),
    "vgg16": (33_789_807, 33_789_807),
    "vgg16_bn": (33_806_703, 33_798_255),
    "wrn_28_10": (36_520_863, 36_502_911),
    "wrn_40_2": (2_253_727, 2_248_319),
}

# Biases of convolutions right before a BatchNorm, which takes them out again: their gradient is 0.
CANCELLED = {"mnist_cnn": {"conv1/bias", "conv3/bias", "conv5/bias"}}

# The parity tests compare the other networks with other people's code.
OURS = [name for name in models.MODELS if name.startswith(("densenet_", "lenet5", "mnist")) or name == "densenet"]
# Left to `-m slow`: made of the same kinds of layers as the others.
SLOW = {
    *(name for name in OURS if name.startswith("densenet")),
    *(f"mnist_squeeze_{i}" for i in range(2, 8)),
    *("mnist_gap_v1", "mnist_gap_v2", "mnist_m5", "mnist_mini", "mnist_tiny"),
}
# Networks that differ from another in the recipe only.
TWINS = {
    "mnist_squeeze_8": "mnist_squeeze_7",
    "mnist_squeeze_9": "mnist_squeeze_7",
    "mnist_gap_v4": "mnist_gap_v3",
    "mnist_gap_v5": "mnist_gap_v3",
}

# Compiling is nearly all of the time.
FAST = {"xla_backend_optimization_level": 0}
jit_model = partial(jax.jit, static_argnums=0, compiler_options=FAST)


def settings(name: str, **changes):
    config = base().model
    config.name = name
    config.update_from_flattened_dict(changes)
    return config


def classes(name: str) -> int:
    return 10 if name.startswith("mnist") else 47


def create(name: str, **changes):
    return models.create(settings(name, **changes), classes(name))


def tiny_densenet(**changes):
    """Returns a DenseNet of one layer a block, two blocks: every kind of layer, little to compile."""
    return create("densenet", convolution="xla", **changes).clone(blocks=(1, 1), growth=4)


def batch(model, size: int = 4, seed: int = 0) -> jax.Array:
    """Returns normalised images of random pixels."""
    pixels = np.random.default_rng(seed).random((size, *model.input_shape))
    return jnp.asarray((pixels - 0.1307) / 0.3081, jnp.float32)


def key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed, impl="rbg")  # compiles faster than the default


def flat(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in flax.traverse_util.flatten_dict(tree, sep="/").items()}


@jit_model
def init(model):
    images = jnp.zeros((1, *model.input_shape))
    return {"batch_stats": {}, **model.init(key(), images, train=False)}


@jit_model
def train_logits(model, variables, images, dropout_key):
    rngs = {"dropout": dropout_key}
    return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)


@jit_model
def train_and_evaluate(model, variables, images, others):
    """Returns logits, new batch_stats and gradients of training, and evaluation's logits of both batches."""

    def loss(params):
        logits, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key(1)},
        )
        labels = jnp.arange(len(images))
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return losses.mean(), (logits, updates.get("batch_stats", {}))

    gradients, (logits, batch_stats) = jax.grad(loss, has_aux=True)(variables["params"])
    # No rng: evaluation that needs one fails here.
    evaluated = lax.map(lambda x: model.apply(variables, x, train=False, mutable=[])[0], jnp.stack([images, others]))
    return logits, batch_stats, gradients, evaluated


@functools.cache
def abstract(model):
    """Returns what is known of a network by tracing alone.

    Returns:
      The logits and the variables, with every layer's output among them, as shapes; the rates of its dropouts, in the
      order of their calls.
    """
    rates = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Dropout):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    apply = partial(model.init_with_output, train=False, capture_intermediates=True)
    with nn.intercept_methods(record):
        return *jax.eval_shape(apply, key(), batch(model, 1)), rates


def traced(name: str):
    """Returns `abstract` of a network in bfloat16, so that the tests trace it once."""
    return abstract(create(name, dtype="bfloat16"))


@pytest.mark.parametrize(("name", "classes"), models.SETTINGS)
def test_parameter_counts(name, classes):
    if name in models.MODELS:
        model = create(name, dtype="bfloat16").clone(num_classes=classes)  # as in `traced`
    else:
        model = models.IMAGENET[name](num_classes=classes, dtype=jnp.bfloat16)
    variables = abstract(model)[1]
    assert variables.keys() <= {"params", "batch_stats", "intermediates"}
    trainable, statistics = (
        sum(x.size for x in jax.tree.leaves(variables.get(k, {}))) for k in ("params", "batch_stats")
    )
    counts = {"total": trainable + statistics, "trainable": trainable}
    if published := models.PUBLISHED.get((name, classes)):
        assert counts[published.of] == published.count
    else:
        assert tuple(counts.values()) == RECORDED[name]


def test_last_features_and_stems_of_the_densenets():
    def shapes(name):
        seen = traced(name)[1]["intermediates"]
        return seen["conv1_conv"]["__call__"][0].shape, seen["bn"]["__call__"][0].shape

    assert shapes("densenet") == ((1, 16, 16, 64), (1, 1, 1, 452))
    # "Less zero padding", at the same count.
    assert shapes("densenet_layer_4_2")[0] == (1, 16, 16, 64)
    assert shapes("densenet_layer_4_3")[0] == (1, 15, 15, 64)


@pytest.mark.parametrize(("name", "twin"), TWINS.items())
def test_twins(name, twin):
    def described(name):
        layers = [repr(x) if hasattr(x, "__dict__") and vars(x) else type(x) for x in create(name).layers]
        return layers, create(name).clone(layers=())

    assert described(name) == described(twin)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in OURS if name not in TWINS],
)
def test_forward_and_backward(name):
    model = create(name, convolution="xla")  # compiles faster
    variables = init(model)
    images, others = batch(model), batch(model, seed=1).at[0].set(batch(model)[0])
    logits, batch_stats, gradients, evaluated = train_and_evaluate(model, variables, images, others)

    assert logits.shape == (4, classes(name)) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all() and np.isfinite(evaluated).all()
    assert evaluated.dtype == jnp.float32
    # Evaluation sees nothing of the rest of the batch.
    np.testing.assert_allclose(evaluated[0, 0], evaluated[1, 0], rtol=1e-5, atol=1e-5)
    assert (np.abs(evaluated[0, 1:] - evaluated[1, 1:]).max(-1) > 1e-6).all()

    gradients = flat(gradients)
    assert gradients.keys() == flat(variables["params"]).keys()
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        size = np.abs(gradient).max()
        if path in CANCELLED.get(name, ()):
            assert size < 1e-4 * np.abs(gradients[path.replace("bias", "kernel")]).max(), path
        else:
            assert size > 1e-6, path

    before, after = flat(variables["batch_stats"]), flat(batch_stats)
    assert before.keys() == after.keys()
    for path, value in after.items():
        # A channel's variance may by chance be 1, as it was.
        assert np.isfinite(value).all() and (value != before[path]).mean() > 0.9, path


def test_batch_norm_momentum_reaches_the_running_statistics():
    variables = init(create("mnist_squeeze_4"))

    def change(**changes):
        model = create("mnist_squeeze_4", convolution="xla", **changes)
        _, updates = train_logits(model, variables, batch(model), key())
        return flat(updates["batch_stats"])["norm1/mean"]  # from 0

    usual = change()
    assert np.abs(usual).max() > 1e-3
    np.testing.assert_allclose(change(batch_norm_momentum=0.6), 4 * usual, rtol=1e-4)
    assert create("densenet").batch_norm_momentum == 0.99 and create("mnist_cnn").batch_norm_momentum == 0.9


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("densnet", {}, "unknown model 'densnet'; did you mean 'densenet'?"),
        ("vgg16_imagenet", {}, "model 'vgg16_imagenet' is for counts alone; use 'vgg16'"),
        ("lenet5", {"activation": "leaky_rel"}, "activation 'leaky_rel'; did you mean 'leaky_relu'?"),
        ("lenet5", {"initializer": "kears"}, "initializer 'kears'; did you mean 'keras'?"),
        ("lenet5", {"dropout.stem": 0.1}, "'lenet5' has no stem_dropout; its places of dropout: head"),
        ("mnist_cnn", {"dropout.block": 0.1}, "'mnist_cnn' has no block_dropout; its places of dropout"),
        # A place that only other networks of the same class have.
        ("mnist_squeeze_1", {"dropout.convolution": 0.1}, "'mnist_squeeze_1' has no convolution_dropout"),
        ("mnist_squeeze_10", {"dropout.head": 0.1}, "'mnist_squeeze_10' has no head_dropout"),
        ("mnist_cnn", {"dropout.convolution": 0.1}, "'mnist_cnn' has no convolution_dropout"),
        ("vgg16", {"stem_stride": 1}, "model 'vgg16' has no stem_stride"),
    ],
)
def test_wrong_setting_is_an_error(name, changes, message):
    with pytest.raises(UserError) as error:
        models.create(settings(name, **changes), 10)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("place", "rate", "calls"),
    [
        pytest.param("head", 0.5, [8], id="dropout_1"),
        pytest.param("head", 0.3, [8], id="dropout_1_1", marks=pytest.mark.slow),
        pytest.param("block", 0.5, [3, 7], id="dropout_2"),
        pytest.param("transition", 0.5, [4], id="dropout_3"),
        pytest.param("convolution", 0.2, [1, 2, 5, 6], id="dropout_4"),
        pytest.param("stem", 0.5, [0], id="dropout_5"),
        pytest.param("stem", 0.2, [0], id="dropout_5_1", marks=pytest.mark.slow),
    ],
)
def test_dropout_of_the_study_reaches_the_densenet(place, rate, calls):
    model = tiny_densenet(**{"dropout.head": 0.0, f"dropout.{place}": rate})
    assert abstract(model)[2] == [rate if i in calls else 0.0 for i in range(9)]
    variables = init(tiny_densenet())
    one, two, again = (train_logits(model, variables, batch(model), key(i))[0] for i in (1, 2, 1))
    assert (np.abs(one - two).max(-1) > 1e-3).all()
    np.testing.assert_array_equal(one, again)


def test_dropout_rates_of_the_sources():
    assert abstract(tiny_densenet())[2] == [0.0] * 8 + [0.3]
    assert not any(traced("densenet121")[2])
    residual = [i for i in range(23) if i not in (0, 2, 5, 8, 12, 16, 21)]
    np.testing.assert_allclose(traced("efficientnet_b1")[2], [*(0.2 * i / 23 for i in residual), 0.2])
    assert traced("lenet5")[2] == traced("lenet5_rbf")[2] == [0.5]
    assert traced("mnist_cnn")[2] == [0.4]
    for number, count in ((4, 0), (5, 6), (6, 6), (7, 5), (10, 5)):
        assert [rate for rate in traced(f"mnist_squeeze_{number}")[2] if rate] == [0.01] * count
    assert traced("mnist_onecycle")[2] == [0.05] * 6
    assert not any(traced("mnist_gap_v5")[2])


class Seen(Exception):
    """Ends the tracing of a network."""


@pytest.mark.parametrize("name", [name for name in models.MODELS if hasattr(create(name), "stem_stride")])
def test_the_stem_s_stride_reaches_its_convolution(name):
    def first_convolution(call, args, kwargs, context):
        outputs = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv):
            raise Seen(outputs.shape[1])
        return outputs

    sizes = []
    for stride in (1, 2):
        model = create(name, stem_stride=stride)
        with nn.intercept_methods(first_convolution), pytest.raises(Seen) as seen:
            jax.eval_shape(partial(model.init, train=False), key(), batch(model, 1))
        sizes.append(seen.value.args[0])
    assert sizes[1] == -(-sizes[0] // 2)


@pytest.mark.parametrize("name", ["lenet5", "mnist_small", "resnet50"])
def test_activation_replaces_every_relu(name):
    model = create(name, activation="swish")
    program = str(jax.make_jaxpr(partial(model.init, train=False))(key(), batch(model, 1)))
    assert "silu" in program and "relu" not in program


def test_synchronisation_of_batch_norm_reaches_the_network():
    assert [create("mnist_gap_v2", sync_batch_norm=x).sync_batch_norm for x in (True, False)] == [True, False]


def test_without_dropout_training_needs_no_rng():
    model = tiny_densenet(**{"dropout.head": 0.0})
    jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), init(model), batch(model))


def test_activations():
    x = np.linspace(-9, 9, 37, dtype=np.float32)
    expected = {
        "elu": np.where(x > 0, x, np.expm1(x)),
        "leaky_relu": np.where(x > 0, x, 0.3 * x),
        "relu": np.maximum(x, 0),
        "relu6": np.clip(x, 0, 6),
        "swish": x / (1 + np.exp(-x)),
        "tanh": np.tanh(x),
    }
    assert ACTIVATIONS.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), values, atol=1e-6, err_msg=name)


def test_activation_reaches_the_densenet():
    variables = init(tiny_densenet())
    logits = {}
    for name in (None, "elu", "leaky_relu", "relu", "swish"):
        model = tiny_densenet(**{"dropout.head": 0.0, "activation": name})
        logits[name] = train_logits(model, variables, batch(model), key())[0]
    np.testing.assert_array_equal(logits[None], logits["elu"])
    del logits[None]
    for one in logits:
        assert all(np.abs(logits[one] - logits[two]).max() > 1e-2 for two in logits if two != one)
    own = {name: create(name).activation for name in ("lenet5", "lenet5_rbf", "mnist_cnn")}
    assert own == {"lenet5": "relu", "lenet5_rbf": "tanh", "mnist_cnn": "relu"}


def assert_uniform(values, bound: float, message: str):
    """Asserts that `values` fill -bound to bound evenly."""
    n = values.size
    assert np.abs(values).max() <= bound * (1 + 1e-6), message
    assert np.abs(values).max() > bound * (1 - 20 / n), message
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=3 / np.sqrt(n), err_msg=message)
    assert abs(values.mean()) < 4 * bound / np.sqrt(3 * n), message


@pytest.mark.parametrize("initializer", ["keras", "pytorch"])
@pytest.mark.parametrize("name", ["lenet5", "mnist_cnn"])
def test_initial_weights(name, initializer):
    params = flat(init(create(name, initializer=initializer))["params"])
    biases = []
    for path, kernel in params.items():
        if not path.endswith("/kernel"):
            continue
        area = np.prod(kernel.shape[:-2])
        fan_in, fan_out = area * kernel.shape[-2], area * kernel.shape[-1]
        keras = initializer == "keras"
        assert_uniform(kernel, np.sqrt(6 / (fan_in + fan_out) if keras else 1 / fan_in), path)
        biases.append(params[path.replace("kernel", "bias")] * np.sqrt(fan_in))
    if initializer == "keras":
        assert not np.concatenate(biases).any()
    else:
        assert_uniform(np.concatenate(biases), 1, "biases")
    if name == "mnist_cnn":
        np.testing.assert_array_equal(params["norm1/scale"], 1)
        np.testing.assert_array_equal(params["norm1/bias"], 0)


class Depthwise(Network):
    """32 channels to 32, and a head."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 32, 5, groups=32, name="depthwise")
        return self.logits(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("initializer", "depthwise_bound", "depthwise_std", "head_bound"),
    [
        # Sources' kernels: Keras' [h, w, C, 1], PyTorch's [C, 1, h, w].
        ("keras", np.sqrt(6 / (25 * 32 + 25)), None, np.sqrt(6 / (32 + 47))),
        ("pytorch", np.sqrt(1 / 25), None, np.sqrt(1 / 32)),
        ("he", None, np.sqrt(2 / (25 * 32)), np.sqrt(1 / 32)),
        ("efficientnet", None, np.sqrt(2 / 25), np.sqrt(1 / 47)),
    ],
)
def test_initial_weights_of_depthwise_and_dense_layers(initializer, depthwise_bound, depthwise_std, head_bound):
    model = Depthwise(47, input_shape=(5, 5, 32), initializer=initializer)
    params = flat(init(model)["params"])
    assert_uniform(params["head/kernel"], head_bound, "head")
    kernel = params["depthwise/kernel"]
    if depthwise_bound:
        assert_uniform(kernel, depthwise_bound, "depthwise")
    else:
        np.testing.assert_allclose(kernel.std(), depthwise_std, rtol=3 / np.sqrt(2 * kernel.size))
        # A normal distribution of the same standard deviation, cut at twice its own, ends at 2.27.
        assert (np.abs(kernel).max() < 2.28 * depthwise_std) == (initializer == "efficientnet")


def test_initial_weights_follow_the_source():
    sources = {
        "densenet": "keras",
        "lenet5": "keras",
        "resnet50": "keras",
        "mobilenet": "keras",
        "vgg16_bn": "he",
        "vgg16": "keras",
        "efficientnet": "efficientnet",
        "wrn": "he",
    }
    for name in models.MODELS:
        family = next((family for family in sources if name.startswith(family)), None)
        assert create(name).initializer == sources.get(family, "pytorch"), name
    centres = flat(init(create("lenet5_rbf"))["params"])["head/centres"]
    assert_uniform(centres, np.sqrt(6 / (47 + 84)), "centres")


@pytest.mark.parametrize(
    ("image", "kernel", "features", "strides", "padding", "groups"),
    [
        # Odd square kernels of stride 1 go another way where the features are few.
        ((8, 8), (3, 3), 5, (1, 1), "SAME", 1),
        ((8, 8), (3, 3), 24, (1, 1), "SAME", 1),
        ((9, 7), (3, 3), 16, (1, 1), "VALID", 1),
        ((9, 7), (3, 3), 17, (1, 1), "VALID", 1),
        ((7, 10), (5, 5), 4, (1, 1), ((2, 2), (2, 2)), 1),
        ((5, 5), (5, 5), 4, (1, 1), "VALID", 1),
        ((3, 4), (3, 3), 4, (1, 1), ((0, 1), (1, 0)), 1),
        ((9, 8), (3, 3), 4, (2, 2), "SAME", 1),
        ((8, 9), (3, 3), 24, (2, 1), ((1, 0), (0, 2)), 1),
        ((11, 10), (7, 7), 4, (2, 2), ((3, 3), (3, 3)), 1),
        ((6, 7), (1, 1), 4, (1, 1), "VALID", 1),
        ((6, 7), (1, 1), 24, (2, 3), "SAME", 1),
        ((7, 6), (2, 3), 4, (1, 1), "SAME", 1),
        ((6, 6), (6, 6), 4, (1, 1), "VALID", 1),
        # Kernels larger than the image.
        ((2, 2), (3, 3), 24, (1, 1), "SAME", 1),
        ((4, 2), (3, 3), 24, (2, 1), ((1, 1), (1, 1)), 1),
        # Grouped, depthwise and depthwise with two features a channel.
        ((8, 8), (3, 3), 12, (1, 1), "SAME", 3),
        ((9, 8), (3, 3), 6, (2, 2), "SAME", 2),
        ((8, 7), (1, 1), 9, (1, 1), "VALID", 3),
        ((8, 7), (1, 1), 6, (2, 2), "SAME", 2),
        ((8, 8), (3, 3), 6, (1, 1), "SAME", 6),
        ((8, 9), (3, 3), 6, (2, 2), ((1, 1), (1, 1)), 6),
        ((8, 9), (5, 5), 6, (2, 2), "SAME", 6),
        ((1, 1), (3, 3), 6, (2, 2), ((1, 1), (1, 1)), 6),
        ((7, 8), (3, 3), 12, (2, 2), "SAME", 6),
    ],
)
def test_matmul_convolution_equals_xla_s(image, kernel, features, strides, padding, groups):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(2, *image, 6)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(*kernel, 6 // groups, features)), jnp.float32)
    layout = ("NHWC", "HWIO", "NHWC")

    def run(convolution):
        def total(inputs, weights):
            outputs = convolution(
                inputs, weights, strides, padding, dimension_numbers=layout, feature_group_count=groups
            )
            return jnp.square(outputs).sum(), outputs

        function = jax.jit(jax.grad(total, (0, 1), has_aux=True), compiler_options=FAST)
        gradients, outputs = function(inputs, weights)
        return outputs, *gradients

    expected = run(lax.conv_general_dilated)
    forward = partial(forward_convolution, dimension_numbers=layout, feature_group_count=groups)
    forward = jax.jit(forward, static_argnums=(2, 3), compiler_options=FAST)(inputs, weights, strides, padding)
    for ours, theirs in zip((*run(matmul_convolution), forward), (*expected, expected[0]), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("image, calls_xla", [((3, 3), True), ((2, 3), False), ((3, 2), False)])
def test_inference_does_not_convolve_with_kernels_larger_than_the_image(image, calls_xla):
    """XLA's convolution is 6 to 80 times slower than matrix products there."""
    inputs, kernel = jnp.zeros((1, *image, 32)), jnp.zeros((3, 3, 32, 32))
    layout = ("NHWC", "HWIO", "NHWC")
    program = jax.make_jaxpr(lambda x, w: forward_convolution(x, w, (1, 1), "SAME", dimension_numbers=layout))
    assert ("conv_general_dilated" in str(program(inputs, kernel))) == calls_xla


def test_inference_uses_convolutions_of_its_own_on_a_cpu_alone():
    xla, matmul = (create("mnist_gap_v2", convolution=c) for c in ("xla", "matmul"))
    assert xla.for_inference is xla and matmul.for_inference.convolution == "forward"
    variables = init(xla)
    apply = jax.jit(nn.Module.apply, static_argnums=0, static_argnames="train", compiler_options=FAST)
    logits = [apply(model, variables, batch(xla), train=False) for model in (xla, matmul.for_inference)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


def test_convolution_setting():
    xla, matmul, auto = (create("mnist_gap_v2", convolution=c) for c in ("xla", "matmul", "auto"))
    assert auto == (matmul if jax.default_backend() == "cpu" else xla)
    variables = init(xla)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, init(matmul))
    logits = [train_logits(model, variables, batch(xla), key())[0] for model in (xla, matmul)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_bfloat16_computes_in_it_but_keeps_parameters_and_head(name):
    logits, variables, _ = traced(name)
    outputs = variables["intermediates"]
    assert {x.dtype for x in jax.tree.leaves({**variables, "intermediates": {}})} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    for path, (output,) in flax.traverse_util.flatten_dict(outputs).items():
        expected = jnp.float32 if path[0] in ("head", "__call__") else jnp.bfloat16
        assert output.dtype == expected, path


def test_rbf_head():
    rng = np.random.default_rng(0)
    x, centres = rng.normal(size=(5, 84)), rng.normal(size=(47, 84))
    logits = jax.jit(RBF(47).apply)({"params": {"centres": jnp.asarray(centres, jnp.float32)}}, x)
    expected = -np.square(np.linalg.norm(x[:, None] - centres[None], axis=-1))
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def drop(x, rate: float, devices: int = 1, train: bool = True, whole_examples: bool = False):
    """Returns dropout's output with the batch split over `devices`."""
    layer = Dropout(rate, "data" if devices > 1 else None, whole_examples)

    def apply(x):
        return layer.apply({}, x, train, rngs={"dropout": jax.random.key(0)})

    if devices > 1:
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        apply = jax.shard_map(apply, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    return np.asarray(jax.jit(apply)(x))


@pytest.mark.parametrize("devices", [2, 4])
def test_dropout_is_the_same_on_any_number_of_devices(devices):
    if jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 5, 7)), jnp.float32)
    one = drop(x, 0.5)
    np.testing.assert_array_equal(drop(x, 0.5, devices), one)
    masks = (one != 0).reshape(8, -1)
    assert len(np.unique(masks, axis=0)) == 8, "examples share a mask"


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate):
    x = np.full((8, 50_001), 2, np.float32)
    out = drop(x, rate)
    np.testing.assert_allclose(np.unique(out), [0, 2 / (1 - rate)], rtol=1e-6)
    dropped = (out == 0).astype(float)
    sigma = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(dropped.mean() - rate) < 5 * sigma
    np.testing.assert_allclose(out.mean(), 2, rtol=5 * sigma / (1 - rate))
    for first, second in ((dropped[:, :-1], dropped[:, 1:]), (dropped[:-1], dropped[1:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(first.size)
    np.testing.assert_array_equal(drop(x, rate, train=False), x)


def test_stochastic_depth_drops_whole_examples():
    x = np.full((4000, 3, 2), 2, np.float32)
    out = drop(x, 0.2, whole_examples=True).reshape(4000, -1)
    assert (out == out[:, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 2.5], rtol=1e-6)
    assert abs((out[:, 0] == 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)
    np.testing.assert_array_equal(drop(x, 0.2, train=False, whole_examples=True), x)
