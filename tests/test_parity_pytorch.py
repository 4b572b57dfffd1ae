"""Our networks against torchvision's and timm's, on PyTorch: logits and gradients from the same weights."""

import pytest
from parity import assert_parity, pytorch_reference, random_batch

from emnist_jax import models

timm = pytest.importorskip("timm", reason="needs the extra 'parity'")
torchvision = pytest.importorskip("torchvision", reason="needs the extra 'parity'")

pytestmark = pytest.mark.parity

CLASSES = 47
# Model -> builder() of its reference.
REFERENCES = {}


@pytest.mark.parametrize("name", REFERENCES)
def test_parity(name):
    model = models.MODELS[name](num_classes=CLASSES)
    model = model.clone(**{f"{place}_dropout": 0.0 for place in model.dropout_places})
    images, labels = random_batch(model.input_shape, 8, CLASSES)
    assert_parity(model, images, labels, pytorch_reference(REFERENCES[name](), images, labels))
