"""DPN-68 in the setting of the EMNIST Balanced study, or with a recipe that trains it (`:fixed`).

    python -m emnist_jax.main --config=configs/dpn.py
    python -m emnist_jax.main --config=configs/dpn.py:fixed

The study's setting is batch 2048 with plain SGD at 0.001; it reports that several such networks did not train.
Which DPN it tried it does not say; --config.model.name=dpn92 is the larger one. `:fixed` is `study.candidate`'s recipe
with the stem at full resolution: stride 2 and max-pooling leave 8x8 of 32x32 pixels before the first block. Plain SGD
at 0.001 does not move it.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    return study.candidate("dpn68", variant)
