"""ResNet-50 v1 in the setting of the EMNIST Balanced study, or with the recipe that trains all its networks (`:fixed`).

    python -m emnist_jax.main --config=configs/resnet50.py
    python -m emnist_jax.main --config=configs/resnet50.py:fixed

The study's setting: batch 2048, Adam at 5e-4, LeakyReLU, dropout 0.5 before the head; it reports 90.40 % top-1.
`:fixed` also keeps the stem at full resolution: with stride 2 there, the last stage sees 1x1 of 32x32 pixels.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("resnet50", variant)
    if variant == "study":
        config.optimizer.name = "adam"
        config.optimizer.learning_rate = 5e-4
        config.optimizer.epsilon = 1e-7
        config.model.activation = "leaky_relu"
        config.model.dropout.head = 0.5
    return config
