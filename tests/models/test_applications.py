"""Models of keras.applications: their own preprocessing, as students and as teachers."""

import inspect
import subprocess
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
NAMES = [name.removeprefix(applications.PREFIX) for name in applications.available()]


def as_documented(name, pixels):
    """What Keras's documentation says that each application takes, written anew."""
    if name.startswith(WITHIN_THE_MODEL):
        return pixels
    if name in TORCH:
        return (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if name in CAFFE:
        return pixels[..., ::-1] - [103.939, 116.779, 123.68]
    return pixels / 127.5 - 1


def raw(name, shape, classes=5):
    """The application as a user of Keras gets it."""
    return getattr(keras.applications, name)(
        input_shape=shape, weights=None, classes=classes, classifier_activation=None
    )


def test_every_function_of_keras_applications_is_known():
    functions = {n for n, f in vars(keras.applications).items() if inspect.isfunction(f)}
    assert set(NAMES) == functions
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_preprocessed_as_keras_documents(name):
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 4, 5, 3)).astype("float32")
    inputs = keras.Input((4, 5, 3))
    model = keras.Model(inputs, applications.preprocess(applications.PREFIX + name, inputs))
    np.testing.assert_allclose(model(pixels), as_documented(name, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        "MobileNetV3Small",
        pytest.param("DenseNet121", marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", marks=pytest.mark.slow),
        pytest.param("ResNet50", marks=pytest.mark.slow),
        pytest.param("ResNet50V2", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("error:The structure of")
def test_a_student_is_the_application_with_its_preprocessing(name, tmp_path):
    keras.utils.set_random_seed(0)
    theirs = networks.trained_looking(raw(name, (40, 36, 3)))
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    student = models.load(
        f"keras.applications:{name}",
        input_shape=(40, 36, 3),
        num_classes=5,
        weights=tmp_path / "theirs.weights.h5",
    )
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 40, 36, 3)).astype("float32")
    expected = theirs(as_documented(name, pixels), training=False).numpy()
    answer = student(pixels, training=False).numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())
    assert has_fused_batch_normalization(student)
    student.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")


@pytest.mark.slow
def test_saved_students_load_in_a_process_that_imports_only_keras(tmp_path):
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    np.save(tmp_path / "pixels.npy", pixels)
    # Of the larger ones the preprocessing alone.
    student = models.load("keras.applications:MobileNetV3Small", input_shape=(32, 32, 3),
                          num_classes=5)  # fmt: skip
    saved = {"MobileNetV3Small": student}
    for name in ("MobileNetV2", "DenseNet121", "VGG16"):
        inputs = keras.Input((32, 32, 3))
        saved[name] = keras.Model(
            inputs, applications.preprocess(applications.PREFIX + name, inputs)
        )
    for name, model in saved.items():
        model.save(tmp_path / f"{name}.keras")
    program = (
        "import sys, keras, numpy\n"
        "pixels = numpy.load('pixels.npy')\n"
        "for name in sys.argv[1:]:\n"
        "    model = keras.saving.load_model(name + '.keras')\n"
        "    numpy.save(name + '.npy', model.predict(pixels, verbose=0))\n"
        "assert not {'stkd_keras', 'models'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, *saved], cwd=tmp_path, check=True, timeout=120)
    for name, model in saved.items():
        expected = model.predict(pixels, verbose=0)
        np.testing.assert_allclose(
            np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-5, atol=1e-6 * abs(expected).max()
        )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MobileNetV2", 224),
        ("MobileNetV3Small", 224),
        ("InceptionV3", 299),
        pytest.param("EfficientNetB1", 240, marks=pytest.mark.slow),
        pytest.param("NASNetMobile", 224, marks=pytest.mark.slow),
        pytest.param("VGG16", 224, marks=pytest.mark.slow),
    ],
)
def test_as_published_it_takes_images_of_its_own_size_and_gives_logits(name, size):
    model = applications.build_as_published(applications.PREFIX + name, 7)
    assert model.input_shape == (None, size, size, 3)
    assert model.output_shape == (None, 7)
    x = tf.random.stateless_uniform((1, size, size, 3), (0, 0), -1, 1)
    assert not np.allclose(tf.reduce_sum(model(x)), 1, atol=1e-6)


def test_mixed_precision_reaches_the_application_but_not_its_preprocessing():
    build = {"input_shape": (32, 32, 3), "num_classes": 5}
    exact = networks.trained_looking(models.load("keras.applications:MobileNetV2", **build))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student = models.load("keras.applications:MobileNetV2", **build)
    finally:
        keras.config.set_dtype_policy("float32")
    assert student.layers[-1].compute_dtype == "bfloat16"
    student.set_weights(exact.get_weights())
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    expected = exact(pixels, training=False).numpy()
    answer = np.float32(student(pixels, training=False))
    assert np.abs(answer - expected).max() <= 0.1 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_a_file_of_imagenets_efficientnet_answers_as_that_does(ending, tmp_path, monkeypatch):
    name = "keras.applications:EfficientNetB0"
    plain = networks.trained_looking(
        keras.applications.EfficientNetB0(weights=None, classifier_activation=None)
    )
    cached = tmp_path / "cached.weights.h5"
    plain.save_weights(cached)
    module = sys.modules[keras.applications.EfficientNetB0.__module__]
    # Keras's cache, where there is no network: it is asked for this file and no other.
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: cached)
    imagenets = keras.applications.EfficientNetB0(classifier_activation=None)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 224, 224, 3)).astype("float32")
    for model in (imagenets, plain):
        save = model.save if ending == ".h5" else model.save_weights
        save(tmp_path / f"w{ending}")
        ours = applications.build_as_published(name, 1000)
        models.loading.fill(ours, name, str(tmp_path / f"w{ending}"))
        # Before the network's depth makes all images alike.
        inner = [keras.Model(m.inputs[0], m.get_layer("stem_conv").output) for m in (model, ours)]
        expected, answer = (each(pixels).numpy() for each in inner)
        np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


def refusal(*args, **options):
    with pytest.raises(InputError) as caught:
        models.load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_built_is_refused_in_one_line(tmp_path):
    name, data = "keras.applications:MobileNetV2", {"input_shape": (32, 32, 3), "num_classes": 5}
    assert "MobileNetV3Small" in refusal("keras.applications:MobileNetV3", **data)
    assert "VGG16" in refusal("keras.applications:vgg16", **data)
    assert "imagenet_utils" in refusal("keras.applications:imagenet_utils", **data)
    assert "at least 32x32" in refusal(name, input_shape=(16, 16, 3), num_classes=5)
    assert "at least 75x75" in refusal("keras.applications:InceptionV3", **data)
    assert "(32, 32, 1)" in refusal(name, input_shape=(32, 32, 1), num_classes=5)
    assert "mean, std" in refusal(name, **data, mean=0.5, std=0.5)
    assert "width" in refusal(name, **data, width=0.5)
    assert "expected both" in refusal(name)
    (tmp_path / "w.pth").touch()
    assert "w.pth can't be the weights" in refusal(name, **data, weights=tmp_path / "w.pth")
    assert "no file" in refusal(name, **data, weights=tmp_path / "w.weights.h5")
    raw("MobileNetV2", (32, 32, 3), classes=7).save_weights(tmp_path / "seven.weights.h5")
    message = refusal(name, **data, weights=tmp_path / "seven.weights.h5")
    assert "seven.weights.h5" in message
    assert "num_classes" in message
