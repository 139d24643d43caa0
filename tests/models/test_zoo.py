"""Models of the zoo: names, options, normalization, features, and plain Keras files."""

import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from zoo_models import ONE_OF_EACH, deviation, pixels, trained

import models
from models import applications
from models.zoo import parse_name
from stkd_keras import FrozenTeacher, InputError

CIFAR = {"input_shape": (32, 32, 3), "num_classes": 10}
SMALL = {"input_shape": (8, 8, 3), "num_classes": 10}


def refusal(**arguments):
    with pytest.raises(InputError) as caught:
        models.build(**{"name": "resnet8", **CIFAR, **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("spelled", "name", "options"),
    [
        ("ResNet50", "resnet50", {}),
        ("WRN-40-2", "wrn_40_2", {}),
        ("vgg13_bn", "vgg13", {}),
        ("MobileNetV2", "mobilenet_v2", {}),
        ("mobile_half", "mobilenet_v2", {"width": 0.5}),
        ("mobile_full", "mobilenet_v2", {"width": 1.0}),
        ("mobilenet_v2:width=1", "mobilenet_v2", {"width": 1}),
        ("resnet8:shortcut=projection", "resnet8", {"shortcut": "projection"}),
        ("ShuffleV1", "shufflenet_v1", {}),
        ("ShuffleNetV2", "shufflenet_v2", {}),
    ],
)
def test_names_may_be_spelled_as_in_repdistiller(spelled, name, options):
    assert name in models.available()
    assert parse_name(spelled) == (name, options)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), (0.5, (1, 2, 3))]
)
def test_the_first_layer_normalizes_pixels(mean, std):
    model = models.build("resnet8", **SMALL, mean=mean, std=std)
    x = pixels(2, (8, 8, 3))
    expected = (x.astype("float64") / 255 - mean) / std
    np.testing.assert_allclose(model.layers[1](x), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "shufflenet_v1"])
def test_mixed_precision_keeps_normalization_and_logits_in_float32(name):
    exact = trained(models.build(name, **CIFAR))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.build(name, **CIFAR)
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(exact.get_weights())
    assert model.get_layer("stage2").compute_dtype == "bfloat16"
    assert model.output.dtype == model.get_layer("normalization").compute_dtype == "float32"
    logits = [np.ravel(m(pixels())) for m in (model, exact)]
    assert np.corrcoef(*logits)[0, 1] > 0.9


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_features_have_the_same_names_in_all_families(name):
    model = models.build(name, **CIFAR)
    num_stages = {"resnet18": 4, "vgg8": 4, "mobilenet_v2": 4}.get(name.split(":")[0], 3)
    stages = [f"stage{number}" for number in range(1, num_stages + 1)]
    before = [f"{stage}_preactivation" for stage in stages]
    found = models.features(model, ["stem", *stages, *before, "embedding", "logits"]).output
    assert found["embedding"].shape == (None, model.layers[-1].input.shape[-1])
    assert found["logits"].shape == (None, 10)
    assert [found[n].shape for n in stages] == [found[n].shape for n in before]


def test_a_loaded_model_has_the_same_features(tmp_path):
    model = models.build("wrn_16_1", **SMALL)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    names = ["stem", "stage2_preactivation", "embedding", "logits"]
    one, other = (models.features(m, names)(pixels(2, (8, 8, 3))) for m in (model, loaded))
    for name in names:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_features_of_another_functional_model_have_its_layers_names():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    found = models.features(model, ["head", "logits"])(np.zeros((2, 4), "float32"))
    assert found["head"].shape == found["logits"].shape == (2, 3)


def test_missing_features_are_refused():
    model = models.build("resnet8", **SMALL)
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    for arguments, named in (
        ((model, []), "no feature"),
        ((model, ["stage9"]), "stage"),
        ((unbuilt, ["logits"]), "no graph"),
    ):
        with pytest.raises(InputError, match=named) as caught:
            models.features(*arguments)
        assert "\n" not in str(caught.value)


def test_a_wide_resnets_unfoldable_normalization_stays_in_a_teacher():
    model = trained(models.build("wrn_16_1", **SMALL))
    teacher = FrozenTeacher(model)
    assert (teacher.num_folded, teacher.num_normalizations) == (6, 13)
    x = pixels(shape=(8, 8, 3))
    assert deviation(teacher(x), model(x, training=False).numpy()) <= 1e-4


@pytest.mark.parametrize("name", ["resnet8", pytest.param("shufflenet_v2", marks=pytest.mark.slow)])
def test_a_compiled_teacher_computes_what_the_model_does(name):
    model = trained(models.build(name, **CIFAR))
    teacher = tf.function(FrozenTeacher(model))
    assert deviation(teacher(pixels()), model(pixels(), training=False).numpy()) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_gradients_reach_every_weight(name):
    model = models.build(name, (16, 16, 3), 3)
    with tf.GradientTape() as tape:
        logits = model(pixels(6, (16, 16, 3)), training=True)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(np.arange(6) % 3, logits)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)


LOAD_IN_PLAIN_KERAS = """
import sys, keras, numpy as np
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    np.save(path + ".npy", model(np.load("pixels.npy")))
assert not {"stkd_keras", "models"} & set(sys.modules)
"""


@pytest.mark.process
def test_saved_models_load_in_a_process_that_imports_only_keras(tmp_path):
    np.save(tmp_path / "pixels.npy", pixels())
    saved = {}
    for name in ("resnet8", "shufflenet_v2"):
        saved[f"{name}.keras"] = networks.trained_looking(models.build(name, **CIFAR))
    for name in ("MobileNetV2", "DenseNet121", "VGG16"):
        inputs = keras.Input((32, 32, 3))
        outputs = applications.preprocess(applications.PREFIX + name, inputs)
        saved[f"{name}.keras"] = keras.Model(inputs, outputs)
    for name, model in saved.items():
        model.save(tmp_path / name)
    command = [sys.executable, "-c", LOAD_IN_PLAIN_KERAS, *saved]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    for name, model in saved.items():
        loaded = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(loaded, model(pixels()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": None}, "None"),
        ({"name": "resnet_20"}, "resnet20"),
        ({"name": "wrn_40_3"}, "wrn_40_"),
        ({"name": "mobilenet_v2:depth=3"}, "width="),
        ({"name": "mobilenet_v2:width=wide"}, "width is 'wide'"),
        ({"name": "mobilenet_v2", "width": 0.01}, "width is 0.01"),
        ({"name": "resnet18", "stem": 48}, "stem is 48; expected 32 or 64"),
        ({"name": "vgg8", "input_shape": (4, 4, 3)}, "too small"),
        ({"name": "shufflenet_v1", "input_shape": (None, None, 3)}, "height and width as numbers"),
        ({"shortcuts": "identity"}, "'shortcuts'"),
        ({"shortcut": "projecton"}, "projection"),
        ({"shortcut": ["identity"]}, "['identity']"),
        ({"input_shape": (32, 32)}, "input_shape is (32, 32);"),
        ({"input_shape": (32, 0, 3)}, "input_shape is (32, 0, 3)"),
        ({"input_shape": 32}, "input_shape is 32"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_classes": 10.0}, "num_classes is 10.0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"mean": (0.1, 0.2)}, "mean is (0.1, 0.2)"),
        ({"mean": "grey"}, "mean is 'grey'"),
        ({"mean": float("nan")}, "mean is nan"),
        ({"std": (0.1, 0.0, 0.1)}, "std is (0.1, 0.0, 0.1)"),
        ({"std": float("inf")}, "std is inf"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused_by_name(arguments, named):
    assert named in refusal(**arguments)
