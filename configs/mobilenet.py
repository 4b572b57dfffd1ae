"""MobileNet v1 in the setting of the EMNIST Balanced study, or with a recipe that trains it (`:fixed`).

    python -m emnist_jax.main --config=configs/mobilenet.py
    python -m emnist_jax.main --config=configs/mobilenet.py:fixed

The study's setting is batch 2048 with plain SGD at 0.001; it reports that several such networks did not train.
`:fixed` is `study.candidate`'s recipe with the stem at full resolution: five strides of 2 leave 1x1 of 32x32
pixels. Its small initial depthwise weights make BatchNorm's averages matter: until they have settled, for which Keras'
0.99 takes hundreds of steps, evaluation is no better than chance.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    return study.candidate("mobilenet", variant)
