"""LeNet-5 with ReLU and a dense head on EMNIST Balanced, 65,151 parameters.

    python -m emnist_jax.main --config=configs/lenet5.py

Adam, batch 512, early stopping, ReduceLROnPlateau. The study reports 86.9 % and 171.13 s of training; its
summary table prints the RBF network's 65,104 parameters beside that accuracy.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config() -> ConfigDict:
    config = study.recipe("lenet5")
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.001
    config.optimizer.epsilon = 1e-7
    config.training.batch_size = 512
    config.training.epochs = 200.0
    return config
