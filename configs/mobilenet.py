"""MobileNet v1, one of the candidates of the EMNIST Balanced study.

    python -m emnist_jax.main --config=configs/mobilenet.py
    python -m emnist_jax.main --config=configs/mobilenet.py:fixed

The study's setting is batch 2048 with plain SGD at a constant 0.001. `:fixed` keeps the stem at full
resolution: five strides of 2 leave 1x1 of 32x32 pixels, so that the last two layers are no convolutions any more.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("mobilenet", variant)
    if variant == "fixed":
        config.model.stem_stride = 1
    return config
