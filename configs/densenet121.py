"""DenseNet-121 as `keras.applications` builds it: the network that the study's own DenseNets came from.

    python -m emnist_jax.main --config=configs/densenet121.py
    python -m emnist_jax.main --config=configs/densenet121.py:fixed

Batch 2048, Nesterov SGD at 0.01, no schedule: the best of the study's 21 pairs of optimizer and learning rate, with a
validation accuracy of 89.3 %. Early stopping and at most 200 epochs are assumptions. The study's variant with ELU,
whose stem pools by the average, is densenet.py:121_base. `:fixed` is `study.fixed`; the stem has stride 1.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict
from emnist_jax.errors import unknown


def get_config(variant: str = "study") -> ConfigDict:
    if variant == "fixed":
        return study.fixed("densenet121")
    if variant != "study":
        raise unknown("variant", variant, ("study", "fixed"))
    config = study.recipe("densenet121")
    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.01
    config.schedule.name = "constant"
    config.training.batch_size = 2048
    return config
