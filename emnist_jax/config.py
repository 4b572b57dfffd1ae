"""The base config: every key once, with its unit and its default; its check; and the rows of a sweep.

An experiment file calls `base()` and sets only what differs. `None` means "the network's or the data set's
own, published value".
"""

from collections.abc import Iterable
from pathlib import Path

import ml_collections
from ml_collections.config_dict import placeholder

from emnist_jax.errors import UserError, unknown

ConfigDict = ml_collections.ConfigDict

_ADAM = ("adam", "adamax", "nadam", "adamw")
# Key that not all optimizers or schedules read -> those that do.
READ_BY = {
    "optimizer.momentum": ("momentum", "nesterov", "muon"),
    "optimizer.beta1": _ADAM,
    "optimizer.beta2": _ADAM,
    "optimizer.epsilon": (*_ADAM, "rmsprop"),
    "schedule.warmup_epochs": ("cosine",),
    "schedule.step_epochs": ("step",),
    "schedule.factor": ("step", "plateau"),
    "schedule.patience_epochs": ("plateau",),
    "schedule.min_delta": ("plateau",),
    "schedule.relative_delta": ("plateau",),
    "schedule.min_learning_rate": ("plateau",),
    "schedule.warmup_fraction": ("onecycle",),
    "schedule.initial_divisor": ("onecycle",),
    "schedule.final_divisor": ("onecycle",),
}


def base() -> ConfigDict:
    """Returns the locked base config."""
    config = ConfigDict()
    config.seed = 0  # of initial weights, order, augmentation and dropout
    # Weights to start from: a finished run's workdir, the name of a network that comes with the package, a file that
    # export wrote, or keras:FILE.h5 or pytorch:FILE.safetensors from the network's reference implementation, which may
    # need another dataset.mean and std. If the classes differ, the head keeps its initial weights.
    config.init_from = placeholder(str)
    # If a loss or gradient is not finite: "stop", or "rollback" to the last epoch's end with half the learning rate.
    config.on_nan = "stop"
    config.deterministic = False  # on a GPU: the same digits in every run, from slower operations without autotuning

    config.dataset = ConfigDict(
        {
            "name": "synthetic/balanced",  # one of datasets.NAMES
            "data_dir": placeholder(str),  # folder with the official files, or of pictures; None: TFDS supplies them
            "validation_examples": placeholder(int),  # last rows of train; None: the conventional number
            "train_per_class": placeholder(int),  # synthetic sets only: images rendered
            "test_per_class": placeholder(int),  # synthetic sets only: images rendered
            "seed": 0,  # synthetic sets: which is rendered; folder: how it is split
            "mean": 0.1307,  # subtracted from the images, as a fraction of full brightness
            "std": 0.3081,  # divides the images, as a fraction of full brightness
        }
    )
    # Pretraining: images of another data set's validation and test splits are left out of training and validation.
    config.transfer = ConfigDict(
        {
            "target": placeholder(str),  # the data set that is fine-tuned on later, one of datasets.NAMES
            "allow_leak": False,  # True: these images stay, and result.json says so
        }
    )
    config.model = ConfigDict(
        {
            "name": "densenet",  # key of models.MODELS
            "activation": placeholder(str),  # key of models.layers.ACTIVATIONS
            "initializer": placeholder(str),  # key of models.layers.INITIALIZERS
            "stem_stride": placeholder(int),  # of the first convolution, in pixels
            "batch_norm_momentum": placeholder(float),  # weight of the running average's old value
            "sync_batch_norm": True,  # statistics over the global batch; False: over each device's share
            # Dropped fraction at each place that the network has.
            "dropout": {
                "stem": placeholder(float),  # after the first convolution
                "convolution": placeholder(float),  # after convolutions (DenseNet: inside dense blocks)
                "block": placeholder(float),  # after each dense block
                "transition": placeholder(float),  # after each transition
                "path": placeholder(float),  # whole residual branches, per example; rises to it from block to block
                "head": placeholder(float),  # before the last layer
            },
            "dtype": "float32",  # of the computation, float32 or bfloat16; parameters stay float32
            "convolution": "auto",  # in training: "xla", "matmul" or "auto": the one that is fast on the device
        }
    )
    config.augmentation = ConfigDict(
        {
            "max_rotation_degrees": 0.0,
            "max_shift_pixels": 0.0,  # along each axis
            "max_shear_degrees": 0.0,
            "max_zoom_fraction": 0.0,  # 0.1: scaled by 0.9 to 1.1
            "elastic_displacement_pixels": 0.0,  # root mean square of each axis' displacement
            "elastic_smoothness_pixels": 4.0,  # standard deviation of the Gaussian that smooths it
            "max_brightness_fraction": 0.0,  # 0.1: brightness times 0.9 to 1.1
        }
    )
    config.optimizer = ConfigDict(
        {
            "name": "nesterov",  # key of optimizers.OPTIMIZERS
            "learning_rate": 0.001,  # the highest of the schedule
            "momentum": 0.9,  # momentum, nesterov and muon
            "beta1": 0.9,  # adam family; constant also in nadam, where Keras lets it rise from half of it
            "beta2": 0.999,  # adam family
            "epsilon": 1e-8,  # adam family and rmsprop (Keras' default is 1e-7)
            # Added to the gradient (L2); adamw and muon decouple it. adamw without any is adam.
            "weight_decay": 0.0,
            "decay_biases_and_norms": False,  # True: of every parameter, as PyTorch does; False: of kernels alone
        }
    )
    config.schedule = ConfigDict(
        {
            "name": "constant",  # key of optimizers.SCHEDULES
            "warmup_epochs": 0.0,  # cosine: linear from 0
            "step_epochs": 7.0,  # step: epochs between reductions
            "factor": 0.1,  # step, plateau: the learning rate is multiplied by it
            "patience_epochs": 10,  # plateau: epochs without a lower validation loss before a reduction
            "min_delta": 1e-4,  # plateau: a validation loss counts as lower if it is lower by more than this
            "relative_delta": False,  # plateau: min_delta is relative to the lowest loss, as in PyTorch
            "min_learning_rate": 0.0,  # plateau
            "warmup_fraction": 0.3,  # onecycle: share of the steps in which the learning rate rises
            "initial_divisor": 25.0,  # onecycle: starts at learning_rate / initial_divisor
            "final_divisor": 1e4,  # onecycle: ends at the initial one / final_divisor
        }
    )
    config.training = ConfigDict(
        {
            "epochs": 10.0,
            "steps": placeholder(int),  # instead of epochs
            "batch_size": 128,  # over all devices
            "label_smoothing": 0.0,
            "balance_classes": False,  # True: a class is not predicted more often because it has more training images
            "ema_decay": 0.0,  # per step, of the network that is evaluated, less in the first steps; 0: no average
            # Of each kernel's weights, those of init_from with the smallest magnitudes: they are 0 and stay 0.
            "pruned_fraction": 0.0,
            "early_stopping_epochs": placeholder(int),  # epochs without a lower validation loss; None or 0: never
            "select": "best",  # parameters that are the run's result: "best" by validation top-1, or "last"
            "steps_per_call": 50,  # compiled steps between two looks at signals
        }
    )
    config.evaluation = ConfigDict(
        {
            "batch_size": 1000,
            "test": True,  # False: the test images are not looked at, as something is to be chosen by this run
        }
    )
    return config.lock()


def validate(config: ConfigDict) -> None:
    """Raises UserError for the first value that no part of the program would take."""
    from emnist_jax.training import optimizers  # late: it imports jax, for which --help should not wait

    for kind, name, known in (
        ("optimizer", config.optimizer.name, optimizers.OPTIMIZERS),
        ("schedule", config.schedule.name, optimizers.SCHEDULES),
        ("config.on_nan", config.on_nan, ("stop", "rollback")),
        ("config.training.select", config.training.select, ("best", "last")),
        ("config.model.dtype", config.model.dtype, ("float32", "bfloat16")),
        ("config.model.convolution", config.model.convolution, ("auto", "xla", "matmul")),
    ):
        if name not in known:
            raise unknown(kind, name, known)
    positive, below_one, most = 1e-30, 1 - 1e-6, 1e9  # below_one also in float32
    ranges = {
        "seed": (0, 2**32 - 1),
        "dataset.seed": (0, 2**32 - 1),
        "dataset.mean": (-1e3, 1e3),
        "dataset.std": (1e-6, 1e6),
        "model.batch_norm_momentum": (0, 1),
        "model.stem_stride": (1, 2),
        **{f"model.dropout.{place}": (0, 0.99) for place in config.model.dropout},
        "augmentation.max_rotation_degrees": (0, 180),
        "augmentation.max_shift_pixels": (0, most),
        "augmentation.max_shear_degrees": (0, 80),
        "augmentation.max_zoom_fraction": (0, 0.99),
        "augmentation.elastic_displacement_pixels": (0, most),
        "augmentation.elastic_smoothness_pixels": (1e-3, most),
        "augmentation.max_brightness_fraction": (0, most),
        "optimizer.learning_rate": (positive, most),
        "optimizer.momentum": (0, below_one),
        "optimizer.beta1": (0, below_one),
        "optimizer.beta2": (0, below_one),
        "optimizer.epsilon": (positive, most),
        "optimizer.weight_decay": (0, most),
        "schedule.warmup_epochs": (0, most),
        "schedule.step_epochs": (positive, most),
        "schedule.factor": (positive, 0.999),
        "schedule.patience_epochs": (1, most),
        "schedule.min_delta": (1e-12, most),
        "schedule.min_learning_rate": (0, config.optimizer.learning_rate),
        "schedule.warmup_fraction": (0, 0.99),
        "schedule.initial_divisor": (1, most),
        "schedule.final_divisor": (1, most),
        "training.epochs": (positive, most),
        "training.steps": (1, most),
        "training.batch_size": (1, most),
        "training.label_smoothing": (0, 1),
        "training.ema_decay": (0, below_one),
        "training.pruned_fraction": (0, 0.999),
        "training.early_stopping_epochs": (0, most),
        "training.steps_per_call": (1, most),
        "evaluation.batch_size": (1, most),
    }
    defaults = base()
    for key, (low, high) in ranges.items():
        value, default = config, defaults
        for part in key.split("."):
            value, default = value[part], default[part]
        if value is None and default is None:
            continue
        if value is None or not low <= value <= high:
            lowest = "more than 0 and at most" if low == positive else f"between {low:g} and"
            raise UserError(f"config.{key} is {value}; it must be {lowest} {high:g}")
    if config.training.pruned_fraction and not config.init_from:
        raise UserError(
            "config.training.pruned_fraction prunes trained weights: set config.init_from to a finished run"
        )


def check_read(config: ConfigDict, keys: Iterable[str]) -> None:
    """Raises UserError for the first of the dotted keys that the config's optimizer or schedule does not read."""
    for key in keys:
        section = key.partition(".")[0]
        readers = READ_BY.get(key, ())
        if readers and config[section].name not in readers:
            raise UserError(
                f"config.{key} has no effect with config.{section}.name={config[section].name}, "
                f"but with {', '.join(readers)}"
            )


def row(
    config: str,
    seeds: int | tuple[int, ...] = 1,
    overrides: dict | None = None,
    name: str | None = None,
    reported: float | None = None,
    remark: str = "",
    pretraining: str | None = None,
) -> dict:
    """Describes one row of a table: an experiment that `sweep` runs with several seeds.

    Args:
      config: Experiment file with its variant, e.g. "configs/mnist_gap.py:v5".
      seeds: Which, or how many from 0 on.
      overrides: Dotted key -> value.
      name: Of its folder and in tables; None: after the experiment and the overrides.
      reported: The source's top-1, in percent.
      remark: What is to be known about `reported`, or about the row.
      pretraining: Experiment file that trains the initial weights of each seed's run first, without the overrides.
    """
    overrides = overrides or {}
    settings = (f"{key.rpartition('.')[2]}_{value}" for key, value in overrides.items())
    name = name or "_".join([experiment_name(config), *settings]).replace("/", "_")
    if "/" in name:
        raise UserError(f"the row's name {name} names a folder, which has no /")
    return {
        "config": config,
        "seeds": tuple(range(seeds)) if isinstance(seeds, int) else seeds,
        "overrides": overrides,
        "name": name,
        "reported": reported,
        "remark": remark,
        "pretraining": pretraining,
    }


def sweep(*rows: dict, split: str = "test") -> ConfigDict:
    """Returns the config of a table of `row`s, the most valuable first.

    Args:
      *rows: Made by `row`.
      split: Whose accuracies are shown: "test", or "validation" if something is to be chosen by them. Rows that are
        not to look at the test images at all have the override `evaluation.test`: False.
    """
    return ConfigDict({"rows": rows, "split": split}, convert_dict=False)


def search(row: dict, ranges: dict, trials: int, sampler: str = "tpe") -> ConfigDict:
    """Returns the config of a search of keys that make a row's validation top-1 high: a `sweep` whose rows are trials.

    The trials do not look at the test images.

    Args:
      row: Made by `row`; each trial runs all of its seeds, and counts with their mean.
      ranges: Dotted key -> (low, high), (low, high, "log") or a list of choices. Two integers give integers.
      trials: How many.
      sampler: Optuna's that proposes: "tpe", which learns from the trials before, or "random".
    """
    row = {**row, "overrides": {**row["overrides"], "evaluation.test": False}}
    found = {"ranges": ranges, "trials": trials, "sampler": sampler}
    return ConfigDict({"rows": (row,), "split": "validation", "search": found}, convert_dict=False)


def experiment_name(config: str) -> str:
    """Returns a name for files: "configs/candidates.py:mobilenet,fixed" is "candidates_mobilenet_fixed"."""
    path, _, variant = config.partition(":")
    return "_".join(filter(None, (Path(path).stem, *variant.split(","))))


def flatten(config: dict, prefix: str = "") -> dict:
    """Returns nested config keys as dotted ones."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
