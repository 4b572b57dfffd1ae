"""Our networks against torchvision's and timm's, on PyTorch: logits and gradients from the same weights."""

from collections import OrderedDict

import pytest

from emnist_jax import models
from parity import assert_parity, pytorch_reference, random_batch

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
timm = pytest.importorskip("timm", reason="needs the extra 'parity'")
torchvision = pytest.importorskip("torchvision", reason="needs the extra 'parity'")
nn = pytest.importorskip("torch.nn", reason="needs the extra 'parity'")

pytestmark = pytest.mark.parity

CLASSES = 47


def vgg16_bn():
    """Returns torchvision's convolutions, by our names, and a classifier that takes their 1x1 pixels."""
    layers = OrderedDict()
    block, convolution = 1, 0
    for layer in torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True):
        convolution += isinstance(layer, nn.Conv2d)
        suffix = {nn.Conv2d: "", nn.BatchNorm2d: "_bn", nn.ReLU: "_relu", nn.MaxPool2d: "_pool"}[type(layer)]
        layers[f"block{block}_conv{convolution}{suffix}"] = layer
        if isinstance(layer, nn.MaxPool2d):
            block, convolution = block + 1, 0
    layers |= {"flatten": nn.Flatten(), "fc1": nn.Linear(512, 4096), "fc1_relu": nn.ReLU()}
    layers |= {"fc2": nn.Linear(4096, 4096), "fc2_relu": nn.ReLU(), "head": nn.Linear(4096, CLASSES)}
    return nn.Sequential(layers)


class ShuffleBlock(nn.Module):
    """The block of ShuffleNet v1 as its authors have it (megvii-model/ShuffleNet-Series)."""

    def __init__(self, before: int, after: int, stride: int, groups: int):
        super().__init__()
        middle, added = after // 4, after - before if stride == 2 else after
        self.branch_main_1 = nn.Sequential(
            nn.Conv2d(before, middle, 1, groups=groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
        )
        self.branch_main_2 = nn.Sequential(nn.Conv2d(middle, added, 1, groups=3, bias=False), nn.BatchNorm2d(added))
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x):
        y = self.branch_main_1(x)
        batch, channels, height, width = y.shape
        y = y.reshape(batch, channels // 3, 3, height, width).permute(0, 2, 1, 3, 4).reshape(y.shape)
        y = self.branch_main_2(y)
        return torch.relu(x + y) if self.pool is None else torch.cat([self.pool(x), torch.relu(y)], 1)


def shufflenet(classes: int = CLASSES):
    blocks, before = [], 24
    for count, after in ((4, 240), (8, 480), (4, 960)):
        for i in range(count):
            blocks.append(ShuffleBlock(before, after, 1 if i else 2, 3 if blocks else 1))
            before = after
    layers = OrderedDict(
        first_conv=nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        maxpool=nn.MaxPool2d(3, 2, 1),
        features=nn.Sequential(*blocks),
        globalpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(nn.Linear(960, classes, bias=False)),
    )
    return nn.Sequential(layers)


class WideBlock(nn.Module):
    """The block of Wide ResNet as xternalz/WideResNet-pytorch has it."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x):
        y = torch.relu(self.bn1(x))
        shortcut = self.convShortcut(y) if self.convShortcut else x
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(y))))


def wide_resnet(depth: int, width: int, classes: int = CLASSES):
    layers, before = OrderedDict(conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False)), 16
    for i, after in enumerate((16 * width, 32 * width, 64 * width), 1):
        blocks = [WideBlock(before, after, 1 if i == 1 else 2)]
        blocks += [WideBlock(after, after, 1) for _ in range((depth - 4) // 6 - 1)]
        layers[f"block{i}"] = nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))
        before = after
    layers |= {"bn1": nn.BatchNorm2d(before), "relu": nn.ReLU(), "pool": nn.AvgPool2d(8), "flatten": nn.Flatten()}
    return nn.Sequential(layers | {"fc": nn.Linear(before, classes)})


# Model -> builder() of its reference.
REFERENCES = {
    "dpn68": lambda: timm.create_model("dpn68", num_classes=CLASSES),
    "dpn92": lambda: timm.create_model("dpn92", num_classes=CLASSES),
    "shufflenet": shufflenet,
    "shufflenet_v2": lambda: torchvision.models.shufflenet_v2_x1_0(num_classes=CLASSES),
    "vgg16_bn": vgg16_bn,
    "wrn_28_10": lambda: wide_resnet(28, 10),
    "wrn_40_2": lambda: wide_resnet(40, 2),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_parity(name):
    # XLA's convolutions take minutes in float64.
    model = models.MODELS[name](num_classes=CLASSES, convolution="matmul")
    model = model.clone(**{f"{place}_dropout": 0.0 for place in model.dropout_places})
    images, labels = random_batch(model.input_shape, 8, CLASSES)
    assert_parity(model, images, labels, pytorch_reference(REFERENCES[name](), images, labels))


@pytest.mark.parametrize(
    ("name", "classes", "reference"),
    [
        ("dpn68_imagenet", 1000, lambda: timm.create_model("dpn68")),
        ("dpn92_imagenet", 1000, lambda: timm.create_model("dpn92")),
        ("shufflenet_imagenet", 1000, lambda: shufflenet(1000)),
        ("shufflenet_v2_imagenet", 1000, torchvision.models.shufflenet_v2_x1_0),
        ("vgg16_bn_imagenet", 1000, torchvision.models.vgg16_bn),
        ("wrn_28_10", 10, lambda: wide_resnet(28, 10, 10)),
        ("wrn_40_2", 10, lambda: wide_resnet(40, 2, 10)),
    ],
)
def test_published_counts(name, classes, reference):
    assert sum(p.numel() for p in reference().parameters()) == models.PUBLISHED[name, classes].count
