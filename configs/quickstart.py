"""DenseNet 3-6-12-6 on rendered characters: a look at everything, in two minutes on two CPU cores.

    python -m emnist_jax.main --config=configs/quickstart.py

47 classes of synthetic images. The README shows what it reaches. An accuracy on rendered characters is no result.
"""

from emnist_jax.config import ConfigDict, base


def get_config() -> ConfigDict:
    config = base()
    config.dataset.train_per_class = 200
    config.model.batch_norm_momentum = 0.9  # the run has only about 350 steps
    config.augmentation.max_rotation_degrees = 10.0
    config.optimizer.learning_rate = 0.1
    config.schedule.name = "onecycle"
    config.training.batch_size = 64
    config.training.epochs = 3.0
    return config
