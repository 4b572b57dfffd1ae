"""VGG-16 (Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556), also with BatchNorm.

Without, it is that of `keras.applications`, which has no dropout: 138,357,544 parameters at 224x224x3 and 1,000
classes; at the study's 32x32x3 and 47 classes, where the last feature map is 1x1, 33,789,807.

With BatchNorm between each convolution and its activation it is torchvision's `vgg16_bn`, whose convolutions keep their
biases: 138,365,992 and 33,798,255 trainable parameters. The layers keep Keras' names, the features are flattened as
they are (torchvision pools those of any image to 7x7, which for 32x32 would only repeat them), and the dense layers
start uniform (torchvision's normal, with a standard deviation of 0.01). ImageNet's dense layers fit 224x224 alone.
"""

import flax.linen as nn

from emnist_jax.models.layers import Network

# Each block's features and number of convolutions.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG(Network):
    """VGG-16; the defaults are Keras' on the study's input.

    Attributes:
      with_batch_norm: Whether each convolution has one.
      head_dropout: After each dense layer but the head (0.5 in the paper and in torchvision).
    """

    with_batch_norm: bool = False
    head_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (32, 32, 3)
    initializer: str = "keras"

    @nn.compact
    def __call__(self, x, train: bool):
        for i, (features, convolutions) in enumerate(_BLOCKS, 1):
            for j in range(1, convolutions + 1):
                name = f"block{i}_conv{j}"
                x = self.conv(x, features, 3, 1, bias=True, name=name)
                if self.with_batch_norm:
                    x = self.batch_norm(x, train, f"{name}_bn")
                x = self.activate(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for name in ("fc1", "fc2"):
            x = self.activate(self.dense(x, 4096, name))
            x = self.dropout(x, self.head_dropout, train)
        return self.dense(x, self.num_classes, "head")
