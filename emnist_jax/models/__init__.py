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
from emnist_jax.models.plain import CNN, GAP, ONECYCLE, SQUEEZE, Plain
from emnist_jax.models.published import PUBLISHED
from emnist_jax.models.resnet import ResNet
from emnist_jax.models.shufflenet import ShuffleNet, ShuffleNetV2
from emnist_jax.models.vgg import VGG
from emnist_jax.models.wide_resnet import WideResNet

_IMAGENET = (224, 224, 3)
_DENSENET_121 = partial(
    DenseNet,
    blocks=(6, 12, 24, 16),
    max_pool=True,
    head_dropout=0.0,
    input_shape=(32, 32, 3),
    activation="relu",
)
_VGG_BN = partial(VGG, with_batch_norm=True, head_dropout=0.5, initializer="he")
_DPN_92 = partial(
    DPN,
    blocks=(3, 4, 20, 3),
    growth=(16, 32, 24, 128),
    width=256,
    bottleneck=96,
    stem_features=64,
    stem_size=7,
)

MODELS = {
    "densenet": DenseNet,
    "densenet_layer_1": partial(DenseNet, blocks=(4, 8, 16, 8), input_shape=(32, 32, 3)),
    "densenet_layer_2": partial(DenseNet, blocks=(6, 12), input_shape=(32, 32, 3)),
    "densenet_layer_3": partial(DenseNet, blocks=(6, 12, 24, 16), compression=0.3, input_shape=(32, 32, 3)),
    "densenet_layer_4": partial(DenseNet, input_shape=(32, 32, 3)),
    "densenet_layer_4_2": partial(DenseNet, blocks=(2, 4, 8, 4)),
    # "Less zero padding": 2 is the least that leaves the three transitions something to pool.
    "densenet_layer_4_3": partial(DenseNet, blocks=(2, 4, 8, 4), stem_padding=2),
    "densenet_121_base": partial(DenseNet, blocks=(6, 12, 24, 16), input_shape=(32, 32, 3)),
    "densenet121": _DENSENET_121,
    "densenet121_imagenet": partial(_DENSENET_121, input_shape=_IMAGENET),
    "dpn68": DPN,
    "dpn68_imagenet": partial(DPN, input_shape=_IMAGENET),
    "dpn92": _DPN_92,
    "dpn92_imagenet": partial(_DPN_92, input_shape=_IMAGENET),
    "efficientnet_b1": EfficientNet,
    "efficientnet_b1_imagenet": partial(EfficientNet, input_shape=(240, 240, 3)),
    "lenet5": LeNet5,
    "lenet5_rbf": partial(LeNet5, rbf=True, activation="tanh"),
    "mnist_cnn": partial(Plain, layers=CNN, head_dropout=0.4),
    **{
        f"mnist_squeeze_{i}": partial(Plain, layers=layers, convolution_dropout=0.01 if i >= 5 else 0.0)
        for i, layers in SQUEEZE.items()
    },
    **{f"mnist_gap_{version}": partial(Plain, layers=layers) for version, layers in GAP.items()},
    "mnist_onecycle": partial(Plain, layers=ONECYCLE, convolution_dropout=0.05),
    "mobilenet": MobileNet,
    "mobilenet_imagenet": partial(MobileNet, input_shape=_IMAGENET),
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_imagenet": partial(MobileNetV2, input_shape=_IMAGENET),
    "resnet50": ResNet,
    "resnet50_imagenet": partial(ResNet, input_shape=_IMAGENET),
    "shufflenet": ShuffleNet,
    "shufflenet_imagenet": partial(ShuffleNet, input_shape=_IMAGENET),
    "shufflenet_v2": ShuffleNetV2,
    "shufflenet_v2_imagenet": partial(ShuffleNetV2, input_shape=_IMAGENET),
    "vgg16": VGG,
    "vgg16_imagenet": partial(VGG, input_shape=_IMAGENET),
    "vgg16_bn": _VGG_BN,
    "vgg16_bn_imagenet": partial(_VGG_BN, input_shape=_IMAGENET),
    "wrn_28_10": WideResNet,
    "wrn_40_2": partial(WideResNet, depth=40, width=2),
}


def _classes(name: str) -> int:
    return 1000 if name.endswith("_imagenet") else 10 if name.startswith("mnist_") else 47


# (model, classes): the settings in which the networks are used or published.
SETTINGS = [
    (name, classes)
    for name in MODELS
    for classes in sorted({_classes(name), *(classes for other, classes in PUBLISHED if other == name)})
]


def create(config, num_classes: int, axis_name: str | None = None) -> Network:
    """Builds the network that `config.model` describes.

    Args:
      config: The section `config.model`.
      num_classes: Width of the last layer.
      axis_name: Mesh axis over which the batch is split, or None outside `shard_map`.

    Raises:
      UserError: An unknown name or value, or a setting that the network does not have.
    """
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
