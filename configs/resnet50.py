"""ResNet-50 v1 of the EMNIST Balanced study, 23,684,015 parameters, or with our recipe for all its networks (`:fixed`).

    python -m emnist_jax.main --config=configs/resnet50.py
    python -m emnist_jax.main --config=configs/resnet50.py:fixed

Batch 2048, Adam at 5e-4, ReduceLROnPlateau(factor 0.1, patience 10, min 1e-6), early stopping after 20 epochs, at most
200 epochs, LeakyReLU, dropout 0.5 before the head. The study reports 90.40 % and 1449.46 s of training. Whether the
images were augmented is not said: ours are not. `:fixed` is `study.fixed`, with ReLU and without dropout; the stem has
stride 1.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict
from emnist_jax.errors import unknown


def get_config(variant: str = "study") -> ConfigDict:
    if variant == "fixed":
        return study.fixed("resnet50")
    if variant != "study":
        raise unknown("variant", variant, ("study", "fixed"))
    config = study.recipe("resnet50")
    config.model.activation = "leaky_relu"
    config.model.dropout.head = 0.5
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.epsilon = 1e-7
    config.training.batch_size = 2048
    return config
