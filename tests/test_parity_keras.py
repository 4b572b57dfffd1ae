"""Our networks against `keras.applications`, on Keras' JAX backend: logits and gradients from the same weights."""

import pytest

from emnist_jax import models
from parity import assert_parity, float64, keras_reference, random_batch

keras = pytest.importorskip("keras", reason="needs the extra 'parity'")
applications = keras.applications

pytestmark = pytest.mark.parity

# Model -> builder(**settings) of its reference.
REFERENCES = {
    "resnet50": applications.ResNet50,
}
CLASSES = 47


@pytest.mark.parametrize("name", REFERENCES)
def test_parity(name):
    model = models.MODELS[name](num_classes=CLASSES)
    model = model.clone(**{f"{place}_dropout": 0.0 for place in model.dropout_places})
    images, labels = random_batch(model.input_shape, 8, CLASSES)
    with float64():
        reference = keras_reference(
            REFERENCES[name](weights=None, input_shape=model.input_shape, classes=CLASSES, classifier_activation=None),
            images,
            labels,
        )
    assert_parity(model, images, labels, reference)
