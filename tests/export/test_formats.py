"""Exported files predict as the student does, in runtimes without Keras."""

import copy
import json
import os
import re
import shutil
import sys
import zipfile

import keras
import networks
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from scipy.special import softmax

from stkd_keras import InputError, data, experiment, export
from stkd_keras.export import converters

FILES = {
    "saved_model": "saved_model",
    "litert": "student.tflite",
    "litert_int8": "student_int8.tflite",
    "onnx": "student.onnx",
}


def probabilities_of(folder, name, images):
    """Runs a format's file on uint8 images, as its users do."""
    path = str(folder / FILES[name])
    if name == "saved_model":
        serve = tf.saved_model.load(path).signatures["serving_default"]
        return serve(pixels=tf.constant(images, tf.float32))["probabilities"].numpy()
    if name == "onnx":
        session = onnxruntime.InferenceSession(path)
        return session.run(["probabilities"], {"pixels": images.astype("float32")})[0]
    interpreter = Interpreter(path)
    runner = interpreter.get_signature_runner("serving_default")
    pixels = images if name == "litert_int8" else images.astype("float32")
    return runner(pixels=pixels)["probabilities"]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def student(digits):
    """A small network that has learned the digits."""
    keras.utils.set_random_seed(0)
    model = networks.small_convolutional_classifier(width=8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(digits.train.images.astype("float32"), digits.train.labels, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def exported(student, digits, tmp_path_factory):
    """The folder of an export to all formats, and its export.json."""
    folder = tmp_path_factory.mktemp("run") / "export"
    return folder, experiment.export(student, digits, list(FILES), folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_raw_pixels_and_gives_the_students_probabilities(
    name, exported, student, digits
):
    folder, content = exported
    images = digits.test.images
    expected = softmax(
        student.predict(images.astype("float32"), verbose=0).astype("float64"), axis=1
    )
    given = probabilities_of(folder, name, images)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-5)
    agreement = (given.argmax(axis=1) == expected.argmax(axis=1)).mean()
    if name == "litert_int8":
        assert agreement >= 0.98
        assert np.abs(given - expected).max() < 0.1
    else:
        assert agreement == 1
        np.testing.assert_allclose(given, expected, atol=1e-5)
    numbers = content["formats"][name]
    assert numbers["agreement"] == pytest.approx(agreement, abs=1e-9)
    accuracy = (given.argmax(axis=1) == digits.test.labels).mean()
    assert numbers["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert numbers["accuracy"] > 0.9
    assert numbers["largest_difference"] == pytest.approx(np.abs(given - expected).max(), abs=1e-5)


def test_files_take_any_number_of_images(exported, digits):
    images = digits.test.images[:3]
    for name in FILES:
        alone = [probabilities_of(exported[0], name, images[i : i + 1]) for i in range(3)]
        together = probabilities_of(exported[0], name, images)
        np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)


def test_export_json_describes_the_files(exported, student, digits, tmp_path):
    folder, content = exported
    assert json.loads((folder / "export.json").read_text()) == content
    assert {path.name for path in folder.iterdir()} == {*FILES.values(), "export.json"}
    assert (content["images"], content["dataset"]) == (360, "digits")
    for name, file in FILES.items():
        numbers, path = content["formats"][name], folder / file
        files = path.rglob("*") if path.is_dir() else [path]
        assert numbers["file"] == file
        assert numbers["bytes"] == sum(each.stat().st_size for each in files if each.is_file())
        assert numbers["latency_ms"] > 0
        assert numbers["images_per_second"] > 0
        kind = "uint8" if name == "litert_int8" else "float32"
        assert numbers["takes"] == f"pixels, {kind} (batch, 8, 8, 1) in [0, 255]"
        assert re.fullmatch(r"[\w-]+ \d+\.\d+.*", numbers["runtime"])
    scored = experiment.evaluate(student, None, digits, {})["test"]["accuracy"]
    assert content["student"]["accuracy"] == pytest.approx(scored, abs=1e-9)
    student.save(tmp_path / "student.keras")
    size = (tmp_path / "student.keras").stat().st_size
    assert content["student"]["bytes"] == pytest.approx(size, rel=0.05)


def test_the_table_has_one_line_per_file(exported):
    lines = export.format_export(exported[1]).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["student.keras", *FILES.values()]
    assert "100.00 %" in lines[2]
    assert lines[6].startswith("360 test images of digits, ")


def test_a_file_that_often_disagrees_is_warned_of(exported):
    content = copy.deepcopy(exported[1])
    content["formats"]["litert_int8"]["agreement"] = 0.555
    lines = [line for line in export.format_export(content).splitlines() if "warning" in line]
    expected = "student_int8.tflite predicts another class than the student for 44 % of the images"
    assert lines == [f"warning: {expected}"]


def class_names_in(folder, name):
    path = folder / FILES[name]
    if name == "onnx":
        metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
        return json.loads(metadata["class_names"])
    if name == "saved_model":
        return (path / "assets.extra" / "labels.txt").read_text(encoding="utf-8").splitlines()
    with zipfile.ZipFile(path) as archive:
        return archive.read("labels.txt").decode().splitlines()


def test_any_class_names_and_any_number_of_channels_can_be_exported(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 9, 5)).astype("uint8")
    labels = np.arange(40) % 3
    names = ("Käse", "two\nlines", "no text \udcff")
    dataset = data.from_arrays(images, labels, images, labels, names)
    student = networks.small_convolutional_classifier(3, (12, 9, 5))
    content = experiment.export(student, dataset, list(FILES), tmp_path)
    printed = capsys.readouterr().out
    assert re.findall(r"wrote (.+) in \d+ s", printed) == list(FILES.values())
    expected = softmax(student.predict(images.astype("float32"), verbose=0), axis=1)
    for name in FILES:
        assert class_names_in(tmp_path, name) == ["Käse", "two lines", "no text \\udcff"]
        np.testing.assert_allclose(probabilities_of(tmp_path, name, images), expected, atol=0.1)
    assert content["class_names"] == ["Käse", "two lines", "no text \\udcff"]


def test_int8_takes_bytes_and_has_8_bit_weights(exported):
    folder, content = exported
    interpreter = Interpreter(str(folder / FILES["litert_int8"]))
    (taken,) = interpreter.get_input_details()
    assert taken["dtype"] == np.uint8
    details = interpreter.get_tensor_details()
    scales = [d["quantization"] for d in details if d["name"] == "tfl.quantize"]
    assert scales == [(1.0, -128)]  # One step per byte: no rounding.
    kernels = [d for d in details if tuple(d["shape"]) == (8, 3, 3, 1)]
    assert [kernel["dtype"] for kernel in kernels] == [np.int8]
    sizes = {name: content["formats"][name]["bytes"] for name in FILES}
    assert sizes["litert_int8"] < sizes["saved_model"]


def test_an_operation_that_8_bits_destroy_stays_in_float(digits, student, tmp_path):
    spread, gather = keras.layers.Conv2D(2, 1), keras.layers.Conv2D(1, 1)
    pixels = keras.Input((8, 8, 1))
    model = keras.Model(pixels, student(gather(spread(pixels))))
    # 1000 * 255 + 1 * x - 255000 is x. Beside a weight of 1000, an 8-bit weight of 1 is 0.
    spread.set_weights([np.reshape([0.0, 1.0], (1, 1, 1, 2)), np.array([255.0, 0.0])])
    gather.set_weights([np.reshape([1000.0, 1.0], (1, 1, 2, 1)), np.array([-255000.0])])
    content = experiment.export(model, digits, ["litert_int8"], tmp_path)
    assert content["formats"]["litert_int8"]["agreement"] >= 0.95


def test_a_student_with_a_softmax_gets_no_second_one(digits, student):
    with_softmax = keras.Model(student.input, keras.layers.Softmax()(student.output))
    images = tf.constant(digits.test.images[:50], tf.float32)
    expected = softmax(student(images), axis=1)
    with converters.serving_model(with_softmax, (8, 8, 1), "float32") as model:
        np.testing.assert_allclose(model(images)["probabilities"], expected, atol=1e-6)


@pytest.mark.parametrize("ends_in_softmax", [False, True])
def test_files_give_calibrated_probabilities(ends_in_softmax, digits, student, tmp_path):
    model, names = student, list(FILES)
    if ends_in_softmax:
        model, names = keras.Model(student.input, keras.ops.softmax(student.output)), ["litert"]
    content = experiment.export(model, digits, names, tmp_path, temperature=2.5)
    images = digits.test.images
    expected = softmax(student.predict(images.astype("float32"), verbose=0) / 2.5, axis=1)
    for name in names:
        given = probabilities_of(tmp_path, name, images)
        atol = 0.1 if name == "litert_int8" else 1e-3
        np.testing.assert_allclose(given, expected, atol=atol)
        assert content["formats"][name]["largest_difference"] < atol
    assert content["temperature"] == 2.5
    assert "calibrated with temperature 2.5" in export.format_export(content)


def test_a_temperature_must_be_positive(digits, student, tmp_path):
    with pytest.raises(InputError, match="temperature is 0, but must be a positive number"):
        experiment.export(student, digits, ["litert"], tmp_path, temperature=0)


def test_a_student_of_mixed_precision_exports_float32_and_keeps_its_policies(digits, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = networks.small_convolutional_classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    policies = [layer.dtype_policy.name for layer in student.layers]
    assert "mixed_float16" in policies
    content = experiment.export(student, digits, ["litert"], tmp_path)
    assert [layer.dtype_policy.name for layer in student.layers] == policies
    for numbers in content["formats"].values():
        assert numbers["largest_difference"] < 0.05


def test_gelu_grouped_convolutions_and_adapted_normalization_can_be_exported(digits, tmp_path):
    inputs = keras.Input((8, 8, 1))
    normalization = keras.layers.Normalization(axis=(1, 2, 3))  # A mean for each pixel.
    normalization.adapt(digits.train.images[:100].astype("float32"))
    x = keras.layers.Conv2D(4, 3)(normalization(inputs))
    x = keras.layers.Conv2D(4, 3, groups=4)(x)  # Compiled with XLA by Keras.
    x = keras.layers.Dense(8, activation="gelu")(keras.layers.Flatten()(x))
    student = keras.Model(inputs, keras.layers.Dense(10)(x))
    content = experiment.export(student, digits, ["litert", "onnx"], tmp_path)
    for numbers in content["formats"].values():
        assert numbers["agreement"] == 1
        assert numbers["largest_difference"] < 1e-4


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exporting_again_replaces_the_named_formats_only(exported, student, digits, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported[0], folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "saved_model" / "old.txt").write_text("old")
    before = snapshot(folder)
    content = experiment.export(student, digits, ["saved_model", "saved_model"], folder)
    assert list(content["formats"]) == ["saved_model"]
    after = snapshot(folder)
    assert set(before) - set(after) == {folder / "saved_model" / "old.txt"}
    for name in ("notes.txt", "student.onnx", "student.tflite"):
        assert after[folder / name] == before[folder / name]
    assert json.loads((folder / "export.json").read_text()) == content


def student_of_erfinv():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dense(4, activation="tanh")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.ops.erfinv(x)))


@pytest.mark.parametrize("name", ["litert_int8", "onnx"])
def test_an_unsupported_operation_is_named_and_the_folder_stays_as_it_was(
    name, exported, digits, tmp_path
):
    folder = tmp_path / "export"
    shutil.copytree(exported[0], folder)
    before = snapshot(folder)
    with pytest.raises(InputError, match=f"(?i)to {name}.*Erfinv.*leave {name} out"):
        experiment.export(student_of_erfinv(), digits, ["saved_model", name], folder)
    assert snapshot(folder) == before


def test_a_student_that_does_not_fit_the_data_is_an_error(student, digits, tmp_path):
    images = np.zeros((4, 9, 9, 1), np.uint8)
    labels = np.array([0, 1, 2, 9])
    larger = data.from_arrays(images, labels, images, labels)
    with pytest.raises(InputError, match=r"images of shape \(8, 8, 1\).*\(9, 9, 1\)"):
        experiment.export(student, larger, ["litert"], tmp_path)
    seven = networks.small_convolutional_classifier(7)
    with pytest.raises(InputError, match=r"7 classes, but digits .* 10 classes"):
        experiment.export(seven, digits, ["litert"], tmp_path)
    unbuilt = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    with pytest.raises(InputError, match="no weights yet"):
        experiment.export(unbuilt, digits, ["litert"], tmp_path)
    relu = keras.Model(student.input, keras.layers.Activation("relu")(student.output))
    with pytest.raises(InputError, match="ends in relu"):
        experiment.export(relu, digits, ["litert"], tmp_path)
    with pytest.raises(InputError, match="the student is a str"):
        experiment.export("student.keras", digits, ["litert"], tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "module"), [("onnx", "tf2onnx"), ("litert", "ai_edge_litert")])
def test_a_missing_package_is_named_with_the_command_to_install_it(
    name, module, student, digits, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install (onnxruntime tf2onnx onnx|ai-edge-litert)$"):
        experiment.export(student, digits, [name], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_messages_of_libraries_are_silenced(capfd):
    with converters.quiet():
        os.write(2, b"chatter")
    os.write(2, b"an error")
    assert capfd.readouterr().err == "an error"
