"""LeNet-5 with ReLU and a dense head on EMNIST Balanced, 65,151 parameters.

    python -m emnist_jax.main --config=configs/lenet5.py

Adam, batch 512, early stopping, ReduceLROnPlateau. The study reports 86.9 % and 171.13 s of training; its
summary table prints the RBF network's 65,104 parameters beside that accuracy.
"""

from emnist_jax.config import ConfigDict, base


def get_config() -> ConfigDict:
    config = base()
    config.dataset.name = "emnist/balanced"
    config.model.name = "lenet5"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.001
    config.optimizer.epsilon = 1e-7
    config.schedule.name = "plateau"
    config.schedule.factor = 0.1
    config.schedule.patience_epochs = 10
    config.schedule.min_learning_rate = 1e-6
    config.training.batch_size = 512
    config.training.epochs = 200.0
    config.training.early_stopping_epochs = 20
    return config
