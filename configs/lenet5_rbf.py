"""LeNet-5 with tanh and the RBF head on EMNIST Balanced, 65,104 parameters; trained as lenet5.py.

    python -m emnist_jax.main --config=configs/lenet5_rbf.py

The study reports 86.1 % and 266.94 s of training.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict


def get_config() -> ConfigDict:
    config = study.recipe("lenet5_rbf")
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.001
    config.optimizer.epsilon = 1e-7
    config.training.batch_size = 512
    config.training.epochs = 200.0
    return config
