"""ShuffleNet v2 in the EMNIST Balanced study's setting for v1, or with a recipe that trains it (`:fixed`).

    python -m emnist_jax.main --config=configs/shufflenet_v2.py
    python -m emnist_jax.main --config=configs/shufflenet_v2.py:fixed

The study did not try it; its setting for the others is batch 2048 with plain SGD at 0.001.
`:fixed` is `study.candidate`'s recipe with the stem at full resolution: stride 2 and max-pooling leave 8x8 of
32x32 pixels before the first block. Plain SGD at 0.001 does not move it.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    return study.candidate("shufflenet_v2", variant)
