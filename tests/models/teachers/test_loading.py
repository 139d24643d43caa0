"""Teachers for images of any size, with other classes, and several at once."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import models
from models.teachers.loading import load_teacher, load_teachers
from models.teachers.sources import TeacherSource
from stkd_keras import InputError, data

CLASSES = ("ant", "bee", "cat")


def dataset(shape=(8, 8, 3), classes=CLASSES):
    """A small data set of noise."""
    count = 2 * len(classes)
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    split = data.Split(images, np.arange(count) % len(classes))
    half = (0.5,) * shape[-1]
    return data.Dataset("made", "1.0.0", classes, half, half, False, split, split)


def images(shape=(8, 8, 3)):
    return networks.images(4, shape=shape)[0]


def log_softmax(z):
    return tf.nn.log_softmax(tf.cast(z, tf.float64)).numpy()


def classifier(folder, name="teacher", shape=(8, 8, 3), classes=3, softmax=False):
    """A saved model, its file as a source, and the model."""
    model = networks.convolutional_classifier(classes, shape, softmax=softmax)
    model.save(folder / f"{name}.keras")
    return TeacherSource(str(folder / f"{name}.keras")), model


def write(file, text, encoding="utf-8"):
    file.write_bytes(text.encode(encoding))
    return str(file)


def refusal(function, *args):
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["functional", "sequential", "nested"])
def test_a_teacher_for_another_size_resizes_images_bilinearly(kind, tmp_path, capsys):
    source, model = classifier(tmp_path, shape=(12, 10, 3), softmax=True)
    if kind == "sequential":
        model = keras.Sequential([keras.Input((12, 10, 3)), *model.layers[1:]])
    elif kind == "nested":
        inputs = keras.Input((12, 10, 3))
        model = keras.Model(inputs, layers.Activation("linear")(model(inputs)))
    model.save(source.source)
    teacher = load_teacher(dataset(), source)
    x = images()
    # TensorFlow's resizing has half-pixel centers and no antialiasing too.
    expected = model(tf.image.resize(x, (12, 10)), training=False)
    logits = teacher(x).numpy()
    np.testing.assert_allclose(np.exp(log_softmax(logits)), expected, atol=1e-5)
    # The softmax is removed, not inverted, so the logits aren't normalized.
    assert np.abs(np.exp(np.float64(logits)).sum(axis=1) - 1).max() > 1e-3
    assert teacher.input_shape == (8, 8, 3)
    line = capsys.readouterr().out
    assert "images resized from 8x8 to 12x10, 4 of 4 batch normalizations folded" in line
    if kind == "functional":
        compiled = tf.function(teacher, jit_compile=True)(tf.constant(x))
        np.testing.assert_allclose(compiled, logits, atol=1e-4)


def test_a_teacher_that_fits_the_images_is_not_changed(tmp_path, capsys):
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    any_size = keras.Model(inputs, layers.Dense(3)(x))
    any_size.save(tmp_path / "any.keras")
    teacher = load_teacher(dataset(), TeacherSource(str(tmp_path / "any.keras")))
    np.testing.assert_allclose(teacher(images()), any_size(images()), atol=1e-4)
    source, same = classifier(tmp_path)
    teacher = load_teacher(dataset(), source)
    np.testing.assert_allclose(teacher(images()), same(images(), training=False), atol=1e-4)
    assert "resized" not in capsys.readouterr().out


def test_other_channels_and_a_student_for_another_size_are_refused(tmp_path):
    grey, _ = classifier(tmp_path, "grey", shape=(8, 8, 1))
    assert "(8, 8, 1); expected (None, None, 3)" in refusal(load_teacher, dataset(), grey)
    larger, _ = classifier(tmp_path, "larger", shape=(12, 12, 3))
    assert "(12, 12, 3); expected (8, 8, 3)" in refusal(models.load_for, dataset(), larger.source)


def test_class_names_select_and_order_the_teachers_outputs(tmp_path):
    names = write(tmp_path / "names.txt", "\ufeffwasp\r\ncat\r\nant\r\nsnake\r\nbee\r\n\r\n")
    for softmax in (False, True):
        source, model = classifier(tmp_path, classes=5, softmax=softmax)
        source = TeacherSource(source.source, classes=names)
        logits = load_teacher(dataset(), source)(images())
        outputs = model(images(), training=False).numpy()
        kept = (np.log(outputs) if softmax else outputs)[:, [2, 4, 1]]
        np.testing.assert_allclose(log_softmax(logits), log_softmax(kept), atol=1e-5)


def test_a_checkpoint_with_other_classes_loads_with_their_names(tmp_path):
    model = models.build("resnet8", (8, 8, 3), 5, mean=0.25, std=0.5)
    model.save_weights(tmp_path / "five.weights.h5")
    models.save_pytorch(model, tmp_path / "five.safetensors")
    names = write(tmp_path / "names.txt", "a\nant\nbee\nb\ncat\n")
    for ending in ("weights.h5", "safetensors"):
        file = str(tmp_path / f"five.{ending}")
        source = TeacherSource("resnet8", file, "0.25,0.25,0.25,0.5,0.5,0.5", names)
        expected = model(images(), training=False).numpy()[:, [1, 2, 4]]
        np.testing.assert_allclose(load_teacher(dataset(), source)(images()), expected, atol=1e-4)
        message = refusal(load_teacher, dataset(), TeacherSource("resnet8", file))
        assert "--teacher_classes=FILE" in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ant\nbee\n", "no line 'cat'"),
        ("Ant\nBee\nCat\nDog\n", "'ant', 'bee', 'cat'"),
        ("ant\nbee\ncat\ndog\neel\n", "names 5 classes, but the teacher"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(text, named, tmp_path):
    source, _ = classifier(tmp_path, classes=4)
    names = write(tmp_path / "names.txt", text)
    message = refusal(load_teacher, dataset(), TeacherSource(source.source, classes=names))
    assert named in message
    assert "names.txt" in message


def test_a_missing_file_of_class_names_is_refused(tmp_path):
    missing = TeacherSource("resnet8", "w.pth", classes=str(tmp_path / "no.txt"))
    assert "no.txt" in refusal(load_teacher, dataset(), missing)


def test_another_number_of_classes_is_refused_without_their_names(tmp_path):
    source, _ = classifier(tmp_path, classes=5)
    message = refusal(load_teacher, dataset(), source)
    assert "5 classes and the data 3" in message
    assert "--teacher_classes=FILE" in message
    assert "fine-tuned on the data (--teacher_weights=imagenet)" in message
    # This is refused before looking for ImageNet's weights.
    source = TeacherSource("keras.applications:NASNetLarge")
    assert "1000 classes and the data 3" in refusal(load_teacher, dataset(), source)


def test_weights_of_an_application_with_a_head_of_its_own_are_refused_with_a_way_out(tmp_path):
    name, shape = "keras.applications:MobileNetV2", (32, 32, 3)
    options = {"weights": None, "include_top": False, "pooling": "avg", "alpha": 0.35}
    body = keras.applications.MobileNetV2(input_shape=shape, **options)
    model = keras.Sequential([body, keras.layers.Dense(3)])
    model.save_weights(tmp_path / "w.weights.h5")
    source = TeacherSource(name, str(tmp_path / "w.weights.h5"))
    message = refusal(load_teacher, dataset(), source)
    assert "load one with a head of your own as a whole, from a file of model.save" in message
    pixels = keras.Input(shape)
    scaled = keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)
    whole = keras.Model(pixels, model(scaled))
    whole.save(tmp_path / "whole.keras")
    teacher = load_teacher(dataset(), TeacherSource(str(tmp_path / "whole.keras")))
    resized = tf.image.resize(images(), shape[:2])
    np.testing.assert_allclose(teacher(images()), whole(resized, training=False), atol=1e-4)


def test_an_application_resizes_and_preprocesses_images(tmp_path, capsys):
    theirs = networks.trained_looking(
        keras.applications.MobileNetV2(weights=None, classes=4, classifier_activation=None)
    )
    theirs.save_weights(tmp_path / "w.weights.h5")
    names = write(tmp_path / "names.txt", "bee\ncat\nrat\nant\n")
    large = tf.image.resize(images(), (224, 224)) / 127.5 - 1
    expected = theirs(large, training=False).numpy()[:, [3, 0, 1]]
    file = str(tmp_path / "w.weights.h5")
    source = TeacherSource("keras.applications:MobileNetV2", file, classes=names)
    teacher = load_teacher(dataset(), source)
    assert np.abs(teacher(images()) - expected).max() <= 1e-3 * expected.std()
    assert "from 8x8 to 224x224, 52 of 52" in capsys.readouterr().out
    grey = dataset(shape=(8, 8, 1))
    assert "(8, 8, 1)" in refusal(load_teacher, grey, source)


def test_several_teachers_of_any_kind_become_one(tmp_path):
    one, first = classifier(tmp_path, "one", softmax=True)
    other, second = classifier(tmp_path, "other", shape=(16, 16, 3), classes=4)
    third, made = classifier(tmp_path, "third")
    names = write(tmp_path / "names.txt", "bee\ncat\nrat\nant\n")
    other = TeacherSource(other.source, classes=names)
    trained = []

    def train(name, weights):
        assert weights is None
        trained.append(name)
        return third.source

    teacher, places = load_teachers(dataset(), [one, TeacherSource("resnet8"), other], train)
    assert trained == ["resnet8"]
    assert places == [one, third, other]
    large = tf.image.resize(images(), (16, 16))
    probabilities = [
        first(images(), training=False),
        tf.nn.softmax(made(images(), training=False)),
        tf.nn.softmax(second(large, training=False).numpy()[:, [3, 0, 1]]),
    ]
    np.testing.assert_allclose(
        tf.nn.softmax(teacher(images())), np.mean(probabilities, 0), atol=1e-5
    )
    # A teacher that doesn't fit is refused before another is trained.
    misfit, _ = classifier(tmp_path, "misfit", classes=6)
    refusal(load_teachers, dataset(), [TeacherSource("resnet8"), misfit], train)
    assert trained == ["resnet8"]
