"""Our networks against `keras.applications`, on Keras' JAX backend: logits and gradients from the same weights."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emnist_jax import models
from emnist_jax.training import weights
from parity import assert_parity, float64, keras_reference, random_batch

keras = pytest.importorskip("keras", reason="needs the extra 'test'")
applications = keras.applications

pytestmark = pytest.mark.parity


def efficientnet_b1(**settings):
    """Returns EfficientNet-B1 for normalised images, without dropout."""
    model = applications.EfficientNetB1(**settings)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Rescaling):
            layer.scale = 1.0
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


# Model -> builder(**settings) of its reference.
REFERENCES = {
    "densenet121": applications.DenseNet121,
    "efficientnet_b1": efficientnet_b1,
    "mobilenet": partial(applications.MobileNet, dropout=0.0),
    "mobilenet_v2": applications.MobileNetV2,
    "resnet50": applications.ResNet50,
    "vgg16": applications.VGG16,
}
CLASSES = 47


@pytest.mark.parametrize("name", REFERENCES)
def test_parity(name):
    # XLA's convolutions take minutes in float64.
    model = models.MODELS[name](num_classes=CLASSES, convolution="matmul")
    model = model.clone(**{f"{place}_dropout": 0.0 for place in model.dropout_places})
    images, labels = random_batch(model.input_shape, 8, CLASSES)
    with float64():
        reference = keras_reference(
            REFERENCES[name](weights=None, input_shape=model.input_shape, classes=CLASSES, classifier_activation=None),
            images,
            labels,
        )
    assert_parity(model, images, labels, reference)


@pytest.mark.parametrize("name", REFERENCES)
def test_published_counts(name):
    model = models.IMAGENET[f"{name}_imagenet"](num_classes=1000)
    reference = REFERENCES[name](weights=None, input_shape=model.input_shape)
    published = models.PUBLISHED[f"{name}_imagenet", 1000]
    trainable = sum(math.prod(v.shape) for v in reference.trainable_variables)
    assert published.count == {"total": reference.count_params(), "trainable": trainable}[published.of]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own, while it saves
def test_a_file_that_keras_wrote_is_loaded(tmp_path):
    model = models.MODELS["mobilenet"](num_classes=CLASSES)
    reference = applications.MobileNet(weights=None, input_shape=model.input_shape, classes=CLASSES)
    reference.save(tmp_path / "mobilenet.h5")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    params, _ = weights.initial_weights(f"keras:{tmp_path / 'mobilenet.h5'}", shapes["params"], shapes["batch_stats"])
    for layer, weight in (("conv_dw_3", "kernel"), ("conv_preds", "kernel"), ("conv_pw_13_bn", "gamma")):
        expected = {v.name: np.asarray(v.value) for v in reference.get_layer(layer).variables}[weight]
        ours = params[{"conv_preds": "head"}.get(layer, layer)][{"gamma": "scale"}.get(weight, weight)]
        np.testing.assert_array_equal(np.ravel(ours), np.ravel(expected))
