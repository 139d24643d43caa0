"""Models from files and by name, and refusals of files that don't fit."""

import pickle

import keras
import numpy as np
import pytest

import models
import stkd_keras
from stkd_keras.errors import InputError

SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}
CIFAR = {"input_shape": (32, 32, 3), "num_classes": 10}


@pytest.fixture(scope="module")
def model():
    return models.build("resnet8", **SMALL)


def refusal(*arguments, **settings):
    with pytest.raises(InputError) as caught:
        models.load(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(model, path):
    model.save(path) if path.suffix == ".keras" else model.save_weights(path)
    return path


def test_a_kerashub_classifier_takes_raw_pixels(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="KerasHub isn't installed")
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64],
        stackwise_num_blocks=[1], stackwise_num_strides=[1], block_type="basic_block",
        image_shape=(16, 16, 3),
    )  # fmt: skip
    converter = hub.layers.ResNetImageConverter(image_size=(16, 16), scale=1 / 255)
    preprocessor = hub.models.ResNetImageClassifierPreprocessor(image_converter=converter)
    model = hub.models.ImageClassifier(
        backbone=backbone, num_classes=3, preprocessor=preprocessor, activation=None
    )
    model.save(tmp_path / "hub.keras")
    loaded = models.load(tmp_path / "hub.keras", input_shape=(16, 16, 3), num_classes=3)
    x = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype("float32")
    logits = loaded(x, training=False)
    np.testing.assert_allclose(logits, model(x / 255, training=False), rtol=1e-4, atol=1e-5)
    teacher = stkd_keras.FrozenTeacher(loaded)
    np.testing.assert_allclose(teacher(x), logits, rtol=1e-4, atol=1e-4)


def test_load_without_weights_equals_build():
    settings = {**SMALL, "mean": 0.3, "std": 0.2, "shortcut": "projection"}
    loaded = []
    for function in (models.build, models.load):
        keras.utils.set_random_seed(3)
        loaded.append(function("resnet8", **settings))
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(loaded[0](x), loaded[1](x))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_keras_files_load_by_name_and_by_path(ending, model, tmp_path):
    path = write(model, tmp_path / f"m{ending}")
    loaded = [models.load("resnet8", **SMALL, weights=path)]
    if ending == ".keras":
        loaded += [models.load(path), models.load(str(path), **SMALL)]
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)).astype("float32")
    for each in loaded:
        np.testing.assert_array_equal(each(x), model(x))
        assert "call" in vars(each.get_layer("bn1")), "its normalization is fused"


def test_a_keras_file_has_to_fit_the_data_and_brings_its_own_settings(model, tmp_path):
    path = write(model, tmp_path / "m.keras")
    assert "(8, 8, 1); expected (32, 32, 3)" in refusal(path, input_shape=(32, 32, 3))
    assert "10 classes; expected 100" in refusal(path, num_classes=100)
    assert "10 classes; expected 100" in refusal(
        "resnet8", **SMALL | {"num_classes": 100}, weights=path
    )
    assert "mean, shortcut" in refusal(path, mean=0.5, shortcut="identity")
    assert "std" in refusal("resnet8", **SMALL, weights=path, std=0.5)
    assert "weights=" in refusal(path, weights=tmp_path / "m.pth")


def test_keras_weights_of_another_architecture_are_refused(model, tmp_path):
    path = write(model, tmp_path / "m.weights.h5")
    for settings in ({"num_classes": 7}, {"shortcut": "projection"}):
        assert "same architecture" in refusal("resnet8", **{**SMALL, **settings}, weights=path)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_nans_in_keras_files_are_refused(ending, tmp_path):
    model = models.build("resnet8", **SMALL)
    model.get_layer("conv1").kernel.assign(np.full((3, 3, 1, 16), np.nan))
    path = write(model, tmp_path / f"m{ending}")
    message = refusal("resnet8", **SMALL, weights=path)
    assert "NaNs or infinities in conv1/kernel" in message


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".keras", ".weights.h5"])
def test_a_broken_file_is_refused(ending, tmp_path):
    if ending == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"m{ending}"
    for content in (b"", b"not weights", pickle.dumps({"fc.weight": 1})):
        path.write_bytes(content)
        assert str(path) in refusal("resnet8", **SMALL, weights=path)


def test_a_files_code_is_not_run_and_unregistered_classes_are_named(tmp_path):
    class Unregistered(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((8, 8, 1))
    for layer, cause in ((keras.layers.Lambda(lambda x: x), "Lambda"), (Unregistered(), "Unregis")):
        path = tmp_path / "m.keras"
        keras.Model(inputs, layer(inputs)).save(path)
        assert cause in refusal(path)


def test_options_come_from_the_name_or_else_the_checkpoint(tmp_path):
    path = tmp_path / "m.safetensors"
    models.save_pytorch(models.build("resnet8", **SMALL, shortcut="projection"), path)
    assert models.load("resnet8", **SMALL, weights=path).get_layer("layer2_0_downsample_0")
    contradiction = refusal("resnet8:shortcut=identity", **SMALL, weights=path)
    assert 'shortcut="projection"' in contradiction


def test_missing_arguments_and_unknown_sources_are_refused(tmp_path):
    assert "input_shape" in refusal("resnet8", num_classes=10)
    assert "num_classes" in refusal("resnet8", input_shape=(8, 8, 1))
    assert "resnet8" in refusal("resnt8", **SMALL)
    assert "resnet8" in refusal("resnt8", **SMALL, weights="m.keras")
    assert "architecture" in refusal("weights.pth", **SMALL)
    assert "no file" in refusal("resnet8", **SMALL, weights=tmp_path / "m.pth")
