"""Recipes of the EMNIST Balanced study, and a recipe of ours for all its networks.

What the study does not say, and where ours differ from it:
- It resizes 28x28 pixels to 32x32, and does not say if by padding or by interpolation. Ours pads with zeros.
- It does not say how images are normalised. Ours have MNIST's mean and standard deviation.
- Under its MirroredStrategy, BatchNorm's statistics are those of each of four replicas. Ours are those of the global
  batch, unless `config.model.sync_batch_norm` is False.
- It gives the patience of the plateau and of early stopping only for ResNet-50. Ours use these for all networks.
- It gives no ranges of the augmentations, except the rotation's. Ours are in `AUGMENTATIONS`.
- It does not give LeakyReLU's slope. Ours is 0.3, that of Keras' layer; its function `leaky_relu` has 0.2.
"""

from emnist_jax.config import ConfigDict, base

# Each stack contains the stacks before it, and adds one key.
AUGMENTATIONS = {
    "aug_1": ("max_rotation_degrees", 10.0),
    "aug_2": ("max_shift_pixels", 2.0),
    "aug_3": ("elastic_displacement_pixels", 1.0),
    "aug_4": ("max_zoom_fraction", 0.1),
    "aug_5": ("max_brightness_fraction", 0.1),
}


def recipe(model: str) -> ConfigDict:
    """Returns what all the study's runs have in common: EMNIST Balanced, ReduceLROnPlateau and early stopping.

    Args:
      model: Key of `models.MODELS`.
    """
    config = base()
    config.dataset.name = "emnist/balanced"
    config.model.name = model
    config.schedule.name = "plateau"
    config.schedule.factor = 0.1
    config.schedule.patience_epochs = 10
    config.schedule.min_learning_rate = 1e-6
    config.training.early_stopping_epochs = 20
    config.training.epochs = 200.0
    return config


def final(model: str, stack: str | None = "aug_4") -> ConfigDict:
    """Returns the recipe of the study's final network, without its transfer.

    It is Nesterov SGD at 0.001, batch 1024, aug_4, the plateau, early stopping and at most 100 epochs.

    Args:
      model: Key of `models.MODELS`.
      stack: Key of `AUGMENTATIONS`; None: not augmented.
    """
    config = recipe(model)
    _augment(config, stack or "")
    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.001
    config.training.batch_size = 1024
    config.training.epochs = 100.0
    return config


def fixed(model: str) -> ConfigDict:
    """Returns one recipe for all networks, which is ours and not the study's.

    It is batch 128, AdamW with weight decay 0.05, a learning rate that rises to 0.002 and falls to nothing (OneCycle),
    30 epochs, aug_4 and a BatchNorm momentum of 0.9. If the network was made for larger images, the stride of its stem
    is 1 instead of 2, except in the study's DenseNet.

    AdamW was taken because SGD at a rate for the other networks was too fast for ShuffleNet v1 and VGG16, on rendered
    characters; these runs were not kept.

    Args:
      model: Key of `models.MODELS`.
    """
    config = recipe(model)
    _augment(config, "aug_4")
    config.model.batch_norm_momentum = 0.9
    if model not in ("densenet", "lenet5", "vgg16_bn", "wrn_40_2"):
        config.model.stem_stride = 1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.002
    config.optimizer.weight_decay = 0.05
    config.schedule.name = "onecycle"
    config.training.batch_size = 128
    config.training.epochs = 30.0
    config.training.early_stopping_epochs = None
    return config


def _augment(config: ConfigDict, stack: str) -> None:
    for name, (key, value) in AUGMENTATIONS.items():
        if name <= stack:
            config.augmentation[key] = value
