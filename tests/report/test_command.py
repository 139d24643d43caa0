"""evaluate.py --report, as a person types it."""

import json
import re

import pytest

RUN = (
    "--method=kd", "--teacher=resnet8", "--student=resnet8", "--epochs=1", "--teacher_epochs=1",
    "--replay=answers.replay", "--run_dir=run",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """A folder with a run whose teacher was replayed."""
    folder = tmp_path_factory.mktemp("reported")
    completed = command("train.py", *RUN, cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return folder


def test_a_run_gets_a_report_with_its_command_numbers_and_curves(command, folder):
    completed = command("evaluate.py", "--model=run", "--report", "--json", cwd=folder)
    assert completed.returncode == 0, completed.stderr
    printed = json.loads(completed.stdout)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    for name in ("test", "teacher", "fidelity"):
        assert printed[name] == pytest.approx(metrics[name], rel=1e-4)
    page = (folder / "run" / "report.html").read_text()
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', page)[1])
    assert [model["role"] for model in numbers["models"]] == ["student", "teacher"]
    assert numbers["models"][0]["accuracy"] == pytest.approx(metrics["test"]["accuracy"])
    assert numbers["temperature"] == 4.0
    assert "--replay=answers.replay" in page
    assert "this run mixed none" in page
    assert "Accuracy and agreement by epoch" in page
    assert "Trained for" in page


@pytest.mark.slow
def test_a_file_is_compared_with_a_run_where_the_user_says(command, folder):
    completed = command(
        "evaluate.py", "--model=run/student.keras", "--dataset=digits", "--report",
        "--report_file=own.html", "--compare=run", cwd=folder,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    page = (folder / "own.html").read_text()
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', page)[1])
    assert [model["name"] for model in numbers["models"]] == ["student", "run"]
    assert numbers["models"][0]["accuracy"] == numbers["models"][1]["accuracy"]
