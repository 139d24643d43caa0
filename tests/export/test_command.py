"""evaluate.py --export, run as a user would, and the code of docs/export.md."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import keras
import networks
import numpy as np
import PIL.Image
import pytest

from stkd_keras import data, export


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


def test_the_code_of_docs_export_runs(photographs, repository, command, monkeypatch):
    line = blocks(repository, "bash")[0]
    completed = command(*shlex.split(line)[1:], cwd=photographs)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    assert "student_int8.tflite" in completed.stdout
    python = blocks(repository, "python")
    assert len(python) == 4
    monkeypatch.chdir(photographs)
    for block in python:
        if "import tensorflow" in block or "import keras" in block:
            exec(block, {})
            continue
        # The page says that these need nothing but the runtime.
        hidden = "import sys\nsys.modules.update(tensorflow=None, keras=None)\n"
        ran = subprocess.run(
            [sys.executable, "-c", hidden + block], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("noon "), ran.stdout


@pytest.mark.slow
def test_json_is_the_only_output_with_json(photographs, command):
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


# A file system of a limited size.
FULL_DISK = """
mkdir -p disk && mount -t tmpfs -o size={size} tmpfs disk || exit 77
{command}
echo $? > status
find disk -mindepth 1 > left
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["8k", "40k"])
def test_a_full_disk_ends_the_export_with_one_line_and_leaves_no_files(
    size, photographs, repository, tmp_path
):
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    flags = ["--model=runs/photographs", "--export=saved_model,litert,litert_int8,onnx"]
    parts = [sys.executable, repository / "evaluate.py", *flags, "--output_dir=disk"]
    line = " ".join(f"'{part}'" for part in parts) + " > output 2> errors"
    completed = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", FULL_DISK.format(size=size, command=line)],
        cwd=photographs, check=False, timeout=600,
    )  # fmt: skip
    if completed.returncode:
        pytest.skip("a file system can't be mounted here")
    errors = (photographs / "errors").read_text().splitlines()
    assert (photographs / "status").read_text() == "2\n"
    assert len(errors) == 1, errors
    assert "No space left on device" in errors[0]
    assert (photographs / "left").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "resnet56"])
def test_files_agree_with_the_student_on_cifar10(name, command, shared, tmp_path):
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
        "evaluate.py",
        *model,
        f"--export={','.join(export.FORMATS)}",
        "--json",
        cwd=tmp_path,
        timeout=1800,
    )
    assert completed.returncode == 0, completed.stderr
    content = json.loads(completed.stdout)
    assert content["images"] == 10_000
    for format_name, numbers in content["formats"].items():
        assert numbers["agreement"] >= (0.98 if format_name == "litert_int8" else 0.999)
        assert abs(numbers["accuracy"] - content["student"]["accuracy"]) < 0.01
    if name == "resnet56":
        assert abs(content["student"]["accuracy"] - 0.8946) <= 0.0005
