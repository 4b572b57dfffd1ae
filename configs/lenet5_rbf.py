"""LeNet-5 with tanh and the RBF head on EMNIST Balanced, 65,104 parameters; trained as lenet5.py.

    python -m emnist_jax.main --config=configs/lenet5_rbf.py

The study reports 86.1 % and 266.94 s of training.
"""

from emnist_jax.config import ConfigDict, base


def get_config() -> ConfigDict:
    config = base()
    config.dataset.name = "emnist/balanced"
    config.model.name = "lenet5_rbf"
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
