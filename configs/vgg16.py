"""VGG16, one of the candidates that "did not train" in the EMNIST Balanced study.

    python -m emnist_jax.main --config=configs/vgg16.py
    python -m emnist_jax.main --config=configs/vgg16.py:fixed

The study's setting is batch 2048 with plain SGD at a constant 0.001. Thirteen convolutions without
normalisation pass on so little of it that the loss stays at log(47). `:fixed` is VGG16 with BatchNorm, as torchvision
has it.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("vgg16", variant)
    if variant == "fixed":
        config.model.name = "vgg16_bn"
    return config
