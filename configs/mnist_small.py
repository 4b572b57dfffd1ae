"""Networks of ours with few parameters for MNIST: 4,954 trainable, 2,996 (`:mini`), 1,184 (`:tiny`), 610 (`:nano`).

    python -m emnist_jax.main --config=configs/mnist_small.py
    python -m emnist_jax.main --config=configs/mnist_small.py:mini

Nesterov SGD, OneCycle to 0.2, batch 128, 40 epochs (the first: 30). The first two see images that are rotated by at
most 10 degrees and shifted by at most a pixel, the others images as they are. `:mini` has swish instead of ReLU. All
60,000 images train, and the last epoch is tested. Networks and recipes were chosen on the last 10,000 training images,
by single runs of 10 to 40 epochs.
"""

from emnist_jax.config import ConfigDict, base
from emnist_jax.errors import unknown

EPOCHS = {"small": 30.0, "mini": 40.0, "tiny": 40.0, "nano": 40.0}


def get_config(variant: str = "small") -> ConfigDict:
    if variant not in EPOCHS:
        raise unknown("variant", variant, EPOCHS)
    config = base()
    config.dataset.name = "mnist"
    config.dataset.validation_examples = 0
    config.model.name = f"mnist_{variant}"
    if variant == "mini":
        config.model.activation = "swish"
    if variant in ("small", "mini"):
        config.augmentation.max_rotation_degrees = 10.0
        config.augmentation.max_shift_pixels = 1.0
    config.optimizer.learning_rate = 0.2
    config.schedule.name = "onecycle"
    config.training.batch_size = 128
    config.training.epochs = EPOCHS[variant]
    config.training.select = "last"
    return config
