"""The numbers of parameters that the sources publish. `summary --all` prints them and the tests check them.

The parity tests compute those of keras.applications, torchvision and timm from their code.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A published count.

    Attributes:
      count: Number of parameters.
      of: "total" (with BatchNorm's running statistics, as Keras counts) or "trainable" (as PyTorch counts).
      source: Who published it.
    """

    count: int
    of: str
    source: str


_STUDY = "EMNIST Balanced study"
_DENSENETS = {
    "densenet": 2_152_667,
    "densenet_layer_1": 3_346_743,
    "densenet_layer_2": 1_337_967,
    "densenet_layer_3": 5_747_858,
    "densenet_layer_4": 2_158_939,
    "densenet_layer_4_2": 1_201_151,
    "densenet_layer_4_3": 1_201_151,
    "densenet_121_base": 7_085_679,
}
_SQUEEZE = (75_408, 14_760, 9_446, 8_714, 8_694, 5_194, 7_598, 7_598, 7_598, 6_022)
_GAP = (6_633, 5_733, 5_893, 5_893, 5_893)

# (model, classes) -> its published count. "_imagenet": of the network of that name on ImageNet's images.
PUBLISHED = {
    **{(name, 47): Published(count, "total", _STUDY) for name, count in _DENSENETS.items()},
    ("densenet", 62): Published(2_159_462, "total", _STUDY),
    ("lenet5", 47): Published(65_151, "total", _STUDY),
    ("lenet5_rbf", 47): Published(65_104, "total", _STUDY),
    ("resnet50", 47): Published(23_684_015, "total", _STUDY),
    **{
        (f"mnist_squeeze_{i}", 10): Published(count, "trainable", "ten MNIST networks")
        for i, count in enumerate(_SQUEEZE, 1)
    },
    **{
        (f"mnist_gap_v{i}", 10): Published(count, "trainable", "five MNIST versions") for i, count in enumerate(_GAP, 1)
    },
    ("mnist_onecycle", 10): Published(9_798, "trainable", "GAP network"),
    ("densenet121_imagenet", 1000): Published(8_062_504, "total", "keras.applications"),
    ("dpn68_imagenet", 1000): Published(12_611_602, "trainable", "timm"),
    ("dpn92_imagenet", 1000): Published(37_668_392, "trainable", "timm"),
    ("efficientnet_b1_imagenet", 1000): Published(7_794_184, "trainable", "keras.applications"),
    ("mobilenet_imagenet", 1000): Published(4_253_864, "total", "keras.applications"),
    ("mobilenet_v2_imagenet", 1000): Published(3_504_872, "trainable", "keras.applications"),
    ("resnet50_imagenet", 1000): Published(25_636_712, "total", "keras.applications"),
    ("shufflenet_imagenet", 1000): Published(1_864_728, "trainable", "megvii-model/ShuffleNet-Series"),
    ("shufflenet_v2_imagenet", 1000): Published(2_278_604, "trainable", "torchvision"),
    ("vgg16_imagenet", 1000): Published(138_357_544, "total", "keras.applications"),
    ("vgg16_bn_imagenet", 1000): Published(138_365_992, "trainable", "torchvision"),
    ("wrn_28_10", 10): Published(36_479_194, "trainable", "xternalz/WideResNet-pytorch"),
    ("wrn_40_2", 10): Published(2_243_546, "trainable", "xternalz/WideResNet-pytorch"),
}
