"""evaluate.py --report, run as a user would."""

import json
import shutil

import keras
import networks
import pytest
from reports import Page, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run on digits."""
    folder = tmp_path_factory.mktemp("reported")
    keras.utils.set_random_seed(0)
    config = {"teachers": [{"source": str(folder / "teacher.keras")}], "data": None}
    run = write_run(
        folder / "run", config, dataset="digits", student="resnet8", mixing="none",
        teacher_weights="9d" * 32,
    )  # fmt: skip
    networks.small_convolutional_classifier().save(run / "student.keras")
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    return folder


def test_a_run_gets_a_report_and_json_has_its_scores(command, folder):
    completed = command("evaluate.py", "--model=run", "--report", "--json", cwd=folder)
    assert completed.returncode == 0, completed.stderr
    printed = json.loads(completed.stdout)
    assert set(printed) == {"test", "teacher", "fidelity"}
    page = Page((folder / "run" / "report.html").read_text())
    assert [model["role"] for model in page.numbers["models"]] == ["student", "teacher"]
    assert page.numbers["models"][0]["accuracy"] == pytest.approx(printed["test"]["accuracy"])
    assert "this run did not mix images" in page.text
    assert "Accuracy and agreement by epoch" in page.text


@pytest.mark.slow
def test_a_file_is_compared_with_a_run(command, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    data = {
        "name": "digits", "version": "1.0.0", "image_shape": [8, 8, 1],
        "classes": [str(n) for n in range(10)],
    }  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "data": data}))
    completed = command(
        "evaluate.py", "--model=run/student.keras", "--dataset=digits", "--report",
        "--report_file=own.html", "--compare=run", cwd=tmp_path,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    numbers = Page((tmp_path / "own.html").read_text()).numbers
    assert [model["name"] for model in numbers["models"]] == ["student", "run"]
    assert numbers["models"][0]["accuracy"] == numbers["models"][1]["accuracy"]
