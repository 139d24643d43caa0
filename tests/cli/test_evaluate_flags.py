"""Flags of evaluate.py that need others, or exclude them."""

import json

import pytest
from commands import assert_one_line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks as if it had a model and a run."""
    folder = tmp_path_factory.mktemp("flags")
    (folder / "run").mkdir()
    (folder / "run" / "student.keras").touch()
    (folder / "run" / "config.json").write_text(json.dumps({"settings": {"dataset": "digits"}}))
    (folder / "a.keras").touch()
    return folder


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--model=a.keras --report", "add --report_file=PATH"),
        ("--model=a.keras --export=litert", "--export needs --output_dir=FOLDER"),
        ("--model=a.keras --output_dir=new", "--output_dir=new needs --export"),
        ("--model=run --compare=run", "--compare needs --report"),
        ("--model=run --report --compare=run,run", "has a run twice"),
        ("--model=run --report --compare=nowhere", "--compare=nowhere isn't the directory of a"),
        ("--model=run --report --report_file=no/report.html", "no/report.html"),
        ("--model=run --teacher=a.keras --export=litert", "--export doesn't use --teacher"),
        ("--model=a.keras --normalization=imagenet", "a.keras has its own normalization"),
        ("--model=a.keras --teacher=resnet8", "add --teacher_weights=FILE"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, named, commands, folder):
    before = sorted(folder.rglob("*"))
    assert_one_line(commands.run("evaluate.py", *flags.split(), cwd=folder), named)
    assert sorted(folder.rglob("*")) == before
