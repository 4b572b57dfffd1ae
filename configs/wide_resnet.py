"""WRN-28-10 in the setting of the EMNIST Balanced study, or WRN-40-2 with a recipe that trains it (`:fixed`).

    python -m emnist_jax.main --config=configs/wide_resnet.py
    python -m emnist_jax.main --config=configs/wide_resnet.py:fixed

The study's setting is batch 2048 with plain SGD at 0.001; it reports that several such networks did not train.
Which Wide ResNet it tried it does not say. Made for 32x32 pixels, they need no other stem: `:fixed` is
`study.candidate`'s recipe for WRN-40-2, with about as many parameters as the DenseNet (2.2 million for 36.5); add
--config.model.name=wrn_28_10 for the large one. Plain SGD at 0.001 does not move WRN-40-2.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    return study.candidate("wrn_40_2" if variant == "fixed" else "wrn_28_10", variant)
