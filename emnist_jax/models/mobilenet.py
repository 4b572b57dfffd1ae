"""MobileNet (arXiv 1704.04861) and MobileNetV2 (arXiv 1801.04381) of width 1.0 as `keras.applications` builds them.

Their strides multiply to 32, so that the last layers see 1x1 of 32x32 pixels.
"""

import flax.linen as nn

from emnist_jax.models.layers import Network


class MobileNet(Network):
    """MobileNet of depthwise separable convolutions; the defaults are Keras' on the study's input.

    Attributes:
      stem_stride: Stride of the first convolution.
      head_dropout: Before the head.
    """

    stem_stride: int = 2
    head_dropout: float = 0.001
    input_shape: tuple[int, int, int] = (32, 32, 3)
    activation: str = "relu6"
    initializer: str = "keras"
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 32, 3, padding="SAME", stride=self.stem_stride, name="conv1")
        x = self.activate(self.batch_norm(x, train, "conv1_bn"))
        for i, features in enumerate((64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024), 1):
            channels = x.shape[-1]
            # A block that is wider than the one before halves the image, except the first.
            stride = 2 if i > 1 and features > channels else 1
            # Keras pads after the image even if its side is odd; "SAME" would then pad both sides.
            padding = ((0, 1), (0, 1)) if stride == 2 else 1
            x = self.conv(x, channels, 3, padding=padding, stride=stride, groups=channels, name=f"conv_dw_{i}")
            x = self.activate(self.batch_norm(x, train, f"conv_dw_{i}_bn"))
            x = self.conv(x, features, 1, name=f"conv_pw_{i}")
            x = self.activate(self.batch_norm(x, train, f"conv_pw_{i}_bn"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)


# Expansion, features, number of blocks and first stride of each stage.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(Network):
    """MobileNetV2 of inverted residual blocks; the defaults are Keras' on the study's input.

    Attributes:
      stem_stride: Stride of the first convolution.
      head_dropout: Before the head.
    """

    stem_stride: int = 2
    head_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (32, 32, 3)
    activation: str = "relu6"
    initializer: str = "keras"
    batch_norm_momentum: float = 0.999
    batch_norm_epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 32, 3, padding="SAME", stride=self.stem_stride, name="Conv1")
        x = self.activate(self.batch_norm(x, train, "bn_Conv1"))
        blocks = [
            (expansion, features, stride if j == 0 else 1)
            for expansion, features, blocks, stride in _STAGES
            for j in range(blocks)
        ]
        for i, block in enumerate(blocks):
            x = self._block(x, *block, train, f"block_{i}" if i else "expanded_conv")
        x = self.conv(x, 1280, 1, name="Conv_1")
        x = self.activate(self.batch_norm(x, train, "Conv_1_bn"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)

    def _block(self, x, expansion: int, features: int, stride: int, train: bool, name: str):
        shortcut = x
        if expansion > 1:
            x = self.conv(x, expansion * x.shape[-1], 1, name=f"{name}_expand")
            x = self.activate(self.batch_norm(x, train, f"{name}_expand_BN"))
        groups = x.shape[-1]
        x = self.conv(x, groups, 3, padding="SAME", stride=stride, groups=groups, name=f"{name}_depthwise")
        x = self.activate(self.batch_norm(x, train, f"{name}_depthwise_BN"))
        x = self.batch_norm(self.conv(x, features, 1, name=f"{name}_project"), train, f"{name}_project_BN")
        return shortcut + x if x.shape == shortcut.shape else x
