"""The EMNIST Balanced study's own comparisons, one for each variant.

    python -m emnist_jax.sweep --config=configs/sweeps/study.py:rates_2048

    rates_2048      learning rate x optimizer, DenseNet-121, batch 2048, no schedule
    rates_1024      the same with batch 1024, without Nadam and RMSprop
    activation      of DenseNet-121
    dropout         where, and how much
    augmentation    each stack adds one to the stack before it
    layers          number and width of the dense blocks
    transfer        from ByMerge or ByClass, less the images that Balanced validates or tests on

The study gives no more of its optimizers: they have Keras' defaults (AdamW decays all weights by 0.004), but a momentum
of 0.9, and a constant beta1 in Nadam.

`reported` are the study's accuracies on all 18,800 validation images. Validation decides, and only the runs of layers
and transfer look at the test images: their rows stand in docs/results.md too.
"""

from emnist_jax.config import READ_BY, experiment_name, row, sweep
from emnist_jax.errors import unknown

OPTIMIZERS = ("adam", "adamax", "nadam", "adamw", "rmsprop", "nesterov", "momentum")
KERAS_ADAMW = {"optimizer.weight_decay": 0.004, "optimizer.decay_biases_and_norms": True}
# Learning rate -> validation accuracy in percent of each optimizer.
RATES_2048 = {
    0.01: (87.3, 88.4, 87.1, 87.1, 87.2, 89.3, 89.2),
    0.001: (89.2, 88.9, 88.8, 88.6, 88.7, 88.7, 88.5),
    0.0001: (88.7, 88.7, 88.8, 88.7, 89.0, 88.9, 88.9),
}
RATES_1024 = {
    0.01: (88.0, 89.06, None, 87.66, None, 90.09, 89.93),
    0.001: (90.0, 89.25, None, 88.96, None, 88.92, 88.88),
}
VARIANTS = {
    "activation": {"relu": 89.76, "leaky_relu": 89.97, "elu": 90.3, "swish": 89.8},
    "dropout": {
        "dropout_1": 89.17,
        "dropout_2": 87.48,
        "dropout_3": 87.05,
        "dropout_4": 85.53,
        "dropout_5": 89.42,
        "dropout_1_1": 89.74,
        "dropout_5_1": 89.39,
    },
    "augmentation": {"aug_1": 87.5, "aug_2": 88.63, "aug_3": 89.24, "aug_4": 89.35, "aug_5": 2.4},
    "layers": {
        "layer_1": 88.65,
        "layer_2": 85.39,
        "layer_3": 88.96,
        "layer_4": 88.3,
        "": 89.18,  # the final network, which the study calls layer_4_1
        "layer_4_2": 88.94,
        "layer_4_3": 88.69,
    },
}
# After the fine-tuning. The study left Balanced's images in the pretraining.
TRANSFERS = {1: 90.38, 2: 90.85, 3: 90.39, 4: 90.13}


def get_config(variant: str = ""):
    if variant in VARIANTS:
        reported = {f"configs/densenet.py:{name}".rstrip(":"): top1 for name, top1 in VARIANTS[variant].items()}
        overrides = {} if variant == "layers" else {"evaluation.test": False}
        rows = (row(config, 1, overrides, experiment_name(config), top1) for config, top1 in reported.items())
        return sweep(*rows, split="validation")
    if variant == "transfer":
        return sweep(
            *(
                row(
                    "configs/densenet.py:layer_4_2" if i == 4 else "configs/densenet.py",
                    name=f"densenet_transfer_{i}",
                    reported=top1,
                    remark="(validation, leaked)",
                    pretraining=f"configs/densenet.py:pretrain_{i}",
                )
                for i, top1 in TRANSFERS.items()
            )
        )
    tables = {"rates_2048": RATES_2048, "rates_1024": RATES_1024}
    if variant not in tables:
        raise unknown("variant", variant, (*VARIANTS, "transfer", *tables))
    return sweep(
        *(
            row(
                "configs/densenet121.py",
                overrides={
                    "training.batch_size": int(variant.removeprefix("rates_")),
                    "optimizer.name": optimizer,
                    "optimizer.learning_rate": rate,
                    **({"optimizer.epsilon": 1e-7} if optimizer in READ_BY["optimizer.epsilon"] else {}),
                    **(KERAS_ADAMW if optimizer == "adamw" else {}),
                    "evaluation.test": False,
                },
                name=f"densenet121_{variant}_{optimizer}_{rate}",
                reported=reported,
            )
            for rate, of_rate in tables[variant].items()
            for optimizer, reported in zip(OPTIMIZERS, of_rate, strict=True)
            if reported
        ),
        split="validation",
    )
