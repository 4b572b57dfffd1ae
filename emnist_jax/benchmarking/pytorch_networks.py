"""The benchmark's networks in PyTorch. Layers are named as ours, so that `training.weights` gives both one set."""

import torch
from torch import nn
from torch.nn import functional as F

from emnist_jax.models import MODELS
from emnist_jax.models.densenet import DenseNet
from emnist_jax.models.lenet5 import LeNet5
from emnist_jax.models.plain import Conv, Dense, GlobalAveragePool, MaxPool, Plain, Separable


class PlainInPyTorch(nn.Sequential):
    """`models.plain.Plain`: `[B, 1, 28, 28]` -> `[B, num_classes]`."""

    def __init__(self, network: Plain):
        super().__init__()
        channels, side = network.input_shape[2], network.input_shape[0]
        for i, layer in enumerate(network.layers, 1):
            match layer:
                case Conv():
                    features = layer.features or network.num_classes
                    conv = nn.Conv2d(channels, features, layer.size, padding=layer.padding, bias=layer.bias)
                    self.add_module(f"conv{i}" if layer.features else "head", conv)
                    if layer.relu_first:
                        self.append(nn.ReLU())
                    if layer.batch_norm:
                        self.add_module(f"norm{i}", nn.BatchNorm2d(features))
                    if layer.relu and not layer.relu_first:
                        self.append(nn.ReLU())
                    if layer.dropout:
                        self.append(nn.Dropout(network.convolution_dropout))
                    channels, side = features, side + 2 * layer.padding - layer.size + 1
                case Separable():
                    self.add_module(f"depthwise{i}", nn.Conv2d(channels, channels, 3, groups=channels, bias=False))
                    self.add_module(f"pointwise{i}", nn.Conv2d(channels, layer.features, 1, bias=False))
                    self.add_module(f"norm{i}", nn.BatchNorm2d(layer.features))
                    self.append(nn.ReLU())
                    channels, side = layer.features, side - 2
                case MaxPool():
                    self.append(nn.MaxPool2d(2))
                    side //= 2
                case GlobalAveragePool():
                    self.append(nn.AdaptiveAvgPool2d(1))
                    side = 1
                case Dense():
                    self.append(nn.Flatten())
                    self.add_module(f"dense{i}", nn.Linear(channels * side**2, layer.features))
                    self.append(nn.ReLU())
                    self.append(nn.Dropout(network.head_dropout))
                    self.add_module("head", nn.Linear(layer.features, network.num_classes))
        self.append(nn.Flatten())


class LeNet5InPyTorch(nn.Module):
    """`models.lenet5.LeNet5`: `[B, 3, 28, 28]` -> `[B, num_classes]`."""

    def __init__(self, network: LeNet5):
        super().__init__()
        self.c1 = nn.Conv2d(network.input_shape[2], 6, 5, padding=2)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.dropout = nn.Dropout(network.head_dropout)
        self.head = nn.Linear(84, network.num_classes)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.c1(x)), 2)
        x = F.avg_pool2d(F.relu(self.c3(x)), 2)
        x = F.relu(self.f6(F.relu(self.c5(x)).flatten(1)))
        return self.head(self.dropout(x))


class DenseNetInPyTorch(nn.Module):
    """`models.densenet.DenseNet` with the study's dropout: `[B, C, 32, 32]` -> `[B, num_classes]`."""

    def __init__(self, network: DenseNet):
        super().__init__()
        self.blocks = network.blocks
        self.activate = F.elu if network.activation == "elu" else F.relu
        self.pool = F.max_pool2d if network.max_pool else F.avg_pool2d
        self.dropout = nn.Dropout(network.head_dropout)

        def norm(name, channels):
            self.add_module(name, nn.BatchNorm2d(channels, network.batch_norm_epsilon, 1 - network.batch_norm_momentum))

        def conv(name, channels, features, size, **kwargs):
            self.add_module(name, nn.Conv2d(channels, features, size, bias=False, **kwargs))

        conv("conv1_conv", network.input_shape[2], 64, 7, stride=network.stem_stride, padding=network.stem_padding)
        norm("conv1_bn", 64)
        channels = 64
        for i, layers in enumerate(self.blocks, 2):
            for j in range(1, layers + 1):
                name = f"conv{i}_block{j}"
                norm(f"{name}_0_bn", channels)
                conv(f"{name}_1_conv", channels, 4 * network.growth, 1)
                norm(f"{name}_1_bn", 4 * network.growth)
                conv(f"{name}_2_conv", 4 * network.growth, network.growth, 3, padding=1)
                channels += network.growth
            if i <= len(self.blocks):
                norm(f"pool{i}_bn", channels)
                conv(f"pool{i}_conv", channels, int(channels * network.compression), 1)
                channels = int(channels * network.compression)
        norm("bn", channels)
        self.head = nn.Linear(channels, network.num_classes)

    def forward(self, x):
        def norm(name, x):
            return self.activate(getattr(self, name)(x))

        x = norm("conv1_bn", self.conv1_conv(x))
        x = self.pool(F.pad(x, (1, 1, 1, 1)), 3, 2)
        for i, layers in enumerate(self.blocks, 2):
            for j in range(1, layers + 1):
                name = f"conv{i}_block{j}"
                y = getattr(self, f"{name}_1_conv")(norm(f"{name}_0_bn", x))
                x = torch.cat([x, getattr(self, f"{name}_2_conv")(norm(f"{name}_1_bn", y))], 1)
            if i <= len(self.blocks):
                x = F.avg_pool2d(getattr(self, f"pool{i}_conv")(norm(f"pool{i}_bn", x)), 2)
        return self.head(self.dropout(norm("bn", x).mean((2, 3))))


IN_PYTORCH = {Plain: PlainInPyTorch, LeNet5: LeNet5InPyTorch, DenseNet: DenseNetInPyTorch}


def create(name: str, num_classes: int) -> nn.Module:
    """Builds a network of `models.MODELS`, with PyTorch's initial weights.

    Raises:
      ValueError: It is none of the kinds that IN_PYTORCH has, or the LeNet-5 with an RBF head.
    """
    network = MODELS[name](num_classes=num_classes)
    if type(network) not in IN_PYTORCH or getattr(network, "rbf", False):
        raise ValueError(f"{name} has no form in PyTorch here")
    return IN_PYTORCH[type(network)](network)
