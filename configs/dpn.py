"""DPN-68, one of the candidates of the EMNIST Balanced study.

    python -m emnist_jax.main --config=configs/dpn.py
    python -m emnist_jax.main --config=configs/dpn.py:fixed

The study's setting is batch 2048 with plain SGD at a constant 0.001. The study does not say which DPN it
tried; --config.model.name=dpn92 is the larger one. `:fixed` keeps the stem at full resolution: stride 2 and
max-pooling at once leave 8x8 of 32x32 pixels before the first block.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("dpn68", variant)
    if variant == "fixed":
        config.model.stem_stride = 1
    return config
