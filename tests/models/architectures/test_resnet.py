"""The ResNets are those of the papers, from pixels to logits, and plain Keras."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import models
from stkd_keras.errors import InputError

CIFAR = {"input_shape": (32, 32, 3), "num_classes": 10}
SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}
NAMES = ["resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]


def _pixels(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


def _trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def _refusal(**arguments):
    with pytest.raises(InputError) as caught:
        models.build(**{"name": "resnet8", **CIFAR, **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_seven_are_available():
    assert set(NAMES) <= set(models.available())


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_published(name, shared):
    published = json.loads((shared / "reference" / "model_parameters.json").read_text())
    projection = models.build(name, (32, 32, 3), 100, shortcut="projection")
    assert _trainable(projection) == published["classes_100_projection_shortcuts"][name]
    if name in published["classes_10_parameter_free_shortcuts"]:
        identity = models.build(name, (32, 32, 3), 10)
        assert _trainable(identity) == published["classes_10_parameter_free_shortcuts"][name]


def test_identity_shortcuts_take_every_second_pixel_between_channels_of_zeros():
    model = models.build("resnet8", (9, 7, 3), 10)
    before, after = (model.get_layer(name).output for name in ("stage1", "layer2_0_shortcut_pad"))
    shortcut = keras.Model(before, after)
    x = _pixels((2, 9, 7, 16))
    expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (8, 8)))
    np.testing.assert_array_equal(shortcut(x), expected)


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 1), (1, 1, 1), (64, 64, 3), (None, None, 3)])
def test_any_image_size_works(shape, shortcut):
    model = models.build("resnet8", shape, 5, shortcut=shortcut)
    assert model(_pixels((2, *[side or 11 for side in shape]))).shape == (2, 5)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (0.5, 0.25), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), (0.5, (1, 2, 3))]
)
def test_pixels_are_normalised_in_the_first_layer(mean, std):
    model = models.build("resnet8", **CIFAR, mean=mean, std=std)
    x = _pixels((2, 32, 32, 3))
    expected = (x.astype("float64") / 255 - mean) / std
    np.testing.assert_allclose(model.layers[1](x), expected, atol=1e-5)


def test_without_settings_pixels_are_divided_by_255():
    model = models.build("resnet8", **CIFAR)
    x = _pixels((2, 32, 32, 3))
    np.testing.assert_allclose(model.layers[1](x), x / 255, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_normalisation_and_logits_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = models.build("resnet8", **SMALL)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("layer1_0_conv1").compute_dtype == policy.removeprefix("mixed_")
    x = np.full((1, 8, 8, 1), 254.9, "float32")  # Half precision would make it 255 (or 254).
    first = keras.Model(model.input, model.layers[1].output)
    np.testing.assert_allclose(first(x), x / 255, rtol=1e-6)
    assert model.output.dtype == "float32"
    assert model.get_layer("linear").compute_dtype == "float32"


def test_initial_weights_depend_on_keras_seed_alone():
    built = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        built.append(models.build("resnet8", **SMALL).get_layer("layer3_0_conv2").kernel.numpy())
    np.testing.assert_array_equal(built[0], built[1])
    assert np.abs(built[0] - built[2]).max() > 0
    # He et al.: the variance is 2 over the fan-in.
    assert built[0].std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)


def test_batch_normalisation_is_pytorchs_and_fused():
    model = models.build("resnet8", **SMALL, shortcut="projection")
    norms = [x for x in model.layers if type(x) is keras.layers.BatchNormalization]
    assert len(norms) == 9
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}
    assert all("call" in vars(norm) for norm in norms)


def test_layers_are_named_after_pytorchs_modules():
    names = {
        layer.name for layer in models.build("resnet14", **CIFAR, shortcut="projection").layers
    }
    assert {
        "conv1",
        "bn1",
        "layer1_0_conv1",
        "layer3_1_bn2",
        "layer2_0_downsample_1",
        "fc",
    } <= names


def test_what_is_unknown_is_refused_with_the_nearest_names():
    assert "resnet20" in _refusal(name="resnet_20")
    assert "'shortcuts'" in (message := _refusal(shortcuts="identity"))
    assert message.endswith("shortcut")
    assert "projection" in _refusal(shortcut="projecton")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("name", value) for value in (None, 20, ["resnet20"])],
        *[("shortcut", value) for value in (None, 1, ["identity"])],
        *[
            ("input_shape", v)
            for v in ((32, 32), (32, 32, 3, 1), (32, 0, 3), (8, 8, None), 32, "abc")
        ],
        *[("num_classes", value) for value in (1, 0, -3, 10.0, True, None)],
        *[("mean", value) for value in ((0.1, 0.2), "grey", float("nan"), None)],
        *[("std", value) for value in (0, -1, (0.1, 0.2), (0.1, 0.0, 0.1), float("inf"))],
    ],
    ids=str,
)
def test_impossible_values_are_refused_with_what_was_given(argument, value):
    message = _refusal(**{argument: value})
    assert str(value) in message
    assert argument.replace("name", "model") in message


LOAD_IN_PLAIN_KERAS = """
import sys, keras, numpy as np
for shortcut in ("identity", "projection"):
    model = keras.saving.load_model(f"{shortcut}.keras")
    assert not {"stkd_keras", "models"} & set(sys.modules)
    data = np.load(f"{shortcut}.npz")
    np.testing.assert_allclose(model(data["pixels"]), data["logits"], atol=1e-4)
"""


def test_a_saved_model_loads_in_a_process_that_imports_only_keras(tmp_path):
    for shortcut in ("identity", "projection"):
        model = models.build(
            "resnet8", (9, 7, 3), 4, shortcut=shortcut, mean=(0.4, 0.5, 0.6), std=0.2
        )
        model(_pixels((4, 9, 7, 3)), training=True)  # Moves the statistics.
        pixels = _pixels((4, 9, 7, 3), seed=1)
        np.savez(tmp_path / f"{shortcut}.npz", pixels=pixels, logits=model(pixels))
        model.save(tmp_path / f"{shortcut}.keras")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD_IN_PLAIN_KERAS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
