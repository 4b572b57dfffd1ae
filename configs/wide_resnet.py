"""WRN-28-10, one of the candidates of the EMNIST Balanced study.

    python -m emnist_jax.main --config=configs/wide_resnet.py
    python -m emnist_jax.main --config=configs/wide_resnet.py:fixed

The study's setting is batch 2048 with plain SGD at a constant 0.001. The study does not say which Wide
ResNet it tried. Made for 32x32 pixels, it needs no other stem: `:fixed` is the recipe alone, and WRN-40-2, with about
as many parameters as the DenseNet (2.2 million for 36.5); add --config.model.name=wrn_28_10 for the large one.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("wrn_28_10", variant)
    if variant == "fixed":
        config.model.name = "wrn_40_2"
    return config
