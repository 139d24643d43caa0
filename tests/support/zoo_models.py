"""Images and trained-looking weights for tests of the zoo."""

import keras
import numpy as np

CIFAR100 = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
# Every family, with the options of its builder.
ONE_OF_EACH = [
    "resnet8", "resnet8:shortcut=projection", "resnet8x4", "resnet18:stem=64", "wrn_16_1", "vgg8",
    "mobilenet_v2", "mobilenet_v2:width=0.25", "shufflenet_v1", "shufflenet_v2",
]  # fmt: skip


def deviation(actual, expected):
    """The largest difference, relative to the largest deviation of `expected` from its mean."""
    spread = np.abs(expected - expected.mean(axis=0)).max()
    return np.abs(np.asarray(actual) - expected).max() / spread


def pixels(count=4, shape=(32, 32, 3), seed=0):
    """Noisy images of different colors, in [0, 255]."""
    rng = np.random.default_rng(seed)
    colors = rng.uniform(0, 255, (count, 1, 1, shape[-1]))
    return np.clip(colors + rng.normal(0, 60, (count, *shape)), 0, 255).astype("float32")


def trained(model):
    """Gives batch normalization parameters and statistics as after training on such images."""
    rng = np.random.default_rng(0)
    norms = [x for x in model.layers if type(x) is keras.layers.BatchNormalization]
    for norm in norms:
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.3, norm.beta.shape))
        norm.momentum = 0.0
    model(pixels(8, model.input_shape[1:], seed=1), training=True)
    for norm in norms:
        norm.momentum = 0.9
    return model


def trainable(model):
    """The number of trainable parameters."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
