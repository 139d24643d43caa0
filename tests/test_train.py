"""train.py and evaluate.py, as a person types them."""

import csv
import json
import shutil
import subprocess
import sys
import time

import keras
import networks
import numpy as np
import pytest
from commands import assert_one_line

QUICK = ("--epochs=1", "--teacher_epochs=1")


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """A folder in which `python train.py` has run once."""
    folder = tmp_path_factory.mktemp("finished")
    completed = command("train.py", *QUICK, "--mixup_probability=0.5", cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return folder


def run_of(folder):
    return folder / "runs" / "digits-resnet20-resnet8-stkd-s0"


def test_a_run_leaves_what_it_promises(finished):
    run = run_of(finished)
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["mixup_probability"] == 0.5
    assert config["settings"]["temperature"] == 4.0
    assert config["versions"]["keras"] == keras.__version__
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"test", "train", "validation", "teacher", "fidelity"}
    assert set(metrics["test"]) == {"accuracy", "nll", "ece"}
    assert set(metrics["fidelity"]) == {"agreement", "kl"}
    assert 0 < metrics["test"]["accuracy"] < 1
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0"]
    assert {"loss", "soft_loss", "label_loss", "teacher_agreement", "val_accuracy"} <= set(rows[0])
    assert list((run / "backup").glob("step-*"))


def test_the_table_of_make_demo_has_a_row_for_each_method(finished, command):
    completed = command(
        "benchmarks/few_images.py",
        f"--run={run_of(finished)}",
        "--steps=2",
        "--seeds=1",
        cwd=finished,
    )
    assert completed.returncode == 0, completed.stderr
    rows = [line.split("|")[1].strip() for line in completed.stdout.splitlines()[-3:]]
    assert rows == ["ce", "kd", "stkd"]


def test_tensorboard_has_curves_learning_rate_and_the_panel(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tags(split):
        events = EventAccumulator(str(run_of(finished) / "tensorboard" / split))
        return events.Reload().Tags()

    train = tags("train")
    assert {"epoch_soft_loss", "epoch_label_loss", "epoch_teacher_agreement"} <= set(
        train["tensors"] + train["scalars"]
    )
    assert "epoch_learning_rate" in train["tensors"] + train["scalars"]
    assert "virtual_samples" in train["tensors"] + train["images"]
    validation = tags("validation")
    assert {"epoch_loss", "epoch_accuracy"} <= set(validation["tensors"] + validation["scalars"])


def test_the_student_is_a_plain_keras_model_that_scores_what_the_run_says(finished, repository):
    script = (
        "import sys, json, keras, numpy as np\n"
        "from sklearn.datasets import load_digits\n"
        "from sklearn.model_selection import train_test_split\n"
        "d = load_digits()\n"
        "x = np.rint(d.images[..., None] * 255 / 16).astype('float32')\n"
        "_, x, _, y = train_test_split(x, d.target, test_size=0.2, stratify=d.target,"
        " random_state=0)\n"
        "p = keras.saving.load_model(sys.argv[1]).predict(x, verbose=0)\n"
        "print(json.dumps(float((p.argmax(1) == y).mean())))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, run_of(finished) / "student.keras"],
        cwd=finished,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    metrics = json.loads((run_of(finished) / "metrics.json").read_text())
    np.testing.assert_allclose(
        json.loads(completed.stdout.splitlines()[-1]), metrics["test"]["accuracy"], atol=1e-6
    )


def test_evaluate_of_a_run_prints_its_metrics_as_json(finished, command):
    completed = command("evaluate.py", f"--model={run_of(finished)}", "--json", cwd=finished)
    printed = json.loads(completed.stdout)
    metrics = json.loads((run_of(finished) / "metrics.json").read_text())
    for name in ("test", "teacher", "fidelity"):
        for key, value in metrics[name].items():
            np.testing.assert_allclose(printed[name][key], value, rtol=1e-5)


def test_a_complete_run_is_kept_and_replaced_only_when_told(finished, command):
    before = (run_of(finished) / "metrics.json").read_bytes()
    again = command("train.py", *QUICK, "--mixup_probability=0.5", cwd=finished)
    assert_one_line(again, "holds a complete run")
    assert (run_of(finished) / "metrics.json").read_bytes() == before


def test_the_teacher_is_found_again_and_an_own_student_is_trained(finished, command, tmp_path):
    student = networks.convolutional_classifier()
    student.save(tmp_path / "own.keras")
    completed = command(
        "train.py",
        *QUICK,
        "--method=kd",
        f"--student={tmp_path / 'own.keras'}",
        f"--run_dir={tmp_path / 'run'}",
        cwd=finished,
    )
    assert completed.returncode == 0, completed.stderr
    assert "training the teacher" not in completed.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["mixing"] == "none"


@pytest.mark.slow
def test_two_logical_devices_train_a_student(finished, command, tmp_path):
    completed = command(
        "train.py",
        "--method=kd",
        "--epochs=5",
        "--teacher_epochs=1",
        "--distribute=mirrored",
        "--logical_devices=2",
        f"--run_dir={tmp_path / 'run'}",
        cwd=finished,
    )
    assert completed.returncode == 0, completed.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(config["device"]) == 2
    assert (
        json.loads((tmp_path / "run" / "metrics.json").read_text())["fidelity"]["agreement"] > 0.5
    )


def test_a_broken_config_is_named_in_one_line(finished, command, tmp_path):
    shutil.copytree(run_of(finished), tmp_path / "run")
    for content, named in (("[]", "holds a list"), ('{"settings": {}}', "doesn't say")):
        (tmp_path / "run" / "config.json").write_text(content)
        assert_one_line(command("evaluate.py", "--model=run", cwd=tmp_path), named)


WRONG = {
    "unknown flag": ("train.py", ["--epoch=3"], "epoch"),
    "flag of another kind": ("train.py", ["--epochs=three"], "three"),
    "argument": ("train.py", ["digits"], "unexpected argument 'digits'"),
    "unknown data set": ("train.py", ["--dataset=cifar11"], "cifar10"),
    "unknown teacher": ("train.py", ["--teacher=resnet21"], "resnet20"),
    "unknown student": ("train.py", ["--student=restnet8"], "resnet8"),
    "missing weights": ("train.py", ["--teacher_weights=no.safetensors"], "no.safetensors"),
    "temperature": ("train.py", ["--temperature=0", "--method=kd"], "temperature is 0"),
    "alpha": ("train.py", ["--mixup_alpha=-1"], "alpha is -1"),
    "weights both 0": ("train.py", ["--soft_weight=0", "--label_weight=0"], "both 0"),
    "batch too large": ("train.py", ["--batch_size=5000"], "5000"),
    "fraction": ("train.py", ["--train_fraction=2"], "train_fraction"),
    "learning rate": ("train.py", ["--learning_rate=-1", "--method=ce"], "learning rate is -1"),
    "seed": ("train.py", ["--seed=-1"], "seed"),
    "normalisation of a teacher trained here": (
        "train.py",
        ["--teacher_normalization=imagenet"],
        "goes with --teacher_weights",
    ),
    "uneven batch": (
        "train.py",
        ["--distribute=mirrored", "--logical_devices=2", "--batch_size=33"],
        "--batch_size is 33",
    ),
    "steps on several replicas": (
        "train.py",
        ["--distribute=mirrored", "--logical_devices=2", "--steps_per_execution=2"],
        "steps_per_execution is 2",
    ),
    "no cluster": ("train.py", ["--distribute=multi_worker"], "set TF_CONFIG"),
    "teacher weights without a teacher": (
        "evaluate.py",
        ["--model=no.keras", "--teacher_weights=t.keras"],
        "need --teacher",
    ),
    "no weights": ("evaluate.py", ["--model=resnet8"], "--weights"),
    "no model": ("evaluate.py", [], "--model is missing"),
    "no such file": ("evaluate.py", ["--model=no.keras"], "no.keras"),
    "no such run": ("evaluate.py", ["--model=runs/none"], "the directory of a complete run"),
}


# One of each kind; the others take another path only within the library, and are marked slow.
QUICKLY = {"unknown flag", "unknown data set", "missing weights", "temperature", "no weights"}


@pytest.mark.parametrize(
    "name", [n if n in QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in WRONG]
)
def test_a_wrong_command_ends_with_one_line_and_status_2(name, command, tmp_path):
    script, flags, named = WRONG[name]
    assert_one_line(command(script, *flags, cwd=tmp_path), named)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_student_for_other_classes_is_refused_before_the_teacher_is_trained(command, tmp_path):
    networks.convolutional_classifier(classes=7).save(tmp_path / "seven.keras")
    completed = command("train.py", "--student=seven.keras", cwd=tmp_path)
    assert_one_line(completed, "(None, 7)")
    assert [p.name for p in tmp_path.iterdir()] == ["seven.keras"]


@pytest.mark.slow
def test_weights_of_another_architecture_are_refused(command, shared, tmp_path):
    weights = shared / "weights" / "resnet56-cifar10.safetensors"
    completed = command(
        "evaluate.py",
        "--model=resnet20",
        f"--weights={weights}",
        "--dataset=cifar10",
        f"--data_dir={shared / 'data' / 'tfds'}",
        cwd=tmp_path,
    )
    assert_one_line(completed, "doesn't fit the model resnet20")


@pytest.mark.alone
def test_the_users_own_example_is_accepted_and_says_within_10_seconds_where_data_come_from(
    command, tmp_path
):
    start = time.monotonic()
    completed = command("train.py", "--dataset=cifar10", "--teacher=resnet110", cwd=tmp_path)
    assert time.monotonic() - start < 10
    assert_one_line(completed, "--data_dir")


def test_help_shows_the_commands_own_flags_only(command, tmp_path):
    completed = command("train.py", "--help", cwd=tmp_path)
    assert completed.returncode == 0
    assert "--mixup_alpha" in completed.stdout
    assert "--verbosity" not in completed.stdout
    assert "--pdb" not in completed.stdout
    assert completed.stderr == ""


@pytest.mark.slow
def test_the_trained_teacher_scores_what_pytorch_measured(command, shared, tmp_path):
    for file in ("resnet56-cifar10.safetensors", "resnet56-cifar10.pth"):
        if file.endswith("pth"):
            pytest.importorskip("torch")
        completed = command(
            "evaluate.py",
            "--model=resnet56",
            f"--weights={shared / 'weights' / file}",
            "--normalization=imagenet",
            "--dataset=cifar10",
            f"--data_dir={shared / 'data' / 'tfds'}",
            "--json",
            cwd=tmp_path,
        )
        accuracy = json.loads(completed.stdout)["test"]["accuracy"]
        assert abs(accuracy - 0.8946) <= 0.0005
