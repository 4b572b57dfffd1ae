"""Our networks against the sources' own descriptions: logits and gradients from the same weights.

The EMNIST Balanced study's are written in plain Keras layers, those of the MNIST networks in plain PyTorch layers;
all without dropout.
"""

import itertools
from collections import OrderedDict

import jax
import numpy as np
import pytest

from emnist_jax import models
from parity import FAST, FLOAT64_TOLERANCE, assert_parity, float64, keras_reference, pytorch_reference, random_batch


@pytest.fixture
def keras():
    return pytest.importorskip("keras", reason="needs the extra 'parity'")


@pytest.fixture
def nn():
    return pytest.importorskip("torch", reason="needs the extra 'parity'").nn


def ours(name: str, classes: int):
    """Returns our network without dropout, and a batch for it."""
    model = models.MODELS[name](num_classes=classes)
    model = model.clone(**{f"{place}_dropout": 0.0 for place in model.dropout_places})
    return model, *random_batch(model.input_shape, 8, classes)


# EMNIST Balanced study


def lenet5(keras, activation: str, head):
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 3)),
            layers.Conv2D(6, 5, padding="same", activation=activation, name="c1"),
            layers.AveragePooling2D(2),
            layers.Conv2D(16, 5, activation=activation, name="c3"),
            layers.AveragePooling2D(2),
            layers.Conv2D(120, 5, activation=activation, name="c5"),
            layers.Flatten(),
            layers.Dense(84, activation=activation, name="f6"),
            head,
        ]
    )


@pytest.mark.parity
def test_lenet5(keras):
    model, images, labels = ours("lenet5", 47)
    with float64():
        source = lenet5(keras, "relu", keras.layers.Dense(47, name="head"))
        assert source.count_params() == models.PUBLISHED["lenet5", 47].count
        reference = keras_reference(source, images, labels)
    assert_parity(model, images, labels, reference)


@pytest.mark.ci
def test_lenet5_rbf(keras):
    class RBF(keras.layers.Layer):
        def build(self, input_shape):
            self.centres = self.add_weight((47, input_shape[-1]), name="kernel")

        def call(self, inputs):
            difference = keras.ops.expand_dims(inputs, 1) - self.centres
            return keras.ops.exp(-keras.ops.sum(difference**2, axis=2))

    model, images, labels = ours("lenet5_rbf", 47)
    with float64():
        source = lenet5(keras, "tanh", RBF(name="head"))
        assert source.count_params() == models.PUBLISHED["lenet5_rbf", 47].count
        # Ours gives the logarithm of the source's outputs.
        logarithm = keras.Model(source.inputs[0], keras.ops.log(source.outputs[0]))
        (params, batch_stats), logits, gradients, stats = keras_reference(logarithm, images, labels)

        def loss(trainable):
            outputs, _ = source.stateless_call(trainable, [], images, training=True)
            return keras.losses.categorical_crossentropy(np.eye(47)[labels], outputs).mean()

        trainable = [v.value for v in source.trainable_variables]
        of_the_source = jax.jit(jax.grad(loss), compiler_options=FAST)(trainable)
    # The source's loss, of outputs that are no probabilities, is the cross-entropy of ours.
    for v, gradient in zip(source.trainable_variables, of_the_source, strict=True):
        *_, layer, name = v.path.split("/")
        np.testing.assert_allclose(gradient, gradients[layer][name], rtol=0, atol=FLOAT64_TOLERANCE)
    for tree in (params, gradients):
        tree["head"] = {"centres": tree["head"]["kernel"]}
    assert_parity(model, images, labels, ((params, batch_stats), logits, gradients, stats))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "depths", "compression", "padding"),
    [
        ("densenet", (3, 6, 12, 6), 0.5, 3),
        ("densenet_layer_1", (4, 8, 16, 8), 0.5, 3),
        ("densenet_layer_2", (6, 12), 0.5, 3),
        ("densenet_layer_3", (6, 12, 24, 16), 0.3, 3),
        ("densenet_layer_4", (3, 6, 12, 6), 0.5, 3),
        ("densenet_layer_4_2", (2, 4, 8, 4), 0.5, 3),
        ("densenet_layer_4_3", (2, 4, 8, 4), 0.5, 2),
        ("densenet_121_base", (6, 12, 24, 16), 0.5, 3),
    ],
)
def test_densenets(keras, name, depths, compression, padding):
    layers = keras.layers

    def norm_elu(x, name):
        return layers.Activation("elu")(layers.BatchNormalization(epsilon=1.001e-5, name=name)(x))

    def conv(x, features, size, name):
        return layers.Conv2D(features, size, padding="same", use_bias=False, name=name)(x)

    model, images, labels = ours(name, 47)
    with float64():
        inputs = layers.Input(model.input_shape)
        x = layers.ZeroPadding2D(padding)(inputs)
        x = layers.Conv2D(64, 7, strides=2, use_bias=False, name="conv1_conv")(x)
        x = layers.ZeroPadding2D(1)(norm_elu(x, "conv1_bn"))
        x = layers.AveragePooling2D(3, strides=2)(x)
        for block, depth in enumerate(depths, 2):
            if block > 2:
                x = norm_elu(x, f"pool{block - 1}_bn")
                x = conv(x, int(x.shape[-1] * compression), 1, f"pool{block - 1}_conv")
                x = layers.AveragePooling2D(2)(x)
            for layer in [f"conv{block}_block{i + 1}" for i in range(depth)]:
                bottleneck = conv(norm_elu(x, f"{layer}_0_bn"), 128, 1, f"{layer}_1_conv")
                x = layers.Concatenate()([x, conv(norm_elu(bottleneck, f"{layer}_1_bn"), 32, 3, f"{layer}_2_conv")])
        x = layers.GlobalAveragePooling2D()(norm_elu(x, "bn"))
        source = keras.Model(inputs, layers.Dense(47, name="head")(x))
        assert source.count_params() == models.PUBLISHED[name, 47].count
        reference = keras_reference(source, images, labels)
    assert_parity(model, images, labels, reference)


# MNIST networks


def chain(nn, *layers):
    """Puts PyTorch layers in a row; names them as `models.plain` does, which counts convolutions and pooling."""
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear))
    named, place = OrderedDict(), 0
    for i, layer in enumerate(layers):
        place += isinstance(layer, nn.Conv2d | nn.Linear | nn.MaxPool2d | nn.AvgPool2d)
        kind = type(layer).__name__
        prefix = {"Conv2d": "conv", "BatchNorm2d": "norm", "Linear": "dense"}.get(kind, kind)
        named["head" if i == last else f"{prefix}{place}"] = layer
    return nn.Sequential(named)


def assert_pytorch_parity(name: str, source, translate=lambda layers: None) -> None:
    """Asserts parity with a PyTorch module.

    Args:
      name: Of our network.
      source: The module.
      translate: Changes `{layer: {name: array}}` of the module to ours, in place.
    """
    if published := models.PUBLISHED.get((name, 10)):
        assert sum(p.numel() for p in source.parameters()) == published.count
    model, images, labels = ours(name, 10)
    reference = pytorch_reference(source, images, labels)
    translate(reference[0][0])
    translate(reference[2])
    assert_parity(model, images, labels, reference)


@pytest.mark.parity
def test_mnist_cnn(nn):
    def block(channels, features):
        return (
            nn.Conv2d(channels, features, 3, padding=1),
            nn.BatchNorm2d(features),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    source = chain(
        nn,
        *block(1, 32),
        *block(32, 64),
        *block(64, 128),
        nn.Flatten(),
        nn.Linear(128 * 3 * 3, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )

    def reorder(layers):
        # PyTorch flattens [C, H, W], we [H, W, C].
        layers["dense7"]["kernel"] = layers["dense7"]["kernel"].reshape(128, 9, 128).swapaxes(0, 1).reshape(-1, 128)

    assert_pytorch_parity("mnist_cnn", source, reorder)


# Widths, end, layers with BatchNorm, ReLU after h.
SQUEEZE_AND_EXPAND = {
    1: ("16 32 / 16 / 32 64 / 16 / 32 64", "conv 6x6", "", True),
    2: ("16 20 / 10 / 12 16 / 10 / 12 16", "conv 6x6", "", True),
    3: ("10 12 / 10 / 12 16 / 8 / 10 10", "conv 6x6", "", True),
    4: ("10 12 / 10 / 10 12 / 8 / 10 10", "conv 6x6", "a b d e g h", False),
    5: ("10 12 / 10 / 10 12 / 8 / 10 10", "conv 6x6", "a b d e h", False),
    6: ("10 12 / 10 / 10 12 / 8 / 10 10", "average", "a b d e h", False),
    7: ("10 12 / 10 / 16 16 / 8 / 12 12", "average", "a b d e g h", True),
    8: ("10 12 / 10 / 16 16 / 8 / 12 12", "average", "a b d e g h", True),
    9: ("10 12 / 10 / 16 16 / 8 / 12 12", "average", "a b d e g h", True),
    10: ("10 12 / 10 / 12 12 / 10 / 10 12", "average", "a b d e g h", True),
}


@pytest.mark.parity
@pytest.mark.parametrize("number", SQUEEZE_AND_EXPAND)
def test_mnist_squeeze(nn, number):
    widths, end, norms, relu_after_h = SQUEEZE_AND_EXPAND[number]
    widths = dict(zip("abcdefgh", map(int, widths.replace("/", "").split()), strict=True))

    def layers(letters, size, padding=0):
        """Layers from the first letter to the second."""
        channels, features = (widths.get(letter, 1) for letter in letters)
        yield nn.Conv2d(channels, features, size, padding=padding, bias=False)
        if letters[1] in norms:
            yield nn.BatchNorm2d(features)
        if letters[1] != "h" or relu_after_h:
            yield nn.ReLU()

    source = chain(
        nn,
        *layers(" a", 3, padding=1),
        *layers("ab", 3, padding=1),
        nn.MaxPool2d(2),
        *layers("bc", 1),
        *layers("cd", 3),
        *layers("de", 3),
        *layers("ef", 1),
        *layers("fg", 3),
        *layers("gh", 3),
        *([nn.AvgPool2d(6)] if end == "average" else []),
        nn.Conv2d(widths["h"], 10, 1 if end == "average" else 6, bias=False),
    )
    assert_pytorch_parity(f"mnist_squeeze_{number}", source)


@pytest.mark.parity
@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v4", "v5"])
def test_mnist_gap(nn, version):
    def conv(channels, features, size, padding=0):
        yield nn.Conv2d(channels, features, size, padding=padding, bias=False)
        if version not in ("v1", "v2"):
            yield nn.BatchNorm2d(features)
        yield nn.ReLU()

    last = nn.Conv2d(8, 10, 3, padding=1, bias=False)
    source = chain(
        nn,
        *conv(1, 15, 3, padding=1),
        *conv(15, 15, 3, padding=1),
        nn.MaxPool2d(2),
        *conv(15, 8, 1),
        *conv(8, 9, 3),
        *conv(9, 15, 3),
        nn.MaxPool2d(2),
        *conv(15, 10, 1),
        *conv(10, 8, 3),
        *([last, nn.ReLU(), nn.Conv2d(10, 10, 3, bias=False)] if version == "v1" else [last, nn.AvgPool2d(3)]),
    )
    assert_pytorch_parity(f"mnist_gap_{version}", source)


@pytest.mark.parity
def test_mnist_onecycle(nn):
    def conv3(channels, features):
        return nn.Conv2d(channels, features, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(features)

    source = chain(
        nn,
        *conv3(1, 10),
        *conv3(10, 16),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 10, 1),
        *conv3(10, 16),
        *conv3(16, 16),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 10, 1),
        *conv3(10, 16),
        *conv3(16, 16),
        nn.Conv2d(16, 10, 1),
        nn.AvgPool2d(7),
    )
    assert_pytorch_parity("mnist_onecycle", source)


@pytest.mark.parity
def test_mnist_m5(nn):
    """The code of An et al., less the BatchNorm of its logits; its dense layer is an 8x8 convolution here."""
    widths = (1, 32, 64, 96, 128, 160)
    source = chain(
        nn,
        *(
            layer
            for channels, features in itertools.pairwise(widths)
            for layer in (nn.Conv2d(channels, features, 5, bias=False), nn.BatchNorm2d(features), nn.ReLU())
        ),
        nn.Conv2d(160, 10, 8, bias=False),
    )
    assert_pytorch_parity("mnist_m5", source)
