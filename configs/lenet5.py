"""LeNet-5 on EMNIST Balanced: ReLU and a dense head, 65,151 parameters, or tanh and an RBF head, 65,104 (`:rbf`).

    python -m emnist_jax.main --config=configs/lenet5.py
    python -m emnist_jax.main --config=configs/lenet5.py:rbf
    python -m emnist_jax.main --config=configs/lenet5.py:fixed

Adam, batch 512, early stopping, ReduceLROnPlateau. The study reports 86.9 % and 171.13 s of training, `:rbf` 86.1 % and
266.94 s; its summary table prints 65,104 parameters beside 86.9 %. It does not give the learning rate, the patience and
the number of epochs: ours are Keras' 0.001, and its ResNet-50's patience and at most 200 epochs.
`:fixed` is the dense head with our recipe for all the study's networks (`study.fixed`).
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict
from emnist_jax.errors import unknown


def get_config(variant: str = "dense") -> ConfigDict:
    if variant == "fixed":
        return study.fixed("lenet5")
    if variant not in ("dense", "rbf"):
        raise unknown("variant", variant, ("dense", "rbf", "fixed"))
    config = study.recipe("lenet5_rbf" if variant == "rbf" else "lenet5")
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.001
    config.optimizer.epsilon = 1e-7
    config.training.batch_size = 512
    return config
