"""A network of ours with few parameters for MNIST: 4,675 trainable ones.

    python -m emnist_jax.main --config=configs/mnist_small.py

Nesterov SGD, OneCycle to 0.2, batch 128, 30 epochs, rotation by at most 10 degrees and shift by at most a pixel. All
60,000 images train, and the last epoch is tested. The widths, and the rate of 0.2 instead of 0.1, were chosen on the
last 10,000 training images, by single runs of 20 epochs.
"""

from emnist_jax.config import ConfigDict, base


def get_config() -> ConfigDict:
    config = base()
    config.dataset.name = "mnist"
    config.dataset.validation_examples = 0
    config.model.name = "mnist_small"
    config.augmentation.max_rotation_degrees = 10.0
    config.augmentation.max_shift_pixels = 1.0
    config.optimizer.learning_rate = 0.2
    config.schedule.name = "onecycle"
    config.training.batch_size = 128
    config.training.epochs = 30.0
    config.training.select = "last"
    return config
