"""ResNets for CIFAR: shortcuts, layers and image sizes."""

import keras
import numpy as np
import pytest

import models
from models.architectures.resnet import options_from_state

SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}


def pixels(shape):
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def test_identity_shortcuts_take_every_second_pixel_and_add_zero_channels():
    model = models.build("resnet8", (9, 7, 3), 10)
    before, after = (model.get_layer(name).output for name in ("stage1", "layer2_0_shortcut_pad"))
    x = pixels((2, 9, 7, 16))
    expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (8, 8)))
    np.testing.assert_array_equal(keras.Model(before, after)(x), expected)


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
@pytest.mark.parametrize("shape", [(9, 7, 1), (1, 1, 1), (None, None, 3)])
def test_images_may_have_any_size(shape, shortcut):
    model = models.build("resnet8", shape, 5, shortcut=shortcut)
    assert model(pixels((2, *[side or 11 for side in shape]))).shape == (2, 5)


def test_initial_weights_depend_only_on_keras_seed():
    built = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        built.append(models.build("resnet8", **SMALL).get_layer("layer3_0_conv2").kernel.numpy())
    np.testing.assert_array_equal(built[0], built[1])
    assert np.abs(built[0] - built[2]).max() > 0
    # He et al.: the variance is 2 over the fan-in.
    assert built[0].std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)


def test_layers_are_pytorchs_with_fused_batch_normalization():
    model = models.build("resnet8", **SMALL, shortcut="projection")
    names = {layer.name for layer in model.layers}
    assert {"conv1", "bn1", "layer1_0_conv1", "layer3_0_bn2", "layer2_0_downsample_1", "fc"} < names
    norms = [x for x in model.layers if type(x) is keras.layers.BatchNormalization]
    assert len(norms) == 9
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}
    assert all("call" in vars(norm) for norm in norms)


def test_the_shortcut_is_inferred_from_a_state_dict():
    assert options_from_state({"layer2.0.downsample.0.weight": None}) == {"shortcut": "projection"}
    assert options_from_state({"layer2.0.conv1.weight": None}) == {"shortcut": "identity"}
