"""EfficientNet-B1, one of the candidates that "did not train" in the EMNIST Balanced study.

    python -m emnist_jax.main --config=configs/efficientnet_b1.py
    python -m emnist_jax.main --config=configs/efficientnet_b1.py:fixed

The study's setting is batch 2048 with plain SGD at a constant 0.001. `:fixed` keeps the stem at full
resolution (five strides of 2 leave 1x1 of 32x32 pixels), and lets BatchNorm's averages follow: Keras' 0.99 takes
hundreds of steps to settle, of which a batch of 2048 leaves 45 in an epoch.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config(variant: str = "study") -> ConfigDict:
    config = study.candidate("efficientnet_b1", variant)
    if variant == "fixed":
        config.model.stem_stride = 1
    return config
