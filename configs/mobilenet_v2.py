"""MobileNetV2 in the EMNIST Balanced study's setting for MobileNet, or with a recipe that trains it (`:fixed`).

    python -m emnist_jax.main --config=configs/mobilenet_v2.py
    python -m emnist_jax.main --config=configs/mobilenet_v2.py:fixed

The study did not try it; its setting for the others is batch 2048 with plain SGD at 0.001.
`:fixed` is `study.candidate`'s recipe with the stem at full resolution: five strides of 2 leave 1x1 of 32x32
pixels. BatchNorm's averages, in Keras with 0.999, take thousands of steps to settle, of which a batch of 2048 leaves 45
in an epoch: until then, evaluation is no better than chance.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    return study.candidate("mobilenet_v2", variant)
