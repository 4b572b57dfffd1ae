"""Networks that the EMNIST Balanced study tried before it settled on the DenseNet, and two successors of them.

    python -m emnist_jax.main --config=configs/candidates.py:mobilenet
    python -m emnist_jax.main --config=configs/candidates.py:mobilenet,fixed

The study reports that several of them did not train with a large batch. It reports neither optimizer nor learning rate
nor the exact batch. The default is an assumption: the recipe of the study's final DenseNet (`study.final`).
`,fixed` is a recipe of ours (`study.fixed`), with the stem at stride 1 if the network has one of stride 2.

    dpn               DPN-68; which DPN it tried is not said. The larger one: --config.model.name=dpn92
    efficientnet_b1   EfficientNet-B1
    mobilenet         MobileNet v1
    mobilenet_v2      the successor, which the study did not try
    shufflenet        ShuffleNet v1
    shufflenet_v2     the successor, which the study did not try
    vgg16             VGG16; with `,fixed` it has BatchNorm
    wide_resnet       WRN-28-10; which Wide ResNet it tried is not said. With `,fixed` it is WRN-40-2, about as large as
                      the DenseNet.
"""

from emnist_jax import study
from emnist_jax.config import ConfigDict
from emnist_jax.errors import unknown

NETWORKS = (
    "dpn",
    "efficientnet_b1",
    "mobilenet",
    "mobilenet_v2",
    "shufflenet",
    "shufflenet_v2",
    "vgg16",
    "wide_resnet",
)
# Key of `models.MODELS`, if it is another.
MODELS = {"dpn": "dpn68", "wide_resnet": "wrn_28_10"}
FIXED = MODELS | {"vgg16": "vgg16_bn", "wide_resnet": "wrn_40_2"}


def get_config(variant: str = "") -> ConfigDict:
    network, _, recipe = variant.partition(",")
    if network not in NETWORKS:
        raise unknown("network", network, NETWORKS)
    if recipe not in ("", "fixed"):
        raise unknown("variant", recipe, ("fixed",))
    return study.fixed(FIXED.get(network, network)) if recipe else study.final(MODELS.get(network, network))
