"""Bad input ends with one line, status 2, no traceback, soon, and leaves the disk as it was."""

import pathlib
import re
import shlex
import shutil

import bad_flags
import bad_inputs
import keras
import networks
import numpy as np
import PIL.Image
import pytest
from forked_command import LIMIT, Completed, ForkedCommands
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models

CASES = [(kind, name) for kind, cases in bad_inputs.KINDS.items() for name in cases]


@pytest.fixture(scope="session")
def commands(repository, tmp_path_factory):
    """Runs commands in forks of one process."""
    forked = ForkedCommands(tmp_path_factory.mktemp("output"))
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def materials(commands, tmp_path_factory):
    """A folder of good data, models and a run, for the cases to spoil copies of."""
    folder = tmp_path_factory.mktemp("materials")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "photographs" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
                path = folder / "photographs" / split / name / f"{number}.png"
                PIL.Image.fromarray(pixels).save(path)
    (folder / "names.txt").write_text("dog\nrat\ncat\n")
    small = networks.small_convolutional_classifier
    small().save(folder / "digits.keras")
    small(3, (16, 16, 3)).save(folder / "small.keras")
    small(2, (32, 32, 3)).save(folder / "large.keras")
    two = small(2, (16, 16, 3))
    two.save(folder / "two.keras")
    with_relu = keras.layers.ReLU()(two.output)
    keras.Model(two.input, with_relu).save(folder / "relu.keras")
    keras.Model(two.input, [two.output, two.output], name="heads").save(folder / "heads.keras")
    two.layers[-1].kernel.assign(np.full_like(two.layers[-1].kernel, np.nan))
    two.save(folder / "nan.keras")
    models.save_pytorch(models.build("resnet8", (16, 16, 3), 2), folder / "two.safetensors")
    script, *flags = shlex.split(bad_inputs.RUN)
    completed = commands.run(script, *flags, cwd=folder, limit=120)
    assert completed.returncode == 0, completed.stderr
    return folder


def prepare(case: bad_inputs.Case, materials: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes the folder of a case."""
    for name in case.needs:
        source = materials / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    for make in case.make:
        make(folder)


def snapshot(folder: pathlib.Path) -> dict[str, tuple]:
    """What is in a folder: of every entry its kind, time, and content."""
    entries = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = str(path.readlink())
        else:
            content = path.read_bytes() if path.is_file() else ""
        entries[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return entries


def assert_refused(completed: Completed, names: str) -> None:
    """Holds what a command did against what is promised of bad input."""
    assert completed.returncode == 2, completed
    assert "Traceback" not in completed.stdout + completed.stderr, completed
    lines = completed.stderr.splitlines()
    assert len(lines) == 1, completed.stderr
    assert re.match(r"(train|evaluate)\.py: error: ", lines[0]), lines[0]
    assert names in lines[0], lines[0]
    assert len(lines[0]) < 1500, len(lines[0])
    assert completed.seconds < LIMIT


def try_case(case: bad_inputs.Case, run, materials: pathlib.Path, folder: pathlib.Path) -> None:
    """Runs a case's command in a folder of its own, and sees that it was refused."""
    prepare(case, materials, folder)
    before = snapshot(folder)
    script, *flags = shlex.split(case.command)
    assert_refused(run(script, *flags, cwd=folder, env=case.env), case.names)
    assert snapshot(folder) == before


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_bad_input_is_refused_in_one_line(kind, name, commands, materials, tmp_path):
    try_case(bad_inputs.KINDS[kind][name], commands.run, materials, tmp_path)


# A few of each kind, as a user's process, which imports TensorFlow itself.
ALONE = [
    (kind, name)
    for kind, cases in bad_inputs.KINDS.items()
    for name in [*cases][:: len(cases) // 3]
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), ALONE)
def test_a_process_of_its_own_refuses_it_too(kind, name, commands, materials, tmp_path):
    try_case(bad_inputs.KINDS[kind][name], commands.run_alone, materials, tmp_path)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_another_backend_of_keras_is_refused_before_anything_is_imported(
    script, commands, tmp_path
):
    completed = commands.run_alone(script, cwd=tmp_path, env={"KERAS_BACKEND": "jax"})
    assert_refused(completed, "KERAS_BACKEND is 'jax'")
    assert completed.seconds < 2


@pytest.mark.slow
def test_a_keras_json_for_something_else_and_no_git_do_not_matter(commands, tmp_path):
    (tmp_path / "keras").mkdir()
    keras_json = '{"backend": "jax", "image_data_format": "channels_first"}'
    (tmp_path / "keras" / "keras.json").write_text(keras_json)
    completed = commands.run_alone(
        "train.py", "--method=ce", "--student=resnet8", "--epochs=1", "--run_dir=run",
        cwd=tmp_path, env={"KERAS_HOME": "keras", "PATH": "nowhere"}, limit=90,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert '"git_commit": null' in (tmp_path / "run" / "config.json").read_text()


def test_the_list_has_what_is_promised():
    assert len(bad_inputs.KINDS) == 8
    for kind, cases in bad_inputs.KINDS.items():
        assert len(cases) >= 6, kind
        scripts = {case.command.split()[0] for case in cases.values()}
        assert scripts == {"train.py", "evaluate.py"}, kind


@pytest.mark.parametrize(
    "command",
    ["train.py --help", "train.py --epoch=3", "evaluate.py --model=photographs"],
)
def test_a_forked_command_says_what_a_process_of_its_own_says(
    command, commands, materials, tmp_path
):
    script, *flags = command.split()
    (tmp_path / "photographs").mkdir()
    forked = commands.run(script, *flags, cwd=tmp_path)
    alone = commands.run_alone(script, *flags, cwd=tmp_path, limit=60)
    assert forked[:3] == alone[:3]


def test_every_flag_of_train_has_bad_values(commands, tmp_path):
    shown = commands.run("train.py", "--help", cwd=tmp_path).stdout
    assert sorted(re.findall(r"^  --(\w+)$", shown, re.MULTILINE)) == sorted(bad_flags.VALUES)


@pytest.fixture(scope="module")
def folder_of_flags(tmp_path_factory):
    """A folder with what `bad_flags` counts on."""
    folder = tmp_path_factory.mktemp("flags")
    bad_flags.fill(folder)
    return folder


def without_spaces(text: str) -> str:
    """A text as far as it is the same when a command has brought it to one line."""
    return "".join(c if c.isprintable() else "?" for c in "".join(text.split()))


@given(data=st.data())
@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_bad_value_of_any_flag_is_refused_in_one_line(commands, folder_of_flags, data):
    flag = data.draw(st.sampled_from(sorted(bad_flags.VALUES)))
    value = data.draw(bad_flags.VALUES[flag])
    before = snapshot(folder_of_flags)
    others = bad_flags.BESIDE.get(flag, ())
    completed = commands.run("train.py", *others, f"--{flag}={value}", cwd=folder_of_flags)
    assert_refused(completed, "")
    line = completed.stderr
    name = bad_flags.NAMED_AS.get(flag, flag)
    # Of several teachers, or a model with options, the part that is wrong is named.
    parts = re.split("[,:]", value) if flag in ("teacher", "student") else []
    spellings = [name, value, repr(value), str(pathlib.Path(value)), *parts]
    assert any(without_spaces(each) in without_spaces(line) for each in spellings), line
    assert snapshot(folder_of_flags) == before
