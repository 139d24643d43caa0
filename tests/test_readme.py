"""README's own code runs, as it stands there."""

import os
import re
import subprocess
import sys

import keras
import pytest

import models
from models.__main__ import table_row


def test_the_example_of_fit_runs_and_leaves_a_plain_keras_model(repository, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run(
            [sys.executable, "-c", block],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(repository)},
            check=True,
            capture_output=True,
            timeout=120,
        )
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert type(student) is keras.Sequential
    assert student.output_shape == (None, 10)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_every_flag_has_a_word_in_readme_or_docs(repository, script):
    texts = [repository / "README.md", *(repository / "docs").rglob("*.md")]
    text = "".join(file.read_text() for file in texts)
    flags = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (repository / script).read_text())
    assert len(flags) > 5
    assert [flag for flag in flags if f"--{flag}`" not in text and f"--{flag}=" not in text] == []


def test_every_link_to_a_file_leads_there(repository):
    for page in [repository / "README.md", *(repository / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def zoo_rows(repository):
    table = re.search(
        r"<!-- python -m models -->\n(.*?)<!--", (repository / "README.md").read_text(), re.DOTALL
    )
    return {re.search(r"`(\w+)`", row)[1]: row for row in table[1].splitlines()[2:] if row}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("resnet8", "mobilenet_v2", "shufflenet_v1")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in models.available()
    ],
)
def test_readmes_table_of_the_zoo_is_what_the_code_says(name, repository):
    rows = zoo_rows(repository)
    assert list(rows) == models.available()
    assert table_row(name) == rows[name]
