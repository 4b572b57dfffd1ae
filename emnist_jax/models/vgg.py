"""VGG-16 (Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556), also with BatchNorm.

Without BatchNorm it is `keras.applications`' VGG16, which has no dropout. With BatchNorm between each convolution and
its activation it is torchvision's `vgg16_bn`, whose convolutions keep their biases, with three differences: the layers
have Keras' names; the features are flattened as they are (torchvision pools them to 7x7, which would only repeat the
1x1 of a 32x32 image); the dense layers' initial weights are uniform (torchvision's are normal, with a standard
deviation of 0.01). Weights for ImageNet's dense layers fit 224x224 pixels alone.
"""

import flax.linen as nn

from emnist_jax.models.layers import Network

# Each block's features and number of convolutions.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG(Network):
    """VGG-16; the defaults are Keras' on the study's input.

    Attributes:
      with_batch_norm: Whether a BatchNorm follows each convolution.
      head_dropout: After each dense layer except the head (0.5 in the paper and in torchvision).
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
                x = self.conv(x, features, 3, padding=1, bias=True, name=name)
                if self.with_batch_norm:
                    x = self.batch_norm(x, train, f"{name}_bn")
                x = self.activate(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for name in ("fc1", "fc2"):
            x = self.activate(self.dense(x, 4096, name))
            x = self.dropout(x, self.head_dropout, train)
        return self.logits(x)
