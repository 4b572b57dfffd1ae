"""DenseNet-121 as `keras.applications` builds it: the network the study's own DenseNets came from.

    python -m emnist_jax.main --config=configs/densenet121.py
    python -m emnist_jax.main --config=configs/densenet121.py:fixed

The study's setting: batch 2048, Nesterov momentum at 0.01, the best of its 21 optimizers and learning rates
(validation 89.3 %). `:fixed` keeps the stem at full resolution: with it the fourth block sees 2x2 pixels, not 1x1.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("densenet121", variant)
    if variant == "study":
        config.optimizer.name = "nesterov"
        config.optimizer.learning_rate = 0.01
    if variant == "fixed":
        config.model.stem_stride = 1
    return config
