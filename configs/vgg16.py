"""VGG16 in the setting of the EMNIST Balanced study, or with a recipe that trains it (`:fixed`).

    python -m emnist_jax.main --config=configs/vgg16.py
    python -m emnist_jax.main --config=configs/vgg16.py:fixed

The study's setting is batch 2048 with plain SGD at 0.001; it reports that several such networks did not train.
`:fixed` is `study.candidate`'s recipe and VGG16 with BatchNorm, as torchvision has it: without, its loss stays that of
chance, with either optimizer.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    return study.candidate("vgg16_bn" if variant == "fixed" else "vgg16", variant)
