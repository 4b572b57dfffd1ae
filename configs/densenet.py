"""DenseNet of the EMNIST Balanced study: its final network and recipe, 2,152,667 parameters, or one of its variants.

    python -m emnist_jax.main --config=configs/densenet.py
    python -m emnist_jax.main --config=configs/densenet.py:layer_1

Nesterov SGD at 0.001, batch 1024, ELU, dropout 0.3, aug_4, ReduceLROnPlateau, early stopping, at most 100 epochs.
Variants, by the study's names. All else is as in the final recipe:
    layer_1, layer_2, layer_3, layer_4, layer_4_2, layer_4_3, 121_base   other networks
    dropout_1, dropout_1_1, dropout_2, ..., dropout_5, dropout_5_1       dropout at one place alone
    relu, leaky_relu, elu, swish                                         the activation
    aug_1 ... aug_5     rotation, + shift, + distortion, + zoom, + brightness
    fixed               our recipe for all the study's networks (`study.fixed`)
    pretrain            on ByMerge, batch 2048, 5 epochs, learning rate 0.1: the first half of its transfer_2
The second half: --config=configs/densenet.py --config.init_from=runs/densenet_pretrain. Beware: ByMerge's train split
holds about 6/7 of the images of Balanced's test split, so an accuracy after this transfer is no clean result.
`pretrain` has 581,609 training images, as the last 116,323 of ByMerge's 697,932 are for validation.

The study reports 90.72 % top-1 for its final run, measured on 1,024 test images after the transfer. Without the
transfer it reads 89.18 % of the validation images. What it leaves open is in `study`.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict
from emnist_jax.errors import unknown

LAYERS = ("layer_1", "layer_2", "layer_3", "layer_4", "layer_4_2", "layer_4_3", "121_base")
DROPOUT = {
    "dropout_1": ("head", 0.5),
    "dropout_1_1": ("head", 0.3),
    "dropout_2": ("block", 0.5),
    "dropout_3": ("transition", 0.5),
    "dropout_4": ("convolution", 0.2),
    "dropout_5": ("stem", 0.5),
    "dropout_5_1": ("stem", 0.2),
}
ACTIVATIONS = ("relu", "leaky_relu", "elu", "swish")


def get_config(variant: str = "final") -> ConfigDict:
    if variant == "fixed":
        return study.fixed("densenet")
    config = study.final("densenet", variant if variant in study.AUGMENTATIONS else "aug_4")
    if variant in LAYERS:
        config.model.name = f"densenet_{variant}"
    elif variant in DROPOUT:
        config.model.dropout.head = 0.0
        place, rate = DROPOUT[variant]
        config.model.dropout[place] = rate
    elif variant in ACTIVATIONS:
        config.model.activation = variant
    elif variant == "pretrain":
        config.dataset.name = "emnist/bymerge"
        config.optimizer.learning_rate = 0.1
        config.schedule.name = "constant"
        config.training.batch_size = 2048
        config.training.epochs = 5.0
        config.training.early_stopping_epochs = None
    elif variant not in ("final", *study.AUGMENTATIONS):
        raise unknown(
            "variant", variant, ("final", *LAYERS, *DROPOUT, *ACTIVATIONS, *study.AUGMENTATIONS, "fixed", "pretrain")
        )
    return config
