"""Tests of the flags, help and environment of both commands."""

import re

import pytest
from commands import assert_one_line

COMMON = {
    "train.py": [
        "dataset", "data_dir", "image_size", "teacher", "teacher_weights", "student", "method",
        "epochs", "run_dir", "dry_run",
    ],
    "evaluate.py": [
        "model", "weights", "normalization", "dataset", "data_dir", "teacher", "report", "compare",
        "export", "json",
    ],
}  # fmt: skip
GROUPS = {
    "train.py": ["data", "teacher", "student", "method", "training", "run", "devices", "advanced"],
    "evaluate.py": ["model", "teacher", "data", "output"],
}


def flags_in(text):
    return re.findall(r"^  --(?:\[no\])?(\w+):", text, re.MULTILINE)


@pytest.mark.parametrize("script", COMMON)
def test_help_shows_ten_common_flags(script, commands, tmp_path):
    completed = commands.run(script, "--help", cwd=tmp_path)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert f"python {script}" in completed.stdout
    assert flags_in(completed.stdout) == sorted(COMMON[script])
    assert "--helpfull" in completed.stdout


@pytest.mark.parametrize("script", COMMON)
def test_helpfull_shows_every_flag_once_in_its_group(script, commands, tmp_path):
    completed = commands.run(script, "--helpfull", cwd=tmp_path)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert re.findall(r"^(\w+):$", completed.stdout, re.MULTILINE) == GROUPS[script]
    shown = flags_in(completed.stdout)
    assert len(shown) == len(set(shown)) > len(COMMON[script])
    assert set(COMMON[script]) <= set(shown)
    assert not {"verbosity", "pdb", "on_nan"} & set(shown)
    for text in re.split(r"^  --[\w\[\]]+:", completed.stdout, flags=re.MULTILINE)[1:]:
        assert text.count("default:") <= 1, text
        words = re.sub(r"\s+", " ", text)
        assert not re.search(r"(.{30,}).*\1", words), f"says something twice: {words}"


def test_a_forked_command_prints_what_a_new_process_prints(commands, tmp_path):
    forked = commands.run("evaluate.py", "--batch_size=3", cwd=tmp_path)
    assert forked == commands.run_alone("evaluate.py", "--batch_size=3", cwd=tmp_path)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_another_backend_of_keras_is_refused(script, commands, tmp_path):
    completed = commands.run_alone(script, cwd=tmp_path, env={"KERAS_BACKEND": "jax"})
    assert_one_line(completed, "KERAS_BACKEND is 'jax'")


@pytest.mark.slow
def test_keras_json_and_a_missing_git_do_not_matter(commands, tmp_path):
    (tmp_path / "keras").mkdir()
    keras_json = '{"backend": "jax", "image_data_format": "channels_first"}'
    (tmp_path / "keras" / "keras.json").write_text(keras_json)
    completed = commands.run_alone(
        "train.py", "--method=ce", "--student=resnet8", "--epochs=1", "--run_dir=run",
        cwd=tmp_path, env={"KERAS_HOME": "keras", "PATH": "nowhere"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert '"git_commit": null' in (tmp_path / "run" / "config.json").read_text()
