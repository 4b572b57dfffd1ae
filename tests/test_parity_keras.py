"""Our networks against `keras.applications`, on Keras' JAX backend: logits and gradients from the same weights."""

from functools import partial

import pytest

from emnist_jax import models
from parity import assert_parity, float64, keras_reference, random_batch

keras = pytest.importorskip("keras", reason="needs the extra 'parity'")
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
