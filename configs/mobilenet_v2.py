"""MobileNetV2, beside MobileNet v1, the candidate of the EMNIST Balanced study.

    python -m emnist_jax.main --config=configs/mobilenet_v2.py
    python -m emnist_jax.main --config=configs/mobilenet_v2.py:fixed

The study's setting is batch 2048 with plain SGD at a constant 0.001. `:fixed` keeps the stem at full
resolution, and lets BatchNorm's averages follow: Keras' 0.999 takes thousands of steps to settle.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("mobilenet_v2", variant)
    if variant == "fixed":
        config.model.stem_stride = 1
    return config
