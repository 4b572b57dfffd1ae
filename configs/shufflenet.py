"""ShuffleNet v1 (3 groups), one of the candidates of the EMNIST Balanced study.

    python -m emnist_jax.main --config=configs/shufflenet.py
    python -m emnist_jax.main --config=configs/shufflenet.py:fixed

The study's setting is batch 2048 with plain SGD at a constant 0.001. `:fixed` keeps the stem at full
resolution: stride 2 and max-pooling at once leave 8x8 of 32x32 pixels before the first block.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("shufflenet", variant)
    if variant == "fixed":
        config.model.stem_stride = 1
    return config
