"""Models of keras.applications with their own preprocessing."""

import inspect
import sys

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import models
from models import applications
from stkd_keras import InputError
from stkd_keras.classifiers.fused_batch_norm import has_fused_batch_normalization

TORCH = {"DenseNet121", "DenseNet169", "DenseNet201"}
CAFFE = {"ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"}
WITHIN_THE_MODEL = ("EfficientNet", "ConvNeXt", "MobileNetV3")
NAMES = [n for n, f in vars(keras.applications).items() if inspect.isfunction(f)]


def documented(name, pixels):
    """Preprocesses pixels as Keras documents for this application."""
    if name.startswith(WITHIN_THE_MODEL):
        return pixels
    if name in TORCH:
        return (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if name in CAFFE:
        return pixels[..., ::-1] - [103.939, 116.779, 123.68]
    return pixels / 127.5 - 1


def pixels(count, *shape):
    return np.random.default_rng(0).uniform(0, 255, (count, *shape, 3)).astype("float32")


@pytest.mark.parametrize("name", NAMES)
def test_every_application_gets_its_documented_preprocessing(name):
    applications.check_name(applications.PREFIX + name)
    inputs = keras.Input((4, 5, 3))
    model = keras.Model(inputs, applications.preprocess(applications.PREFIX + name, inputs))
    x = pixels(2, 4, 5)
    np.testing.assert_allclose(model(x), documented(name, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["MobileNetV2", pytest.param("EfficientNetB0", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("error:The structure of")
def test_a_student_is_the_application_with_its_preprocessing(name, tmp_path):
    theirs = getattr(keras.applications, name)(
        input_shape=(40, 36, 3), weights=None, classes=5, classifier_activation=None
    )
    networks.trained_looking(theirs).save_weights(tmp_path / "theirs.weights.h5")
    student = models.load(
        f"keras.applications:{name}",
        input_shape=(40, 36, 3),
        num_classes=5,
        weights=tmp_path / "theirs.weights.h5",
    )
    x = pixels(2, 40, 36)
    expected = theirs(documented(name, x), training=False).numpy()
    logits = student(x, training=False).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    assert has_fused_batch_normalization(student)
    student.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")


@pytest.mark.parametrize("name", ["MobileNetV3Small", "MobileNetV2"])
def test_a_published_application_takes_its_own_image_size_and_gives_logits(name):
    model = applications.build_as_published(applications.PREFIX + name, 7)
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 7)
    assert model.layers[-1].activation is keras.activations.linear


def test_mixed_precision_reaches_the_application_but_not_its_preprocessing():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student = models.load(
            "keras.applications:MobileNetV2", input_shape=(32, 32, 3), num_classes=5
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert student.layers[-1].compute_dtype == "bfloat16"
    assert student.input.dtype == "float32"
    first = next(x for x in student.layers if isinstance(x, keras.layers.Conv2D))
    preprocessed = keras.Model(student.input, first.input)(pixels(1, 32, 32))
    np.testing.assert_allclose(
        tf.cast(preprocessed, "float32"), pixels(1, 32, 32) / 127.5 - 1, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_a_file_of_imagenets_efficientnet_keeps_its_scale(ending, tmp_path, monkeypatch):
    name = "keras.applications:EfficientNetB0"
    plain = networks.trained_looking(
        keras.applications.EfficientNetB0(weights=None, classifier_activation=None)
    )
    cached = tmp_path / "cached.weights.h5"
    plain.save_weights(cached)
    module = sys.modules[keras.applications.EfficientNetB0.__module__]
    # Replaces the download of ImageNet's weights.
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: cached)
    imagenets = keras.applications.EfficientNetB0(classifier_activation=None)
    for model in (imagenets, plain):
        save = model.save if ending == ".h5" else model.save_weights
        save(tmp_path / f"w{ending}")
        ours = applications.build_as_published(name, 1000)
        models.loading.fill(ours, name, str(tmp_path / f"w{ending}"))
        # The first layers show the scale; after all layers the images look alike.
        inner = [keras.Model(m.inputs[0], m.get_layer("stem_conv").output) for m in (model, ours)]
        expected, found = (each(pixels(2, 224, 224)).numpy() for each in inner)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder that replaces the download of ImageNet's weights."""
    utils = sys.modules[keras.applications.MobileNetV2.__module__].file_utils
    monkeypatch.setattr(utils, "get_file", lambda name, *_, **__: str(tmp_path / name))
    return tmp_path


def test_imagenets_weights_get_a_new_head_at_any_image_size(cache):
    theirs = keras.applications.MobileNetV2((40, 36, 3), include_top=False, weights=None)
    file = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
    networks.trained_looking(theirs).save(cache / file)
    student = models.load("keras.applications:MobileNetV2", input_shape=(40, 36, 3), num_classes=5,
                          weights="imagenet")  # fmt: skip
    assert student.output_shape == (None, 5)
    x = pixels(2, 40, 36)
    expected = theirs(documented("MobileNetV2", x), training=False).numpy().mean((1, 2))
    embedding = keras.Model(student.input, student.get_layer("embedding").output)(x)
    np.testing.assert_allclose(embedding, expected, atol=1e-4 * np.abs(expected).max())
    assert has_fused_batch_normalization(student)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("MobileNetV2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5"),
        pytest.param("EfficientNetB0", "efficientnetb0.h5", marks=pytest.mark.slow),
    ],
)
def test_imagenets_weights_keep_their_head_for_a_thousand_classes(name, file, cache):
    function = getattr(keras.applications, name)
    published = function(weights=None, classifier_activation=None)
    networks.trained_looking(published).save(cache / file)
    published = function(classifier_activation=None)
    student = models.load(f"keras.applications:{name}", input_shape=(224, 224, 3), num_classes=1000,
                          weights="imagenet")  # fmt: skip
    x = pixels(1, 224, 224)
    expected = published(documented(name, x), training=False).numpy()
    np.testing.assert_allclose(
        student(x, training=False), expected, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("name", "rate"), [("MobileNet", 1e-3), ("MobileNetV3Small", 0.2), ("VGG16", 0.0)]
)
def test_the_dropout_of_an_applications_head_is_found(name, rate):
    assert applications._dropout_rate(applications.PREFIX + name, (32, 32, 3)) == rate


def test_weights_that_cant_be_had_or_dont_fit_are_refused(cache):
    name, data = "keras.applications:VGG16", {"input_shape": (32, 32, 3), "weights": "imagenet"}
    message = refusal(name, num_classes=5, **data)
    assert "can't get the ImageNet weights" in message
    assert "connect to the network" in message
    published = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(1, 1)])
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Dense(7)])
    with pytest.raises(InputError, match=r"\(8, 8\) and don't fit \(4, 4\)"):
        applications._copy_weights(name, published, model)


def refusal(*args, **options):
    with pytest.raises(InputError) as caught:
        models.load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_invalid_names_images_and_weights_are_refused(tmp_path):
    name, data = "keras.applications:MobileNetV2", {"input_shape": (32, 32, 3), "num_classes": 5}
    assert "MobileNetV3Small" in refusal("keras.applications:MobileNetV3", **data)
    assert "VGG16" in refusal("keras.applications:vgg16", **data)
    assert "imagenet_utils" in refusal("keras.applications:imagenet_utils", **data)
    assert "at least 32x32" in refusal(name, input_shape=(16, 16, 3), num_classes=5)
    assert "at least 75x75" in refusal("keras.applications:InceptionV3", **data)
    assert "(32, 32, 1)" in refusal(name, input_shape=(32, 32, 1), num_classes=5)
    assert "mean, std" in refusal(name, **data, mean=0.5, std=0.5)
    assert "needs both" in refusal(name)
    (tmp_path / "w.pth").touch()
    assert "w.pth can't be the weights" in refusal(name, **data, weights=tmp_path / "w.pth")
    assert "no file" in refusal(name, **data, weights=tmp_path / "w.weights.h5")
