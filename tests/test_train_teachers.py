"""train.py and evaluate.py with teachers and students from anywhere."""

import json

import keras
import networks
import numpy as np
import pytest
from commands import assert_one_line
from image_folders import write_images

import models

DATA = ("--dataset=folder", "--data_dir=photographs")
QUICK = ("--student=resnet8", "--epochs=1", "--validation_fraction=0")
CACHED = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of cats and dogs, and teachers for them."""
    folder = tmp_path_factory.mktemp("teachers")
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            write_images(folder / "photographs" / split / name, count, size=(32, 32))
    keras.utils.set_random_seed(0)
    networks.convolutional_classifier(3, (16, 16, 3), softmax=True).save(folder / "small.keras")
    (folder / "names.txt").write_text("dog\nrat\ncat\n")
    student = models.build("resnet8", (32, 32, 3), 2, mean=0.5, std=0.25)
    models.save_pytorch(networks.trained_looking(student), folder / "resnet8.safetensors")
    student.save(folder / "student.keras")
    return folder


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def test_teachers_of_all_kinds_count_as_one_and_are_found_again(command, folder):
    keras.applications.MobileNetV2(weights=None, classes=2).save_weights(folder / "w.weights.h5")
    completed = command(
        "train.py", *DATA, *QUICK, "--teacher_epochs=1",
        "--teacher=small.keras,keras.applications:MobileNetV2,resnet8",
        "--teacher_weights=,w.weights.h5,", "--teacher_classes=names.txt,,", cwd=folder,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert "small.keras: images resized from 32x32 to 16x16, 4 of 4 batch" in completed.stdout
    assert "resized from 32x32 to 224x224, 52 of 52 batch" in completed.stdout
    assert "teacher resnet8: 7 of 7 batch normalizations folded" in completed.stdout
    run = folder / "runs" / "folder-photographs-small+MobileNetV2+resnet8-resnet8-stkd-s0"
    teachers = json.loads((run / "config.json").read_text())["teachers"]
    trained = teachers.pop()["source"]
    assert keras.saving.load_model(trained).output_shape == (None, 2)
    assert teachers == [
        {
            "source": str(folder / "small.keras"),
            "weights": None,
            "normalization": None,
            "classes": str(folder / "names.txt"),
        },
        {
            "source": "keras.applications:MobileNetV2",
            "weights": str(folder / "w.weights.h5"),
            "normalization": None,
            "classes": None,
        },
    ]
    flags = [
        f"--teacher=small.keras,keras.applications:MobileNetV2,{trained}",
        "--teacher_weights=,w.weights.h5,",
        "--teacher_classes=names.txt,,",
    ]
    for more in ([], flags):
        scored = command("evaluate.py", f"--model={run}", *more, "--json", cwd=folder)
        printed = json.loads(scored.stdout)
        for name in ("teacher", "fidelity"):
            assert printed[name] == pytest.approx(metrics_of(run)[name], rel=1e-4), scored.stderr


def test_a_runs_teacher_is_scored_in_the_precision_that_it_taught_in(command, folder):
    flags = (*DATA, *QUICK, "--teacher=small.keras", "--teacher_classes=names.txt")
    trained = command(
        "train.py", *flags, "--teacher_dtype=bfloat16", "--run_dir=bfloat16", cwd=folder
    )
    assert trained.returncode == 0, trained.stderr
    expected = metrics_of(folder / "bfloat16")["teacher"]
    for more, is_same in (([], True), (flags[-2:], False)):
        scored = command("evaluate.py", "--model=bfloat16", *more, "--json", cwd=folder)
        teacher = json.loads(scored.stdout)["teacher"]
        assert (teacher == pytest.approx(expected, rel=1e-6)) is is_same, scored.stderr


def test_a_student_starts_from_a_checkpoint_that_normalises_its_own_way(command, folder):
    flags = (*QUICK, "--method=ce", "--learning_rate=1e-9", "--weight_decay=0", "--augment=none")
    completed = command(
        "train.py", *DATA, *flags, "--student_weights=resnet8.safetensors",
        "--student_normalization=0.5,0.5,0.5,0.25,0.25,0.25", "--run_dir=started", cwd=folder,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    # Only the moving statistics have moved.
    before = keras.saving.load_model(folder / "student.keras").trainable_weights
    after = keras.saving.load_model(folder / "started" / "student.keras")
    for a, b in zip(before, after.trainable_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    pixels = np.full((1, 32, 32, 3), 255, "float32")
    normalized = keras.Model(after.input, after.get_layer("normalization").output)(pixels)
    np.testing.assert_allclose(normalized, np.full(normalized.shape, 2.0), atol=1e-6)


def test_an_application_is_a_student_with_adamw_and_imagenets_is_found_in_kerass_cache(
    command, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    names = [f"class {number}" for number in range(1000)]
    names[285], names[207] = "cat", "dog"
    (tmp_path / "imagenet.txt").write_text("\n".join(names))
    (tmp_path / "models").mkdir()
    keras.applications.MobileNetV2(weights=None).save(tmp_path / "models" / CACHED)
    completed = command(
        "train.py", *DATA, *QUICK[1:], "--student=keras.applications:MobileNetV3Small",
        "--teacher=keras.applications:MobileNetV2", f"--teacher_classes={tmp_path}/imagenet.txt",
        "--optimizer=adamw", cwd=folder,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    run = folder / "runs" / "folder-photographs-MobileNetV2-MobileNetV3Small-stkd-s0"
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["weight_decay"]) == (0.001, 0.05)
    assert keras.saving.load_model(run / "student.keras").input_shape == (None, 32, 32, 3)


def test_without_a_network_imagenets_weights_are_missed_within_seconds(
    command, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    names = ["cat", "dog", *(f"class {number}" for number in range(998))]
    (tmp_path / "imagenet.txt").write_text("\n".join(names))
    completed = command(
        "train.py", *DATA, *QUICK, "--teacher=keras.applications:MobileNetV2",
        f"--teacher_classes={tmp_path}/imagenet.txt", "--run_dir=none", cwd=folder, timeout=60,
    )  # fmt: skip
    assert_one_line(completed, "--teacher_weights=FILE")
    assert str(tmp_path / "empty" / "models") in completed.stderr
    assert not (folder / "none").exists()


WRONG = {
    "other classes": ("train.py", ["--teacher=small.keras"], "--teacher_classes=FILE"),
    "a class that isn't in the file": (
        "train.py",
        ["--teacher=small.keras", "--teacher_classes=resnet8.txt"],
        "no line 'cat'",
    ),
    "imagenet's classes": (
        "train.py",
        ["--teacher=keras.applications:VGG16"],
        "1000 classes and the data 2",
    ),
    "fewer weights than teachers": (
        "train.py",
        ["--teacher=resnet8,resnet20", "--teacher_weights=resnet8.safetensors"],
        "is 1 files, but --teacher is 2 teachers",
    ),
    "a whole student and weights": (
        "train.py",
        ["--student=student.keras", "--student_weights=resnet8.safetensors"],
        "brings its own weights",
    ),
    "a fresh student's normalisation": (
        "train.py",
        ["--student_normalization=imagenet"],
        "goes with --student_weights",
    ),
    "an application's normalisation": (
        "evaluate.py",
        ["--model=keras.applications:MobileNetV2", "--weights=any.h5", "--normalization=imagenet"],
        "no file any.h5",
    ),
    "too small images": (
        "train.py",
        ["--student=keras.applications:InceptionV3"],
        "at least 75x75",
    ),
    "a student of another size": ("train.py", ["--student=small.keras"], "(None, 16, 16, 3)"),
    "unknown optimizer": ("train.py", ["--optimizer=adam"], "adamw"),
    "an application without weights": (
        "evaluate.py",
        ["--model=keras.applications:MobileNetV2"],
        "add --weights=FILE",
    ),
    "a teacher without weights": (
        "evaluate.py",
        ["--model=student.keras", "--teacher=resnet8,student.keras"],
        "add --teacher_weights=FILE",
    ),
}
QUICKLY = {"other classes", "fewer weights than teachers", "too small images"}


@pytest.mark.parametrize(
    "name", [n if n in QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in WRONG]
)
def test_what_does_not_fit_ends_with_one_line_before_anything_is_trained(name, command, folder):
    script, flags, named = WRONG[name]
    (folder / "resnet8.txt").write_text("dog\nrat\nhen\n")
    before = sorted(folder.iterdir())
    assert_one_line(command(script, *DATA, *flags, cwd=folder), named)
    assert sorted(folder.iterdir()) == before
