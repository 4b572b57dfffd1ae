"""EfficientNet-B1 (EfficientNet: Rethinking Model Scaling, arXiv 1905.11946) as `keras.applications` builds it.

Keras' model also scales and normalises its images, with 7 more parameters. Ours expects normalised images. The last
two stages see 1x1 of 32x32 pixels.
"""

import flax.linen as nn

from emnist_jax.models.layers import Network

# Blocks, features, side of the depthwise kernels, stride and expansion of each stage.
_STAGES = (
    (2, 16, 3, 1, 1),
    (3, 24, 3, 2, 6),
    (3, 40, 5, 2, 6),
    (4, 80, 3, 2, 6),
    (4, 112, 5, 1, 6),
    (5, 192, 5, 2, 6),
    (2, 320, 3, 1, 6),
)


class EfficientNet(Network):
    """EfficientNet-B1: inverted residual blocks with squeeze-and-excite.

    Attributes:
      stem_stride: Stride of the first convolution.
      path_dropout: Of whole residual branches (stochastic depth). Block i of n, counted from 0, has i/n of this rate.
      head_dropout: Before the head.
    """

    stem_stride: int = 2
    path_dropout: float = 0.2
    head_dropout: float = 0.2
    input_shape: tuple[int, int, int] = (32, 32, 3)
    activation: str = "swish"
    initializer: str = "efficientnet"
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 32, 3, padding="SAME", stride=self.stem_stride, name="stem_conv")
        x = self.activate(self.batch_norm(x, train, "stem_bn"))
        done, total = 0, sum(blocks for blocks, *_ in _STAGES)
        for i, (blocks, features, size, stride, expansion) in enumerate(_STAGES, 1):
            for letter in "abcde"[:blocks]:
                y = self._branch(x, features, size, stride, expansion, train, f"block{i}{letter}")
                if y.shape == x.shape:
                    y = x + self.dropout(y, self.path_dropout * done / total, train, whole_examples=True)
                x, stride, done = y, 1, done + 1
        x = self.conv(x, 1280, 1, name="top_conv")
        x = self.activate(self.batch_norm(x, train, "top_bn"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)

    def _branch(self, x, features: int, size: int, stride: int, expansion: int, train: bool, name: str):
        channels = x.shape[-1]
        if expansion > 1:
            x = self.conv(x, expansion * channels, 1, name=f"{name}_expand_conv")
            x = self.activate(self.batch_norm(x, train, f"{name}_expand_bn"))
        groups = x.shape[-1]
        x = self.conv(x, groups, size, padding="SAME", stride=stride, groups=groups, name=f"{name}_dwconv")
        x = self.activate(self.batch_norm(x, train, f"{name}_bn"))
        weights = self.conv(x.mean((1, 2), keepdims=True), channels // 4, 1, bias=True, name=f"{name}_se_reduce")
        weights = self.conv(self.activate(weights), x.shape[-1], 1, bias=True, name=f"{name}_se_expand")
        x = self.conv(x * nn.sigmoid(weights), features, 1, name=f"{name}_project_conv")
        return self.batch_norm(x, train, f"{name}_project_bn")
