"""VGG with batch normalization and a single dense layer, for small images.

Five blocks of 3x3 convolutions with pooling between them; Simonyan and Zisserman, "Very Deep
Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556), table 1 (A, B, D, E),
and RepDistiller's VGG-8. As there, images are pooled three times, and four times if
they are 64 pixels high.

Layers have the names of the modules in github.com/HobbitLong/RepDistiller's vgg.py, with "_" for
".".
"""

import functools

import keras
from keras import layers

from models.architectures.blocks import (
    batch_normalization,
    classifier,
    convolution,
    end_of_stage,
    feature,
)

_WIDTHS = (64, 128, 256, 512, 512)
# Depth -> convolutions in each block.
_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def _vgg(depth: int, images: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    num_poolings = 4 if images.shape[1] == 64 else 3
    x = images
    for block, (width, count) in enumerate(zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True)):
        if 1 <= block <= num_poolings:
            x = layers.MaxPooling2D(2, name=f"pool{block - 1}")(x)
        for index in range(0, 3 * count, 3):  # Convolution, normalization and ReLU count.
            if index:
                x = layers.ReLU(name=f"block{block}_{index - 1}")(x)
            x = convolution(x, width, f"block{block}_{index}", use_bias=True)
            x = batch_normalization(x, f"block{block}_{index + 1}")
        if block == 0:
            x = feature(layers.ReLU(name="block0_relu")(x), "stem")
        else:
            x = end_of_stage(x, f"block{block}", f"stage{block}")
    return classifier(x, num_classes, "classifier")


MODELS = {f"vgg{depth}": functools.partial(_vgg, depth) for depth in _CONVOLUTIONS}
ALIASES = {f"vgg{depth}_bn": f"vgg{depth}" for depth in _CONVOLUTIONS}
