"""EfficientNet-B1 in the setting of the EMNIST Balanced study, or with a recipe that trains it (`:fixed`).

    python -m emnist_jax.main --config=configs/efficientnet_b1.py
    python -m emnist_jax.main --config=configs/efficientnet_b1.py:fixed

The study's setting is batch 2048 with plain SGD at 0.001; it reports that several such networks did not train.
`:fixed` is `study.candidate`'s recipe with the stem at full resolution: five strides of 2 leave 1x1 of 32x32
pixels.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    return study.candidate("efficientnet_b1", variant)
