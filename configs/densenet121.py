"""DenseNet-121 as `keras.applications` builds it: the network that the study's own DenseNets came from.

    python -m emnist_jax.main --config=configs/densenet121.py
    python -m emnist_jax.main --config=configs/densenet121.py:fixed

The study's setting: batch 2048, Nesterov momentum at 0.01, the best of its 21 pairs of optimizer and learning rate
(validation 89.3 %). `:fixed` is `study.candidate`'s recipe with the stem at full resolution: with stride 2 there, the
last block sees 1x1 of 32x32 pixels.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("densenet121", variant)
    if variant == "study":
        config.optimizer.name = "nesterov"
        config.optimizer.learning_rate = 0.01
    return config
