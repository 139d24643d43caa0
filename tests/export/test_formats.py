"""Exported files answer as the student does, in runtimes that know nothing of Keras."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import keras
import networks
import numpy as np
import onnxruntime
import PIL.Image
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from stkd_keras import InputError, data, experiment, export
from stkd_keras.export import converters
from stkd_keras.files.atomic import atomic_folder

FILES = {
    "saved_model": "saved_model",
    "litert": "student.tflite",
    "litert_int8": "student_int8.tflite",
    "onnx": "student.onnx",
}


def probabilities_of(folder, name, images):
    """What a format's file answers, opened as its users do; images are uint8."""
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


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


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
    """The folder of an export to all formats, and what was returned."""
    folder = tmp_path_factory.mktemp("run") / "export"
    return folder, experiment.export(student, digits, list(FILES), folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_raw_pixels_and_gives_the_students_probabilities(
    name, exported, student, digits
):
    folder, content = exported
    images = digits.test.images
    expected = softmax(student.predict(images.astype("float32"), verbose=0).astype("float64"))
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
    # What export.json says is what is found here.
    numbers = content["formats"][name]
    assert numbers["agreement"] == pytest.approx(agreement, abs=1e-9)
    accuracy = (given.argmax(axis=1) == digits.test.labels).mean()
    assert numbers["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert numbers["accuracy"] > 0.9
    assert numbers["largest_difference"] == pytest.approx(np.abs(given - expected).max(), abs=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_any_number_of_images(name, exported, digits):
    images = digits.test.images[:5]
    alone = [probabilities_of(exported[0], name, images[i : i + 1]) for i in range(5)]
    together = probabilities_of(exported[0], name, images)
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)


def test_export_json_says_what_there_is(exported, student, digits, tmp_path):
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


def test_the_table_has_a_line_for_each_file(exported):
    lines = export.format_export(exported[1]).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["student.keras", *FILES.values()]
    assert "100.00 %" in lines[2]
    assert lines[6].startswith("360 test images of digits, ")


def class_names_in(folder, name):
    path = folder / FILES[name]
    if name == "onnx":
        metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
        return json.loads(metadata["class_names"])
    if name == "saved_model":
        return (path / "assets.extra" / "labels.txt").read_text(encoding="utf-8").splitlines()
    with zipfile.ZipFile(path) as archive:
        return archive.read("labels.txt").decode().splitlines()


def test_class_names_of_any_text_and_images_of_many_channels_arrive(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 9, 5)).astype("uint8")
    labels = np.arange(40) % 3
    names = ("Käse", "two\nlines", "no text \udcff")
    dataset = data.from_arrays(images, labels, images, labels, names)
    student = networks.small_convolutional_classifier(3, (12, 9, 5))
    content = experiment.export(student, dataset, list(FILES), tmp_path)
    expected = softmax(student.predict(images.astype("float32"), verbose=0))
    for name in FILES:
        assert class_names_in(tmp_path, name) == ["Käse", "two lines", "no text \\udcff"]
        np.testing.assert_allclose(probabilities_of(tmp_path, name, images), expected, atol=0.1)
    assert content["class_names"] == ["Käse", "two lines", "no text \\udcff"]


def test_eight_bits_hold_the_weights_and_take_the_bytes_of_an_image(exported):
    folder, content = exported
    interpreter = Interpreter(str(folder / FILES["litert_int8"]))
    (taken,) = interpreter.get_input_details()
    assert taken["dtype"] == np.uint8
    details = interpreter.get_tensor_details()
    scales = [d["quantization"] for d in details if d["name"] == "tfl.quantize"]
    assert scales == [(1.0, -128)]  # A byte is a step: nothing is lost.
    kernels = [d for d in details if tuple(d["shape"]) == (8, 3, 3, 1)]
    assert [kernel["dtype"] for kernel in kernels] == [np.int8]
    sizes = {name: content["formats"][name]["bytes"] for name in FILES}
    assert sizes["litert_int8"] < sizes["saved_model"]


def test_a_student_with_a_softmax_gets_no_second_one(digits, student, tmp_path):
    with_softmax = keras.Model(student.input, keras.layers.Softmax()(student.output))
    experiment.export(with_softmax, digits, ["litert"], tmp_path)
    images = digits.test.images[:50]
    expected = softmax(student.predict(images.astype("float32"), verbose=0))
    np.testing.assert_allclose(probabilities_of(tmp_path, "litert", images), expected, atol=1e-5)


def test_a_student_of_mixed_precision_is_exported_in_float32_and_stays_as_it_was(digits, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = networks.small_convolutional_classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    policies = [layer.dtype_policy.name for layer in student.layers]
    assert "mixed_float16" in policies
    content = experiment.export(student, digits, ["litert", "onnx"], tmp_path)
    assert [layer.dtype_policy.name for layer in student.layers] == policies
    for numbers in content["formats"].values():
        assert numbers["largest_difference"] < 0.05


def test_gelu_and_adapted_normalisation_get_into_every_file(digits, tmp_path):
    inputs = keras.Input((8, 8, 1))
    normalization = keras.layers.Normalization(axis=(1, 2, 3))  # A mean for each pixel.
    normalization.adapt(digits.train.images[:100].astype("float32"))
    x = keras.layers.Flatten()(normalization(inputs))
    x = keras.layers.Dense(8, activation="gelu")(x)
    student = keras.Model(inputs, keras.layers.Dense(10)(x))
    content = experiment.export(student, digits, ["saved_model", "litert", "onnx"], tmp_path)
    for numbers in content["formats"].values():
        assert numbers["agreement"] == 1
        assert numbers["largest_difference"] < 1e-4


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exporting_again_replaces_what_it_names_and_keeps_the_rest(
    exported, student, digits, tmp_path
):
    folder = tmp_path / "export"
    shutil.copytree(exported[0], folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "saved_model" / "old.txt").write_text("of before")
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


@pytest.mark.parametrize("name", ["litert", "litert_int8", "onnx"])
def test_what_a_format_does_not_have_is_named_and_leaves_what_was_there(
    name, exported, digits, tmp_path
):
    folder = tmp_path / "export"
    shutil.copytree(exported[0], folder)
    before = snapshot(folder)
    with pytest.raises(InputError, match=f"(?i)to {name}.*Erfinv.*leave {name} out"):
        experiment.export(student_of_erfinv(), digits, ["saved_model", name], folder)
    assert snapshot(folder) == before
    with pytest.raises(InputError, match="Erfinv"):
        experiment.export(student_of_erfinv(), digits, [name], tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_nothing_that_does_not_fit_is_exported(student, digits, tmp_path):
    images = np.zeros((4, 9, 9, 1), np.uint8)
    labels = np.array([0, 1, 2, 9])
    larger = data.from_arrays(images, labels, images, labels)
    with pytest.raises(InputError, match=r"images of shape \(8, 8, 1\).*\(9, 9, 1\)"):
        experiment.export(student, larger, ["litert"], tmp_path)
    seven = networks.small_convolutional_classifier(7)
    with pytest.raises(InputError, match="7 classes and digits 10"):
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


@pytest.mark.parametrize(
    ("name", "module"),
    [("onnx", "onnxruntime"), ("onnx", "tf2onnx"), ("litert", "ai_edge_litert.interpreter")],
)
def test_a_missing_package_is_named_with_what_installs_it(
    name, module, student, digits, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install (onnxruntime tf2onnx onnx|ai-edge-litert)$"):
        experiment.export(student, digits, [name], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_two_exports_into_one_folder_do_not_get_in_each_others_way(tmp_path):
    beside = tmp_path / ".unfinished-folder"
    (beside / "new").mkdir(parents=True)
    (beside / "new" / "file").write_text("of the first")
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, beside / "lock"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as first:  # fmt: skip
        first.stdout.readline()
        with pytest.raises(InputError, match="is being written by another process"):
            atomic_folder(tmp_path).__enter__()
        assert (beside / "new" / "file").read_text() == "of the first"
        first.stdin.close()
    # What an export that was killed has left doesn't matter.
    with atomic_folder(tmp_path) as new:
        (new / "file").write_text("of the second")
    assert snapshot(tmp_path) == {tmp_path / "file": b"of the second"}


def test_an_export_goes_with_the_run_that_is_replaced(tmp_path):
    from stkd_keras.training.run_directory import RunDirectory

    run = RunDirectory(tmp_path / "run")
    run.start({"settings": {}})
    (run.path / "export").mkdir()
    RunDirectory(tmp_path / "run").start({"settings": {"seed": 1}}, overwrite=True)
    assert not (run.path / "export").exists()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with a data set of photographs, a run on them, and a larger photograph."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for brightness, name in ((60, "dusk"), (190, "noon")):
            place = folder / "photographs" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                shape = random.integers(30, 60, 2)
                pixels = random.normal(brightness, 30, (*shape, 3)).clip(0, 255).astype("uint8")
                PIL.Image.fromarray(pixels).save(place / f"{number}.jpg")
    PIL.Image.new("RGB", (640, 480), (200, 190, 180)).save(folder / "photo.jpg")
    dataset = data.load("folder", folder / "photographs", image_size=32)
    keras.utils.set_random_seed(0)
    student = networks.small_convolutional_classifier(2, (32, 32, 3))
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.fit(dataset.train.images.astype("float32"), dataset.train.labels, epochs=30, verbose=0)
    run = folder / "runs" / "photographs"
    run.mkdir(parents=True)
    student.save(run / "student.keras")
    settings = {"dataset": "folder", "image_size": 32, "skip_bad_images": False}
    config = {"settings": settings, "data_dir": str(folder / "photographs")}
    (run / "config.json").write_text(json.dumps(config))
    return folder


def blocks(repository, language):
    text = (repository / "docs" / "export.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_code_of_docs_export_runs_on_a_folder_of_photographs(photographs, repository, command):
    line = blocks(repository, "bash")[0]
    completed = command(*shlex.split(line)[1:], cwd=photographs)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    assert "student_int8.tflite" in completed.stdout
    python = blocks(repository, "python")
    assert len(python) == 4
    for block in python:
        # Nothing but the runtime is needed where the page says so.
        alone = "import tensorflow" not in block and "import keras" not in block
        hidden = "import sys\nsys.modules.update(tensorflow=None, keras=None)\n" if alone else ""
        ran = subprocess.run(
            [sys.executable, "-c", hidden + block],
            cwd=photographs,
            env={**os.environ, "PYTHONPATH": str(repository), "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        if alone:
            assert ran.stdout.startswith("noon "), ran.stdout


@pytest.mark.slow
def test_json_is_all_that_the_command_prints_with_json(photographs, command):
    completed = command(
        "evaluate.py", "--model=runs/photographs/student.keras", "--dataset=folder",
        "--data_dir=photographs", "--image_size=32", "--export=litert_int8,litert",
        "--output_dir=exported/here", "--json", cwd=photographs,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    content = json.loads(completed.stdout)
    folder = photographs / "exported" / "here"
    assert content == json.loads((folder / "export.json").read_text())
    assert list(content["formats"]) == ["litert", "litert_int8"]
    assert content["formats"]["litert_int8"]["agreement"] >= 0.95


# A file system of its own, with room for so much.
FULL_DISK = """
mkdir -p disk && mount -t tmpfs -o size={size} tmpfs disk || exit 77
{command}
echo $? > status
find disk -mindepth 1 > left
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["8k", "40k"])
def test_a_full_disk_ends_the_command_in_one_line_and_leaves_nothing(
    size, photographs, repository, tmp_path
):
    if not shutil.which("unshare"):
        pytest.skip("no unshare: a file system of its own can't be made")
    flags = ["--model=runs/photographs", "--export=saved_model,litert,litert_int8,onnx"]
    parts = [sys.executable, repository / "evaluate.py", *flags, "--output_dir=disk"]
    line = " ".join(f"'{part}'" for part in parts) + " > output 2> errors"
    completed = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", FULL_DISK.format(size=size, command=line)],
        cwd=photographs, check=False, timeout=170,
    )  # fmt: skip
    if completed.returncode:
        pytest.skip("a file system of its own can't be mounted here")
    errors = (photographs / "errors").read_text().splitlines()
    assert (photographs / "status").read_text() == "2\n"
    assert len(errors) == 1, errors
    assert "No space left on device" in errors[0]
    assert (photographs / "left").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "resnet56"])
def test_on_cifar10_files_agree_with_the_student(name, command, shared, tmp_path):
    cifar10 = ["--dataset=cifar10", f"--data_dir={shared / 'data' / 'tfds'}"]
    weights = shared / "weights" / "resnet56-cifar10.safetensors"
    model = ["--model=run"]
    if name == "resnet8":
        trained = command(
            "train.py", *cifar10, "--teacher=resnet56", f"--teacher_weights={weights}",
            "--teacher_normalization=imagenet", "--student=resnet8", "--epochs=1",
            "--train_fraction=0.1", "--run_dir=run", cwd=tmp_path, timeout=1200,
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr
    else:
        model = [f"--model={name}", f"--weights={weights}", "--normalization=imagenet", *cifar10]
        model.append("--output_dir=run")
    completed = command(
        "evaluate.py", *model, f"--export={','.join(FILES)}", "--json", cwd=tmp_path, timeout=1800
    )
    assert completed.returncode == 0, completed.stderr
    content = json.loads(completed.stdout)
    assert content["images"] == 10_000
    for format_name, numbers in content["formats"].items():
        assert numbers["agreement"] >= (0.98 if format_name == "litert_int8" else 0.999)
        assert abs(numbers["accuracy"] - content["student"]["accuracy"]) < 0.01
    if name == "resnet56":
        assert abs(content["student"]["accuracy"] - 0.8946) <= 0.0005


@pytest.mark.parametrize("files", [{}, {"a": "1"}])
def test_a_folder_is_atomic_folder_or_not_at_all(files, tmp_path):
    target = tmp_path / "new" / "folder"
    if files:
        target.mkdir(parents=True)
        (target / "a").write_text("1")

    def fill_half():
        with atomic_folder(target) as new:
            (new / "a").write_text("2")
            raise KeyError

    with pytest.raises(KeyError):
        fill_half()
    assert {path.name: path.read_text() for path in target.glob("**/*")} == files
    assert (tmp_path / "new").exists() == bool(files)


def test_what_libraries_write_on_the_terminal_is_kept_from_it(capfd):
    with converters.quiet():
        os.write(2, b"chatter")
    os.write(2, b"an error")
    assert capfd.readouterr().err == "an error"
