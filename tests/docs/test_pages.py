"""README and docs are true: their code runs as it stands there, links and tables are right."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import yaml
from documented import LANGUAGES, MARKS, blocks, inline_commands, pages, shell_commands
from forked_command import ForkedCommands
from PIL import Image

import models
from models.__main__ import table_row

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BLOCKS = blocks(REPOSITORY)
# README's first screen of Python, which has a test of its own.
EXAMPLE = next(block for block in BLOCKS if (block.page, block.language) == ("README.md", "python"))
# What a command says when all its flags are right, and the data set isn't on this machine.
NO_DATA = re.compile(r"data_dir|is broken or no archive")
# What no clone has, made for the commands that name it; only train.py's own checks look at it.
PLACEHOLDERS = re.compile(r"[\w./-]+\.(?:keras|h5|pth|safetensors|txt|zip)")
# What a block may do beside the commands of the repository.
OF_THE_SHELL = {"cd", "export", "pip", "source", "tensorboard"}


def documented(language, kind):
    """The blocks of a language as parameters: which are "run" quickly, "slow", or "not run"."""
    of_kind = {"run": lambda mark: not mark.startswith(("slow", "not run"))}
    is_meant = of_kind.get(kind, lambda mark: mark.startswith(kind))
    chosen = [b for b in BLOCKS if b.language == language and is_meant(b.mark) and b != EXAMPLE]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.name)


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    commands = ForkedCommands(tmp_path_factory.mktemp("forked"))
    yield commands
    commands.close()


@pytest.fixture
def clone(repository, tmp_path):
    """A folder that commands find everything in as in a clone, and may write to."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("benchmarks", "models", "stkd_keras", "quiet_tensorflow.py", "train.py"):
        (folder / name).symlink_to(repository / name)
    requirements = (path.name for path in repository.glob("requirements*.txt"))
    for name in ("evaluate.py", "Makefile", *requirements):
        (folder / name).symlink_to(repository / name)
    shutil.copytree(repository / "docs", folder / "docs")
    return folder


def code_until(block):
    """A block's code, behind that of the blocks that it goes on after."""
    of_page = [b for b in BLOCKS if (b.page, b.language) == (block.page, block.language)]
    before = of_page[: of_page.index(block)]
    if block.mark == "goes on":
        return code_until(before[-1]) + "\n" + block.code
    return block.code


def skip_without_what_it_needs(block):
    if block.mark.startswith("needs "):
        pytest.importorskip(block.mark.removeprefix("needs "))


@pytest.mark.process
@documented("python", "run")
def test_python_runs_as_it_stands_there(block, forked, tmp_path):
    skip_without_what_it_needs(block)
    (tmp_path / "block.py").write_text(code_until(block))
    completed = forked.run(str(tmp_path / "block.py"), cwd=tmp_path, limit=120)
    assert completed.returncode == 0, completed.stderr[-3000:]


@pytest.mark.slow
@documented("python", "run")
def test_python_imports_all_that_it_needs(block, repository, tmp_path):
    skip_without_what_it_needs(block)
    run_alone(code_until(block), repository, tmp_path)


def run_alone(code, repository, folder):
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]


def test_the_example_of_fit_leaves_a_plain_keras_model(repository, tmp_path):
    run_alone(EXAMPLE.code, repository, tmp_path)
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert type(student) is keras.Sequential
    assert student.output_shape == (None, 10)


@pytest.mark.process
@documented("bash", "run")
def test_quick_commands_run_as_they_stand_there(block, forked, clone):
    for command in shell_commands(block.code):
        assert command[0] == "python", "mark a block that has other commands as slow"
        completed = forked.run(*command[1:], cwd=clone, limit=60)
        assert completed.returncode == 0, completed.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.mark.startswith("slow")}))
def test_the_slow_blocks_of_a_page_run_one_after_the_other(page, repository, clone):
    make_photographs(clone)
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    for block in BLOCKS:
        if block.page == page and block.mark.startswith("slow"):
            if block.language == "python":
                run_alone(block.code, repository, clone)
                continue
            completed = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code],
                cwd=clone,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert completed.returncode == 0, completed.stderr[-3000:]


@pytest.mark.process
@documented("bash", "not run")
def test_commands_that_are_not_run_are_right_as_far_as_can_be_seen(block, forked, clone):
    make_photographs(clone)
    for command in shell_commands(block.code):
        check_command(command, forked, clone)


@pytest.mark.process
def test_commands_within_sentences_have_right_flags(repository, forked, clone):
    found = inline_commands(repository)
    assert len(found) > 10
    for page, command in found:
        # --method=NAME stands for any name.
        command = [word for word in command if not re.fullmatch(r"--\w+=[A-Z]+", word)]
        check_command(command, forked, clone, dry_run=False, where=page)


def check_command(command, forked, clone, dry_run=True, where=""):
    """Has the command itself look at its flags, and train.py at all that comes before the data."""
    if python := next((w for w in command if re.fullmatch(r"python[\d.]*", w)), None):
        # It may stand behind srun.
        _, script, *flags = command[command.index(python) :]
        if script == "-m":
            assert (clone / flags[0].split(".")[0]).is_dir() or flags[0] in ("pip", "venv"), command
            return
        assert (clone / script).is_file(), f"{where}: {command}"
        if {"--help"} & set(flags):
            return
        if not dry_run or script != "train.py" or "--distribute=multi_worker" in flags:
            completed = forked.run(script, "--only_check_args", *flags, cwd=clone)
            assert completed.returncode == 0, f"{where}: {completed.stderr}"
            return
        make_placeholders(clone, flags)
        completed = forked.run(script, "--dry_run", *flags, cwd=clone, limit=60)
        if completed.returncode == 2 and "--dataset=folder" not in flags:
            assert NO_DATA.search(completed.stderr), completed.stderr
        else:
            assert completed.returncode == 0, completed.stderr
    elif command[0] == "make":
        subprocess.run(["make", "-n", *command[1:]], cwd=clone, check=True, capture_output=True)
    else:
        assert command[0] in OF_THE_SHELL, command


def make_photographs(folder):
    """The folder of images that README and docs name, with two classes."""
    rng = np.random.default_rng(0)
    for name in ("photographs", "DIR"):
        for split, count in (("train", 80), ("test", 4)):
            for label in ("cats", "dogs"):
                place = folder / name / split / label
                place.mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{number}.jpg")


def make_placeholders(folder, flags):
    for flag in flags:
        for file in PLACEHOLDERS.findall(flag.partition("=")[2]):
            path = folder / file
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()


def test_python_that_is_not_run_is_python():
    for block in BLOCKS:
        if block.language == "python" and not block.is_run:
            compile(block.code, block.name, "exec")


def test_yaml_is_yaml_and_its_command_has_right_flags(forked, clone):
    for block in BLOCKS:
        if block.language == "yaml":
            yaml.safe_load(block.code)
            for words in re.findall(r"command: \[(.*)\]", block.code):
                check_command(words.split(", "), forked, clone, dry_run=False)


def test_every_block_says_what_it_is_and_why_if_it_is_not_run():
    for block in BLOCKS:
        assert block.language in LANGUAGES, block.name
        if block.mark:
            kind, _, reason = block.mark.partition(":")
            assert kind.split(" ")[0] == "needs" or kind in MARKS, f"{block.name}: {block.mark}"
            assert reason.strip() or kind not in ("not run", "slow"), block.name
    # None is left out: each fence that opens is one of them.
    fences = [
        line for page in pages(REPOSITORY) for line in page.read_text().splitlines()
        if line.lstrip().startswith("```")
    ]  # fmt: skip
    assert len(fences) == 2 * len(BLOCKS)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_every_flag_has_a_word_in_readme_or_docs(repository, script):
    text = "".join(file.read_text() for file in pages(repository))
    flags = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (repository / script).read_text())
    assert len(flags) > 5
    assert [flag for flag in flags if f"--{flag}`" not in text and f"--{flag}=" not in text] == []


def test_every_link_to_a_file_leads_there(repository):
    for page in pages(repository):
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text()):
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
