"""What two of the study's candidates need to learn rendered characters: the assumed recipe, and one change at a time.

    python -m emnist_jax.sweep --config=configs/sweeps/candidates_synthetic.py

25 epochs of 58 steps of 64 images; a batch of 1024 would leave three steps an epoch. It took 110 minutes, nearly all of
it on one CPU core beside other programs. No accuracy on rendered characters is a result.
"""

from emnist_jax.config import row, sweep

SETTING = {
    "dataset.name": "synthetic/balanced",
    "dataset.train_per_class": 100,
    "dataset.test_per_class": 50,
    "training.batch_size": 64,
    "training.epochs": 25.0,
}
NOT_AUGMENTED = {
    f"augmentation.{key}": 0.0
    for key in ("max_rotation_degrees", "max_shift_pixels", "elastic_displacement_pixels", "max_zoom_fraction")
}
CHANGES = {
    "as_assumed": {},
    "rate_0.01": {"optimizer.learning_rate": 0.01},
    "rate_0.1": {"optimizer.learning_rate": 0.1},
    "stem_stride_1": {"model.stem_stride": 1},
    "not_augmented": NOT_AUGMENTED,
    "batch_norm_momentum_0.9": {"model.batch_norm_momentum": 0.9},  # ShuffleNet has it
}


def get_config():
    return sweep(
        *(
            row(f"configs/candidates.py:{network}", overrides=SETTING | change, name=f"{network}_{name}")
            for network in ("shufflenet", "mobilenet")
            for name, change in CHANGES.items()
            if (network, name) != ("shufflenet", "batch_norm_momentum_0.9")
        )
    )
