"""Recipes of the EMNIST Balanced study that its configs share, and the recipe that trains all its networks."""

from emnist_jax.config import ConfigDict, base
from emnist_jax.errors import unknown

# Each stack of augmentations adds one to the stack before it. The study gives no ranges but the rotation's.
AUGMENTATIONS = {
    "aug_1": ("max_rotation_degrees", 10.0),
    "aug_2": ("max_shift_pixels", 2.0),
    "aug_3": ("elastic_displacement_pixels", 1.0),
    "aug_4": ("max_zoom_fraction", 0.1),
    "aug_5": ("max_brightness_fraction", 0.1),
}


def recipe(model: str) -> ConfigDict:
    """Returns what all the study's runs have in common: EMNIST Balanced, ReduceLROnPlateau and early stopping."""
    config = base()
    config.dataset.name = "emnist/balanced"
    config.model.name = model
    config.schedule.name = "plateau"
    config.schedule.factor = 0.1
    config.schedule.patience_epochs = 10
    config.schedule.min_learning_rate = 1e-6
    config.training.early_stopping_epochs = 20
    return config


def augment(config: ConfigDict, stack: str) -> None:
    """Sets the augmentations of a stack of the study."""
    for name, (key, value) in AUGMENTATIONS.items():
        if name <= stack:
            config.augmentation[key] = value


def candidate(model: str, variant: str) -> ConfigDict:
    """Returns the config of a network that the study tried before it settled on the DenseNet, or of one like it.

    Args:
      model: Key of `models.MODELS`.
      variant: "study": batch 2048 and plain SGD at 0.001 without warm-up, as the study reports it, with the plateau,
        early stopping and at most 200 epochs of its ResNet-50.
        "fixed": what trains it: batch 128, AdamW, a learning rate that rises to 0.002 and falls to nothing
        (OneCycle), BatchNorm that settles within an epoch, a stem that keeps 32x32 pixels, where the network was made
        for larger images, and the study's aug_4.

    Raises:
      UserError: Another variant.
    """
    config = recipe(model)
    if variant == "study":
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 0.001
        config.training.batch_size = 2048
        config.training.epochs = 200.0
    elif variant == "fixed":
        augment(config, "aug_4")
        config.model.batch_norm_momentum = 0.9
        if model not in ("densenet", "vgg16_bn", "wrn_40_2"):
            config.model.stem_stride = 1
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 0.002
        config.optimizer.weight_decay = 0.05
        config.schedule.name = "onecycle"
        config.training.batch_size = 128
        config.training.epochs = 30.0
        config.training.early_stopping_epochs = None
    else:
        raise unknown("variant", variant, ("study", "fixed"))
    return config
