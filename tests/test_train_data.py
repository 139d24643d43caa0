"""train.py on a user's data: folders, archives, other data sets of TFDS, images without labels."""

import json
import shutil
import subprocess
import sys

import pytest
from commands import assert_one_line
from image_folders import CINIC_CLASSES, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

QUICK = ("--method=ce", "--student=resnet8", "--epochs=1", "--batch_size=8", "--run_dir=run")


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes, with pictures of all kinds in train and plain ones in test."""
    for name in ("cat", "dog"):
        kinds = [("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "jpg")]
        for seed, (mode, ending) in enumerate(kinds):
            folder = tmp_path / "photographs" / "train" / name
            write_images(folder, 3, seed, mode, ending, size=(10 + 7 * seed, 25))
        write_images(tmp_path / "photographs" / "test" / name, 4)
    return tmp_path / "photographs"


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_a_folder_of_photographs_trains_and_is_scored_again(command, photographs, tmp_path):
    flags = ("--dataset=folder", "--data_dir=photographs", "--image_size=16")
    completed = command("train.py", *flags, *QUICK, "--validation_fraction=0.2", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    described = config_of(tmp_path / "run")["data"]
    assert described["classes"] == ["cat", "dog"]
    assert described["image_shape"] == [16, 16, 3]
    assert described["images"] == {"train": 24, "validation": 6, "test": 8}
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "train")).Reload()
    text = events.Tensors("dataset")[0].tensor_proto.string_val[0].decode()
    assert "| classes | ['cat', 'dog'] |" in text
    scored = command("evaluate.py", "--model=run", "--json", cwd=tmp_path)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert json.loads(scored.stdout)["test"] == pytest.approx(metrics["test"], rel=1e-5)


@pytest.mark.slow
def test_what_cannot_be_read_is_named_or_left_out_and_listed(command, photographs, tmp_path):
    whole = (photographs / "train" / "cat" / "0-0.jpg").read_bytes()
    (photographs / "train" / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photographs / "test" / "dog" / "notes.txt").write_text("not an image")
    flags = ("--dataset=folder", "--data_dir=photographs", "--image_size=16", *QUICK)
    refused = command("train.py", *flags, cwd=tmp_path)
    assert_one_line(refused, "train/cat/cut.jpg")
    assert "skip_bad_images" in refused.stderr
    assert not (tmp_path / "run").exists()
    completed = command("train.py", *flags, "--skip_bad_images", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    for name in ("train/cat/cut.jpg", "test/dog/notes.txt"):
        assert name in completed.stdout
        assert any(name in line for line in config_of(tmp_path / "run")["data"]["skipped"])
    assert config_of(tmp_path / "run")["data"]["images"]["test"] == 8
    scored = command("evaluate.py", "--model=run", "--memory_limit=0", "--json", cwd=tmp_path)
    assert json.loads(scored.stdout)["test"]["accuracy"] >= 0
    assert "test/dog/notes.txt" in scored.stderr


def test_images_without_labels_join_the_others(command, photographs, tmp_path):
    write_images(tmp_path / "more" / "deep", 9, ending="webp")
    write_images(tmp_path / "more", 2)
    # Fewer images than the recipes' batches have, the teacher's too.
    completed = command(
        "train.py", "--dataset=folder", "--data_dir=photographs", "--image_size=16",
        "--teacher=resnet8", "--teacher_epochs=1", "--student=resnet8", "--epochs=1",
        "--unlabeled_dir=more", "--train_images_per_class=5", "--validation_fraction=0",
        "--run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert "retracing" not in completed.stderr
    counts = config_of(tmp_path / "run")["data"]["images"]
    assert counts == {"train": 10, "unlabeled": 11, "test": 8}


def test_cinic10_in_its_official_layout_trains(command, tmp_path):
    for split in ("train", "valid", "test"):
        for name in CINIC_CLASSES:
            write_images(tmp_path / "CINIC-10" / split / name, 3, size=(32, 32))
    flags = ("--dataset=cinic10", "--data_dir=CINIC-10", *QUICK)
    completed = command("train.py", *flags, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    described = config_of(tmp_path / "run")["data"]
    assert described["images"] == {"train": 30, "validation": 30, "test": 30}
    assert described["classes"] == CINIC_CLASSES


def test_cifar100_through_tfds_mock_trains(repository, tmp_path):
    program = (
        "import runpy, sys\n"
        "import tensorflow_datasets as tfds\n"
        "sys.argv[0] = sys.argv[1]; del sys.argv[1]\n"
        "sys.path.insert(0, sys.argv[0].removesuffix('/train.py'))\n"
        "with tfds.testing.mock_data(num_examples=200):\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    flags = ["--dataset=cifar100", *QUICK[:3], "--run_dir=run"]
    completed = subprocess.run(
        [sys.executable, "-c", program, str(repository / "train.py"), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["test"]) == {"accuracy", "top5_accuracy", "nll", "ece"}
    assert len(config_of(tmp_path / "run")["data"]["classes"]) == 100


WRONG = {
    "a folder without test": (["--data_dir=empty"], "no folder train"),
    "no data_dir": ([], "--data_dir"),
    "no such folder": (["--data_dir=nowhere"], "nowhere"),
    "an unlabelled folder that isn't there": (
        ["--data_dir=photographs", "--image_size=8", "--unlabeled_dir=nowhere", "--method=kd"],
        "nowhere",
    ),
    "sizes that differ": (["--data_dir=photographs"], "image_size"),
    "a limit that is no number": (["--data_dir=photographs", "--memory_limit=nan"], "nan"),
    "images without labels and without a teacher": (
        ["--data_dir=photographs", "--image_size=8", "--unlabeled_dir=photographs"],
        "needs a teacher",
    ),
    "too many images a class": (
        ["--data_dir=photographs", "--image_size=8", "--train_images_per_class=50"],
        "images_per_class=50",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_end_with_one_line_and_status_2(name, command, photographs, tmp_path):
    flags, named = WRONG[name]
    (tmp_path / "empty").mkdir()
    assert_one_line(command("train.py", "--dataset=folder", *QUICK, *flags, cwd=tmp_path), named)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("unpacked", [False, True])
def test_the_real_subset_of_tiny_imagenet_trains(command, shared, tmp_path, unpacked):
    source = shared / "data" / "tiny-imagenet-200-subset.zip"
    if unpacked:
        shutil.unpack_archive(source, tmp_path / "unpacked")
        source = tmp_path / "unpacked"
    completed = command(
        "train.py", "--dataset=tiny_imagenet", f"--data_dir={source}", "--method=ce",
        "--student=resnet8", "--epochs=2", "--run_dir=run", cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    described = config_of(tmp_path / "run")["data"]
    assert described["images"] == {"train": 10_800, "validation": 1_200, "test": 4_000}
    assert len(set(described["classes"])) == 200
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    # Twice what guessing gives.
    assert metrics["test"]["top5_accuracy"] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4.0, 0.05])
def test_peak_memory_is_the_images_or_the_limit_and_at_most_1_5_gb(
    repository, shared, tmp_path, limit
):
    flags = ["--dataset=cifar10", f"--data_dir={shared / 'data' / 'tfds'}", "--method=ce"]
    flags += ["--student=resnet8", "--epochs=1", f"--memory_limit={limit}"]
    # From a small process in between: a new one inherits the peak of the one that starts it.
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = [
        sys.executable,
        str(repository / "train.py"),
        *flags,
        f"--run_dir={tmp_path / 'run'}",
    ]
    peak = subprocess.check_output([sys.executable, "-c", program, *command])
    images = min(60_000 * 32 * 32 * 3, limit * 1e9)
    assert int(peak) * 1024 <= images + 1.5e9
