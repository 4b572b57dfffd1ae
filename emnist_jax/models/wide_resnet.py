"""Wide ResNet (arXiv 1605.07146) for 32x32 images, as in xternalz/WideResNet-pytorch.

BatchNorm and ReLU come before each convolution. If a block changes the width, the input of its shortcut convolution is
their output. Any other block adds its own input.
"""

import flax.linen as nn

from emnist_jax.models.layers import Network


class WideResNet(Network):
    """Wide ResNet of three stages; the defaults are WRN-28-10.

    Attributes:
      depth: Number of layers, 6 n + 4 for n blocks in each stage.
      width: Factor of the channels.
      convolution_dropout: After the first convolution of each block (0.3 in the paper's runs with dropout).
      head_dropout: Before the head.
    """

    depth: int = 28
    width: int = 10
    convolution_dropout: float = 0.0
    head_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (32, 32, 3)
    initializer: str = "he"

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.conv(x, 16, 3, padding=1, name="conv1")
        for i in range(3):
            for j in range((self.depth - 4) // 6):
                stride = 2 if i and not j else 1
                x = self._block(x, 16 * self.width * 2**i, stride, train, f"block{i + 1}_layer_{j}")
        x = self.activate(self.batch_norm(x, train, "bn1"))
        x = self.dropout(x.mean((1, 2)), self.head_dropout, train)
        return self.logits(x)

    def _block(self, x, features: int, stride: int, train: bool, name: str):
        shortcut = x
        x = self.activate(self.batch_norm(x, train, f"{name}_bn1"))
        if shortcut.shape[-1] != features:
            shortcut = self.conv(x, features, 1, stride=stride, name=f"{name}_convShortcut")
        x = self.conv(x, features, 3, padding=1, stride=stride, name=f"{name}_conv1")
        x = self.dropout(x, self.convolution_dropout, train)
        x = self.activate(self.batch_norm(x, train, f"{name}_bn2"))
        return shortcut + self.conv(x, features, 3, padding=1, name=f"{name}_conv2")
