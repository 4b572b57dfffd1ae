"""The small MNIST networks that are one chain of layers, each written as its layer list.

- `mnist_cnn`: three convolutions (PyTorch).
- `mnist_squeeze_1` to `_10`: ten squeeze-and-expand networks.
- `mnist_gap_v1` to `_v5`: five versions whose layer lists were not published. Ours are a **reconstruction** that has
  exactly the three published counts.
- `mnist_onecycle`: global average pooling, convolutions with biases.
- `mnist_small`, `mnist_mini`, `mnist_tiny`, `mnist_nano`: ours, few parameters. The order of their layers is that of
  https://github.com/JoshWarn/Parameter-Efficient-MNIST, with BatchNorm and ReLU instead of biases, leaky ReLU and
  dropout, and with other widths.
- `mnist_m5`: the M5 of An et al. (https://arxiv.org/abs/2008.10400), without BatchNorm of its logits.

Unless the source says otherwise, BatchNorm comes before ReLU, dropout after both, and all convolutions but the last
have a ReLU. `mnist_onecycle`'s source leaves the order open and reports its accuracy by epoch. ReLU before BatchNorm,
and no ReLU after the 1x1 convolutions, came closest to its first epoch: 84.3 % (validation), 84.7 % in the source.
"""

import dataclasses

import flax.linen as nn

from emnist_jax.models.layers import Network


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution and what follows it. If `features` is None, it is the head, with one feature for each class."""

    features: int | None
    size: int = 3
    padding: int = 0
    bias: bool = False
    batch_norm: bool = False
    relu: bool = True
    relu_first: bool = False  # before BatchNorm
    dropout: bool = False


@dataclasses.dataclass(frozen=True)
class Separable:
    """A 3x3 convolution of each channel by itself, and a 1x1 convolution with BatchNorm and ReLU."""

    features: int


@dataclasses.dataclass(frozen=True)
class Dense:
    """A dense layer with ReLU, after flattening."""

    features: int


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """2x2 max-pooling."""


@dataclasses.dataclass(frozen=True)
class GlobalAveragePool:
    """Mean over the image."""


class Plain(Network):
    """A chain of layers. It ends in a `Dense`, which gets a dense head, or in logits `[B, 1, 1, num_classes]`.

    Attributes:
      layers: The chain.
      convolution_dropout: After the convolutions marked with `dropout`.
      head_dropout: Before a dense head.
    """

    layers: tuple = ()
    convolution_dropout: float = 0.0
    head_dropout: float = 0.0

    @property
    def dropout_places(self) -> list[str]:
        convolution = any(isinstance(layer, Conv) and layer.dropout for layer in self.layers)
        return ["convolution"] * convolution + ["head"] * isinstance(self.layers[-1], Dense)

    @nn.compact
    def __call__(self, x, train: bool):
        for i, layer in enumerate(self.layers, 1):
            match layer:
                case Conv():
                    x = self.conv(
                        x,
                        layer.features or self.num_classes,
                        layer.size,
                        padding=layer.padding,
                        bias=layer.bias,
                        dtype=None if layer.features else self.head_dtype,
                        name=f"conv{i}" if layer.features else "head",
                    )
                    if layer.relu_first:
                        x = self.activate(x)
                    if layer.batch_norm:
                        x = self.batch_norm(x, train, f"norm{i}")
                    if layer.relu and not layer.relu_first:
                        x = self.activate(x)
                    if layer.dropout:
                        x = self.dropout(x, self.convolution_dropout, train)
                case Separable():
                    x = self.conv(x, x.shape[-1], 3, groups=x.shape[-1], name=f"depthwise{i}")
                    x = self.conv(x, layer.features, 1, name=f"pointwise{i}")
                    x = self.activate(self.batch_norm(x, train, f"norm{i}"))
                case MaxPool():
                    x = nn.max_pool(x, (2, 2), (2, 2))
                case GlobalAveragePool():
                    x = x.mean((1, 2), keepdims=True)
                case Dense():
                    x = self.activate(self.dense(x.reshape(x.shape[0], -1), layer.features, f"dense{i}"))
        if isinstance(self.layers[-1], Dense):
            return self.logits(self.dropout(x, self.head_dropout, train))
        return x.reshape(x.shape[0], -1)


def squeeze(widths: str, pooled: bool, norm: str = "", dropout: str = "", last_relu: bool = True) -> tuple:
    """Returns the layers of a squeeze-and-expand network.

    Args:
      widths: Features of the convolutions a to h, separated by spaces.
      pooled: Whether it ends in average pooling and a 1x1 convolution or in a 6x6 convolution.
      norm: The convolutions that have BatchNorm, e.g. "abdeh".
      dropout: The convolutions that have dropout.
      last_relu: Whether h has a ReLU.
    """
    a, b, c, d, e, f, g, h = (
        Conv(
            int(width),
            size=1 if letter in "cf" else 3,
            padding=1 if letter in "ab" else 0,
            batch_norm=letter in norm,
            relu=letter != "h" or last_relu,
            dropout=letter in dropout,
        )
        for letter, width in zip("abcdefgh", widths.split(), strict=True)
    )
    end = (GlobalAveragePool(), Conv(None, 1, relu=False)) if pooled else (Conv(None, 6, relu=False),)
    return (a, b, MaxPool(), c, d, e, f, g, h, *end)


SQUEEZE = {
    1: squeeze("16 32 16 32 64 16 32 64", pooled=False),
    2: squeeze("16 20 10 12 16 10 12 16", pooled=False),
    3: squeeze("10 12 10 12 16 8 10 10", pooled=False),
    4: squeeze("10 12 10 10 12 8 10 10", pooled=False, norm="abdegh", last_relu=False),
    5: squeeze("10 12 10 10 12 8 10 10", pooled=False, norm="abdeh", dropout="abdegh", last_relu=False),
    6: squeeze("10 12 10 10 12 8 10 10", pooled=True, norm="abdeh", dropout="abdegh", last_relu=False),
    7: squeeze("10 12 10 16 16 8 12 12", pooled=True, norm="abdegh", dropout="abdeg"),
    8: squeeze("10 12 10 16 16 8 12 12", pooled=True, norm="abdegh", dropout="abdeg"),
    9: squeeze("10 12 10 16 16 8 12 12", pooled=True, norm="abdegh", dropout="abdeg"),
    10: squeeze("10 12 10 12 12 10 10 12", pooled=True, norm="abdegh", dropout="abdeg"),
}


def gap(batch_norm: bool, pooled: bool) -> tuple:
    """Returns the layers of the reconstruction. They end in an average if `pooled`, else in a 3x3 convolution."""
    return (
        Conv(15, padding=1, batch_norm=batch_norm),
        Conv(15, padding=1, batch_norm=batch_norm),
        MaxPool(),
        Conv(8, 1, batch_norm=batch_norm),
        Conv(9, batch_norm=batch_norm),
        Conv(15, batch_norm=batch_norm),
        MaxPool(),
        Conv(10, 1, batch_norm=batch_norm),
        Conv(8, batch_norm=batch_norm),
        *(
            (Conv(None, padding=1, relu=False), GlobalAveragePool())
            if pooled
            else (Conv(10, padding=1), Conv(None, relu=False))
        ),
    )


GAP = {
    "v1": gap(batch_norm=False, pooled=False),
    "v2": gap(batch_norm=False, pooled=True),
    **dict.fromkeys(("v3", "v4", "v5"), gap(batch_norm=True, pooled=True)),
}

ONECYCLE = (
    Conv(10, padding=1, bias=True, batch_norm=True, relu_first=True, dropout=True),
    Conv(16, padding=1, bias=True, batch_norm=True, relu_first=True, dropout=True),
    MaxPool(),
    Conv(10, 1, bias=True, relu=False),
    Conv(16, padding=1, bias=True, batch_norm=True, relu_first=True, dropout=True),
    Conv(16, padding=1, bias=True, batch_norm=True, relu_first=True, dropout=True),
    MaxPool(),
    Conv(10, 1, bias=True, relu=False),
    Conv(16, padding=1, bias=True, batch_norm=True, relu_first=True, dropout=True),
    Conv(16, padding=1, bias=True, batch_norm=True, relu_first=True, dropout=True),
    Conv(None, 1, bias=True, relu=False),
    GlobalAveragePool(),
)

CNN = (
    *(layer for width in (32, 64, 128) for layer in (Conv(width, 3, 1, bias=True, batch_norm=True), MaxPool())),
    Dense(128),
)

M5 = (
    *(Conv(width, 5, batch_norm=True) for width in (32, 64, 96, 128, 160)),
    Conv(None, 8, relu=False),
)


def small(first: int, *widths: int) -> tuple:
    """Returns the layers of a small network: a convolution of `first` features, and separable ones of `widths`."""
    return (
        Conv(first, padding=1, batch_norm=True),
        MaxPool(),
        *map(Separable, widths),
        GlobalAveragePool(),
        Conv(None, 1, bias=True, relu=False),
    )


SMALL = {
    "small": small(18, 26, 30, 32, 32),
    "mini": small(13, 20, 22, 23, 23),
    "tiny": small(8, 8, 12, 14, 12),
    "nano": small(5, 5, 8, 8, 7),
}
