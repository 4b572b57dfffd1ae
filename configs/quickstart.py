"""LeNet-5 on rendered characters: a look at everything, in half a minute on two CPU cores.

    python -m emnist_jax.main --config=configs/quickstart.py

47 classes of synthetic images. The README shows what it reaches. An accuracy on rendered characters is no result.
"""

from emnist_jax.config import ConfigDict, base


def get_config() -> ConfigDict:
    config = base()
    config.model.name = "lenet5"
    config.dataset.train_per_class = 200
    config.augmentation.max_rotation_degrees = 10.0
    config.optimizer.learning_rate = 0.05
    config.schedule.name = "onecycle"
    config.training.batch_size = 64
    return config
