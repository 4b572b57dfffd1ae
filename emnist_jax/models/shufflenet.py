"""ShuffleNet v1 (arXiv 1707.01083) and v2 (arXiv 1807.11164), both 1.0x.

v1 has three groups and follows its authors' PyTorch code (megvii-model/ShuffleNet-Series). Its channel shuffle takes
the channels as a matrix [C / groups, groups] and transposes it; v2's is the inverse. The first 1x1 convolution has no
groups, and the head no bias. Our initial weights are PyTorch's defaults. The authors' are normal, with a standard
deviation of 0.01 in the first and the last layer and of one over the input channels of a group in the others;
BatchNorm's biases start at 0.0001. v2 follows torchvision.

In both, the last stage sees 1x1 of 32x32 pixels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from emnist_jax.models.layers import Network

_GROUPS = 3


class ShuffleNet(Network):
    """ShuffleNet v1 of 16 blocks.

    Attributes:
      stem_stride: Stride of the first convolution.
      head_dropout: Before the head.
    """

    stem_stride: int = 2
    head_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (32, 32, 3)

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 24, 3, padding=1, stride=self.stem_stride, name="first_conv_0")
        x = self.activate(self.batch_norm(x, train, "first_conv_1"))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i in range(16):
            features = 240 if i < 4 else 480 if i < 12 else 960
            x = self._block(x, features, _GROUPS if i else 1, train, f"features_{i}")
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x, bias=False)

    def _block(self, x, features: int, groups: int, train: bool, name: str):
        channels, stride = x.shape[-1], 1 if x.shape[-1] == features else 2
        middle = features // 4
        y = self.conv(x, middle, 1, groups=groups, name=f"{name}_branch_main_1_0")
        y = self.activate(self.batch_norm(y, train, f"{name}_branch_main_1_1"))
        y = self.conv(y, middle, 3, padding=1, stride=stride, groups=middle, name=f"{name}_branch_main_1_3")
        y = _shuffle(self.batch_norm(y, train, f"{name}_branch_main_1_4"), middle // _GROUPS)
        y = self.conv(y, features - (stride - 1) * channels, 1, groups=_GROUPS, name=f"{name}_branch_main_2_0")
        y = self.batch_norm(y, train, f"{name}_branch_main_2_1")
        if stride == 1:
            return self.activate(y + x)
        return jnp.concatenate([nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), self.activate(y)], axis=-1)


class ShuffleNetV2(Network):
    """ShuffleNet v2 of three stages.

    Attributes:
      stem_stride: Stride of the first convolution.
      head_dropout: Before the head.
    """

    stem_stride: int = 2
    head_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (32, 32, 3)

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 24, 3, padding=1, stride=self.stem_stride, name="conv1_0")
        x = self.activate(self.batch_norm(x, train, "conv1_1"))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks, features in ((2, 4, 58), (3, 8, 116), (4, 4, 232)):
            for i in range(blocks):
                x = self._block(x, features, 1 if i else 2, train, f"stage{stage}_{i}")
        x = self.conv(x, 1024, 1, name="conv5_0")
        x = self.activate(self.batch_norm(x, train, "conv5_1"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)

    def _block(self, x, features: int, stride: int, train: bool, name: str):
        if stride == 1:
            kept, y = jnp.split(x, 2, axis=-1)
        else:
            y = x
            channels = x.shape[-1]
            kept = self.conv(x, channels, 3, padding=1, stride=stride, groups=channels, name=f"{name}_branch1_0")
            kept = self.batch_norm(kept, train, f"{name}_branch1_1")
            kept = self.conv(kept, features, 1, name=f"{name}_branch1_2")
            kept = self.activate(self.batch_norm(kept, train, f"{name}_branch1_3"))
        y = self.conv(y, features, 1, name=f"{name}_branch2_0")
        y = self.activate(self.batch_norm(y, train, f"{name}_branch2_1"))
        y = self.conv(y, features, 3, padding=1, stride=stride, groups=features, name=f"{name}_branch2_3")
        y = self.conv(self.batch_norm(y, train, f"{name}_branch2_4"), features, 1, name=f"{name}_branch2_5")
        y = self.activate(self.batch_norm(y, train, f"{name}_branch2_6"))
        return _shuffle(jnp.concatenate([kept, y], axis=-1), 2)


def _shuffle(x: jax.Array, rows: int) -> jax.Array:
    """Takes the channels as a matrix of `rows` rows and transposes it."""
    return x.reshape(*x.shape[:-1], rows, -1).swapaxes(-1, -2).reshape(x.shape)
