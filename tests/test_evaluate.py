"""evaluate.py scores runs and files, with and without teachers."""

import json
import pathlib
import re
import shutil

import keras
import networks
import pytest
from commands import assert_one_line
from image_folders import write_images
from reports import Page

EARLIER_RUN = pathlib.Path(__file__).parent / "support" / "saved_by_1f4727a" / "run"
KILLER = pathlib.Path(__file__).parent / "support" / "killed_train.py"
THREE = ("--teacher=three.keras", "--teacher_classes=names.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of cats and dogs, one of which is broken, and models for them."""
    folder = tmp_path_factory.mktemp("evaluate")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write_images(folder / "photos" / split / name, 8, size=(16, 16))
    (folder / "photos" / "test" / "dog" / "broken.png").write_text("not an image")
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier(2, (16, 16, 3)).save(folder / "small.keras")
    networks.convolutional_classifier(3, (8, 8, 3), softmax=True).save(folder / "three.keras")
    (folder / "names.txt").write_text("dog\nrat\ncat\n")
    return folder


@pytest.fixture(scope="module")
def evaluate(commands, folder):
    """Runs evaluate.py and returns the JSON that it printed, and standard error."""

    def run(*flags, cwd=folder):
        completed = commands.run("evaluate.py", *flags, "--json", cwd=cwd)
        assert completed.returncode == 0, completed.stderr
        return json.loads(completed.stdout), completed.stderr

    return run


@pytest.fixture(scope="module")
def finished(commands, folder):
    """The directory of a run with a teacher of other classes, in half precision."""
    completed = commands.run(
        "train.py", "--dataset=folder", "--data_dir=photos", "--skip_bad_images",
        "--student=small.keras", *THREE, "--teacher_dtype=bfloat16", "--epochs=1",
        "--batch_size=8", "--validation_fraction=0", "--run_dir=run", cwd=folder,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    return folder / "run"


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def assert_equal_scores(printed, expected, names=("test", "teacher", "fidelity"), rel=1e-5):
    for name in names:
        assert printed[name] == pytest.approx(expected[name], rel=rel), name


def test_a_run_is_evaluated_on_its_data_with_its_teacher(finished, evaluate):
    printed, notes = evaluate("--model=run")
    assert_equal_scores(printed, metrics_of(finished))
    assert "test/dog/broken.png" in notes


def test_another_memory_limit_changes_no_score(finished, evaluate):
    printed, _ = evaluate("--model=run", "--memory_limit=0")
    assert_equal_scores(printed, metrics_of(finished))


def test_a_teacher_given_by_flags_has_its_own_precision(finished, evaluate):
    printed, _ = evaluate("--model=run", *THREE)
    expected = metrics_of(finished)
    assert_equal_scores(printed, expected, ["test"])
    assert_equal_scores(printed, expected, ["teacher"], rel=0.05)
    assert printed["teacher"]["nll"] != pytest.approx(expected["teacher"]["nll"], rel=1e-6)


def test_a_run_whose_teacher_is_gone_is_evaluated_without_it(finished, evaluate, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = json.loads((finished / "config.json").read_text())
    config["teachers"][0]["source"] = "/nowhere/three.keras"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    printed, notes = evaluate("--model=run", cwd=tmp_path)
    assert set(printed) == {"test"}
    assert "which no longer exists: /nowhere/three.keras" in notes


def test_a_file_is_evaluated_on_data_given_by_flags(finished, evaluate):
    printed, _ = evaluate(
        f"--model={finished}/student.keras", "--dataset=folder", "--data_dir=photos",
        "--skip_bad_images",
    )  # fmt: skip
    assert_equal_scores(printed, metrics_of(finished), ["test"])
    assert set(printed) == {"test"}


def test_scores_are_printed_in_percent(commands, folder):
    completed = commands.run(
        "evaluate.py", "--model=small.keras", "--dataset=folder", "--data_dir=photos",
        "--skip_bad_images", cwd=folder,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    last = completed.stdout.splitlines()[-1]
    assert re.match(r"student \(test\): +accuracy \d+\.\d\d %, nll ", last)


def test_a_run_of_commit_1f4727a_still_evaluates(evaluate, tmp_path):
    printed, _ = evaluate(f"--model={EARLIER_RUN}", cwd=tmp_path)
    assert_equal_scores(printed, metrics_of(EARLIER_RUN), ["test"], rel=1e-4)


@pytest.fixture
def stopped(commands, folder, tmp_path):
    """Sends a signal to train.py at a moment of a run of three steps; returns its flags."""

    def run(name, moment, count):
        flags = (
            "--dataset=folder", f"--data_dir={folder}/photos", "--skip_bad_images", "--epochs=1",
            f"--student={folder}/small.keras", f"--teacher={folder}/three.keras", "--seed=1",
            f"--teacher_classes={folder}/names.txt", "--batch_size=5", "--learning_rate=0.001",
            "--validation_fraction=0", "--steps_per_execution=1", "--run_dir=run",
        )  # fmt: skip
        log = tmp_path / "log"
        completed = commands.run(str(KILLER), str(log), name, moment, str(count), *flags,
                                 cwd=tmp_path)  # fmt: skip
        assert completed.returncode not in (0, 2), completed
        return flags

    return run


def test_an_interrupted_run_has_the_student_of_its_last_step(stopped, evaluate, commands, tmp_path):
    flags = stopped("SIGTERM", "after a step", 3)
    assert not (tmp_path / "run" / "student.keras").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    flags_of_evaluate = ("--report", "--compare=copy", "--export=saved_model")
    printed, notes = evaluate("--model=run", *flags_of_evaluate, cwd=tmp_path)
    assert "run is unfinished: using the student of its checkpoint at step 3\n" in notes
    page = Page((tmp_path / "run" / "report.html").read_text())
    names = [model["name"] for model in page.numbers["models"] if model["role"] != "teacher"]
    assert names == ["small (unfinished, step 3)", "copy (unfinished, step 3)"]
    exported = json.loads((tmp_path / "run" / "export" / "export.json").read_text())
    assert "**Unfinished:**" in (tmp_path / "run" / "model_card.md").read_text()

    completed = commands.run("train.py", *flags, cwd=tmp_path)  # There are no more steps.
    assert completed.returncode == 0, completed.stderr
    assert_equal_scores(printed, metrics_of(tmp_path / "run"))
    assert exported["student"]["accuracy"] == pytest.approx(printed["test"]["accuracy"])
    assert "Unfinished" not in (tmp_path / "run" / "model_card.md").read_text()


def test_a_run_without_a_checkpoint_has_no_student(stopped, commands, tmp_path):
    stopped("SIGKILL", "before a backup's rename", 1)
    completed = commands.run("evaluate.py", "--model=run", cwd=tmp_path)
    assert_one_line(completed, "--model=run has no student.keras and no checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["resnet56-cifar10.safetensors", "resnet56-cifar10.pth"])
def test_a_pytorch_checkpoint_scores_what_pytorch_measured(file, evaluate, shared):
    if file.endswith("pth"):
        pytest.importorskip("torch")
    printed, _ = evaluate(
        "--model=resnet56", f"--weights={shared}/weights/{file}", "--normalization=imagenet",
        "--dataset=cifar10", f"--data_dir={shared}/data/tfds",
    )  # fmt: skip
    assert abs(printed["test"]["accuracy"] - 0.8946) <= 0.0005
