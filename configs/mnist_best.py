"""One network for the highest accuracy on MNIST: five 5x5 convolutions, 1,128,160 trainable parameters.

    python -m emnist_jax.main --config=configs/mnist_best.py

Network and recipe of An et al., "An Ensemble of Simple Convolutional Neural Network Models for MNIST Digit
Recognition" (https://arxiv.org/abs/2008.10400), there called M5, without BatchNorm of the logits: Adam at 0.001,
multiplied by 0.98 each epoch, batch 120, 150 epochs, rotation by at most 20 degrees, shift by at most a fifth of the
image, moving average 0.999. All 60,000 images train, and the last epoch is tested. It wants a GPU.
"""

from emnist_jax.config import ConfigDict, base


def get_config() -> ConfigDict:
    config = base()
    config.dataset.name = "mnist"
    config.dataset.validation_examples = 0
    config.dataset.mean = 0.5
    config.dataset.std = 0.5
    config.model.name = "mnist_m5"
    config.augmentation.max_rotation_degrees = 20.0
    config.augmentation.max_shift_pixels = 5.6
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.001
    config.schedule.name = "step"
    config.schedule.step_epochs = 1.0
    config.schedule.factor = 0.98
    config.training.batch_size = 120
    config.training.epochs = 150.0
    config.training.ema_decay = 0.999
    config.training.select = "last"
    return config
