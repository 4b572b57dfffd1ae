"""LeNet-5 with tanh and the RBF head on EMNIST Balanced, 65,104 parameters; the rest is lenet5.py's.

    python -m emnist_jax.main --config=configs/lenet5_rbf.py

The study reports 86.1 % and 266.94 s of training.
"""

from configs import lenet5
from emnist_jax.config import ConfigDict


def get_config() -> ConfigDict:
    config = lenet5.get_config()
    config.model.name = "lenet5_rbf"
    return config
