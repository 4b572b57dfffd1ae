"""The networks: `MODELS` names each, `create` builds one from a config."""

from functools import partial

import jax
import jax.numpy as jnp

from emnist_jax.errors import UserError, unknown
from emnist_jax.models.densenet import DenseNet
from emnist_jax.models.dpn import DPN
from emnist_jax.models.efficientnet import EfficientNet
from emnist_jax.models.layers import ACTIVATIONS, INITIALIZERS, Network
from emnist_jax.models.lenet5 import LeNet5
from emnist_jax.models.mobilenet import MobileNet, MobileNetV2
from emnist_jax.models.plain import CNN, GAP, M5, ONECYCLE, SMALL, SQUEEZE, Plain
from emnist_jax.models.published import PUBLISHED
from emnist_jax.models.resnet import ResNet
from emnist_jax.models.shufflenet import ShuffleNet, ShuffleNetV2
from emnist_jax.models.vgg import VGG
from emnist_jax.models.wide_resnet import WideResNet

MODELS = {
    "densenet": DenseNet,
    "densenet_layer_1": partial(DenseNet, blocks=(4, 8, 16, 8), input_shape=(32, 32, 3)),
    "densenet_layer_2": partial(DenseNet, blocks=(6, 12), input_shape=(32, 32, 3)),
    "densenet_layer_3": partial(DenseNet, blocks=(6, 12, 24, 16), compression=0.3, input_shape=(32, 32, 3)),
    "densenet_layer_4": partial(DenseNet, input_shape=(32, 32, 3)),
    "densenet_layer_4_2": partial(DenseNet, blocks=(2, 4, 8, 4)),
    # "Less zero padding": with less than 2, nothing is left for the third transition to pool.
    "densenet_layer_4_3": partial(DenseNet, blocks=(2, 4, 8, 4), stem_padding=2),
    "densenet_121_base": partial(DenseNet, blocks=(6, 12, 24, 16), input_shape=(32, 32, 3)),
    "densenet121": partial(
        DenseNet,
        blocks=(6, 12, 24, 16),
        max_pool=True,
        head_dropout=0.0,
        input_shape=(32, 32, 3),
        activation="relu",
    ),
    "dpn68": DPN,
    "dpn92": partial(
        DPN,
        blocks=(3, 4, 20, 3),
        growth=(16, 32, 24, 128),
        width=256,
        bottleneck=96,
        stem_features=64,
        stem_size=7,
    ),
    "efficientnet_b1": EfficientNet,
    "lenet5": LeNet5,
    "lenet5_rbf": partial(LeNet5, rbf=True, activation="tanh"),
    "mnist_cnn": partial(Plain, layers=CNN, head_dropout=0.4),
    **{
        f"mnist_squeeze_{i}": partial(Plain, layers=layers, convolution_dropout=0.01 if i >= 5 else 0.0)
        for i, layers in SQUEEZE.items()
    },
    **{f"mnist_gap_{version}": partial(Plain, layers=layers) for version, layers in GAP.items()},
    "mnist_m5": partial(Plain, layers=M5),
    "mnist_onecycle": partial(Plain, layers=ONECYCLE, convolution_dropout=0.05),
    **{f"mnist_{size}": partial(Plain, layers=layers) for size, layers in SMALL.items()},
    "mobilenet": MobileNet,
    "mobilenet_v2": MobileNetV2,
    "resnet50": ResNet,
    "shufflenet": ShuffleNet,
    "shufflenet_v2": ShuffleNetV2,
    "vgg16": VGG,
    "vgg16_bn": partial(VGG, with_batch_norm=True, head_dropout=0.5, initializer="he"),
    "wrn_28_10": WideResNet,
    "wrn_40_2": partial(WideResNet, depth=40, width=2),
}

# The networks whose count is published for ImageNet, at its size. They are for counts alone: `create` rejects them.
IMAGENET = {
    name: partial(MODELS[name.removesuffix("_imagenet")], input_shape=(side, side, 3))
    for name, side in ((name, 240 if name.startswith("efficientnet") else 224) for name, n in PUBLISHED if n == 1000)
}

# (name, classes) of every network, for each number of classes that it is used with or published for.
SETTINGS = sorted(
    {*PUBLISHED, *((name, 10 if name.startswith("mnist_") else 47) for name in MODELS)},
    key=lambda setting: ([*MODELS, *IMAGENET].index(setting[0]), setting[1]),
)


def create(config, num_classes: int, axis_name: str | None = None) -> Network:
    """Builds the network that `config.model` describes.

    Args:
      config: The section `config.model`.
      num_classes: Width of the last layer.
      axis_name: Mesh axis over which the batch is split, or None outside `shard_map`.

    Raises:
      UserError: A name or value is unknown, or the network lacks a place of dropout, or the stem, that is set.
    """
    if config.name in IMAGENET:
        raise UserError(f"model {config.name!r} is for counts alone; use {config.name.removesuffix('_imagenet')!r}")
    if config.name not in MODELS:
        raise unknown("model", config.name, MODELS)
    model = MODELS[config.name](
        num_classes=num_classes,
        axis_name=axis_name,
        sync_batch_norm=config.sync_batch_norm,
        dtype=jnp.dtype(config.dtype),
        convolution=("matmul" if jax.default_backend() == "cpu" else "xla")
        if config.convolution == "auto"
        else config.convolution,
    )
    overrides = {
        "activation": config.activation,
        "initializer": config.initializer,
        "batch_norm_momentum": config.batch_norm_momentum,
        "stem_stride": config.stem_stride,
        **{f"{place}_dropout": rate for place, rate in config.dropout.items()},
    }
    overrides = {field: value for field, value in overrides.items() if value is not None}
    for field, known in (("activation", ACTIVATIONS), ("initializer", INITIALIZERS)):
        if field in overrides and overrides[field] not in known:
            raise unknown(f"config.model.{field}", overrides[field], known)
    for place, rate in config.dropout.items():
        if rate is not None and place not in model.dropout_places:
            places = ", ".join(model.dropout_places) or "none"
            raise UserError(f"model {config.name!r} has no {place}_dropout; its places of dropout: {places}")
    if "stem_stride" in overrides and not hasattr(model, "stem_stride"):
        raise UserError(f"model {config.name!r} has no stem_stride")
    return model.clone(**overrides)
