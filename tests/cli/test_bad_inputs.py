"""Bad input ends with one line and status 2, and leaves the disk as it was."""

import pathlib
import re
import shlex
import shutil

import bad_flags
import bad_inputs
import keras
import networks
import numpy as np
import pytest
from commands import assert_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_folders import write_images

CASES = [(kind, name) for kind, cases in bad_inputs.KINDS.items() for name in cases]


@pytest.fixture(scope="module")
def materials(commands, tmp_path_factory):
    """A folder of valid data, models and a run, which the cases copy from."""
    folder = tmp_path_factory.mktemp("materials")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write_images(folder / "photos" / split / name, 4, size=(16, 16))
            for path in (folder / "photos" / split / name).iterdir():
                path.rename(path.with_name(path.name.removeprefix("0-")))
    small = networks.small_convolutional_classifier
    small().save(folder / "digits.keras")
    small(3, (16, 16, 3)).save(folder / "three.keras")
    two = small(2, (16, 16, 3))
    two.save(folder / "two.keras")
    keras.Model(two.input, keras.layers.ReLU()(two.output)).save(folder / "relu.keras")
    two.layers[-1].kernel.assign(np.full_like(two.layers[-1].kernel, np.nan))
    two.save(folder / "nan.keras")
    completed = commands.run(*shlex.split(bad_inputs.RUN), cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return folder


def prepare(case: bad_inputs.Case, materials: pathlib.Path, folder: pathlib.Path) -> None:
    for name in case.needs:
        source = materials / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    for make in case.make:
        make(folder)


def snapshot(folder: pathlib.Path) -> dict[str, object]:
    """The content of each file in a folder, and its time of modification."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


def try_case(case: bad_inputs.Case, run, materials: pathlib.Path, folder: pathlib.Path) -> None:
    prepare(case, materials, folder)
    before = snapshot(folder)
    assert_one_line(run(*shlex.split(case.command), cwd=folder, env=case.env), case.names)
    assert snapshot(folder) == before


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_bad_input_is_refused_in_one_line(kind, name, commands, materials, tmp_path):
    try_case(bad_inputs.KINDS[kind][name], commands.run, materials, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", bad_inputs.KINDS)
def test_a_new_process_refuses_it_too(kind, commands, materials, tmp_path):
    for name, case in bad_inputs.KINDS[kind].items():
        (tmp_path / name).mkdir()
        try_case(case, commands.run_alone, materials, tmp_path / name)


@pytest.mark.parametrize("kind", bad_inputs.KINDS)
def test_each_kind_is_tried_on_both_commands(kind):
    scripts = {case.command.split()[0] for case in bad_inputs.KINDS[kind].values()}
    assert scripts == {"train.py", "evaluate.py"}


def test_every_flag_of_train_has_bad_values(commands, tmp_path):
    shown = commands.run("train.py", "--helpfull", cwd=tmp_path).stdout
    flags = re.findall(r"^  --(?:\[no\])?(\w+):", shown, re.MULTILINE)
    assert sorted(flags) == sorted(bad_flags.VALUES)


@pytest.fixture(scope="module")
def folder_of_flags(tmp_path_factory):
    """A folder with the files that `bad_flags` refers to."""
    folder = tmp_path_factory.mktemp("flags")
    bad_flags.fill(folder)
    return folder


def without_spaces(text: str) -> str:
    """Removes what differs once a command has printed a text on one line."""
    return "".join(c if c.isprintable() else "?" for c in "".join(text.split()))


@given(data=st.data())
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_bad_value_of_any_flag_is_refused_in_one_line(commands, folder_of_flags, data):
    flag = data.draw(st.sampled_from(sorted(bad_flags.VALUES)))
    value = data.draw(bad_flags.VALUES[flag])
    before = snapshot(folder_of_flags)
    others = bad_flags.REQUIRED.get(flag, ())
    completed = commands.run("train.py", *others, f"--{flag}={value}", cwd=folder_of_flags)
    assert_one_line(completed, "train.py: error: ")
    name = bad_flags.ARGUMENT_NAMES.get(flag, flag)
    # Of several teachers, or a model with options, the message names the wrong part.
    parts = re.split("[,:]", value) if flag in ("teacher", "student") else []
    spellings = [name, value, repr(value), str(pathlib.Path(value)), *parts]
    line = completed.stderr
    assert any(without_spaces(each) in without_spaces(line) for each in spellings), line
    assert snapshot(folder_of_flags) == before
