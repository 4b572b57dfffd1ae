"""ResNet-50 v1, as the EMNIST Balanced study trained it, or with a recipe that trains faster (`:fixed`).

    python -m emnist_jax.main --config=configs/resnet50.py
    python -m emnist_jax.main --config=configs/resnet50.py:fixed

The study's setting: batch 2048, Adam at 5e-4, LeakyReLU, dropout 0.5; it reports 90.40 % top-1, on one batch. That is
the one candidate beside the DenseNet that it got to train. `:fixed` keeps the stem at full resolution: with stride 2
there, max-pooling and three more stages, 28x28 pixels are 1x1 when the last stage begins.
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
    if variant == "fixed":
        config.model.stem_stride = 1
    return config
