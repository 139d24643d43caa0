"""The code, commands, links and tables of README and docs are correct."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
import yaml
from documented import LANGUAGES, MARKS, blocks, inline_commands, pages, shell_commands
from PIL import Image

import models
from stkd_keras.evaluation.cost import file_bytes, multiply_adds, num_parameters
from stkd_keras.methods import METHODS

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BLOCKS = blocks(REPOSITORY)
README_LINES = 150
# The error of a command whose flags are correct but whose data set isn't on this machine.
NO_DATA = re.compile(r"data_dir|is broken or no archive")
# Files that the commands name. Empty files are enough for train.py's checks before loading.
PLACEHOLDERS = re.compile(r"[\w./-]+\.(?:keras|onnx|h5|pth|safetensors|txt|zip)")
SHELL_COMMANDS = {"cd", "export", "pip", "source", "tensorboard"}
# Seconds; guards against hanging only.
LIMIT = 900


def parametrize_blocks(language, mark_block=lambda number, block: ()):
    """Parametrizes a test over the blocks of a language that run as they are."""
    chosen = [
        b for b in BLOCKS if b.language == language and not b.mark.startswith(("not", "slow"))
    ]
    return pytest.mark.parametrize(
        "block",
        [pytest.param(b, marks=mark_block(n, b), id=b.name) for n, b in enumerate(chosen)],
    )


def trains(number, block):
    """Blocks that train run in make test-all, except for README's."""
    return pytest.mark.process if "fit(" in block.code and block.page != "README.md" else ()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a clone to the commands, and that they may write to."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("benchmarks", "configs", "evaluate.py", "Makefile", "models", "stkd_keras"):
        (folder / name).symlink_to(REPOSITORY / name)
    for file in (*REPOSITORY.glob("requirements*.txt"), *REPOSITORY.glob("*.py")):
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    make_photographs(folder)
    return folder


def make_photographs(folder):
    """Creates the folders of images that the pages name, with two classes."""
    rng = np.random.default_rng(0)
    for name in ("photographs", "DIR"):
        for split, count in (("train", 120), ("test", 4)):
            for label in ("cats", "dogs"):
                place = folder / name / split / label
                place.mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{number}.jpg")


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES


@parametrize_blocks("python", trains)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    skip_without_module(block)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "block"}
    with mock.patch.dict(METHODS), mock.patch.dict(keras.saving.get_custom_objects()):
        exec(compile(with_previous(block), block.name, "exec"), names)
        for name, value in names.items():
            if name.startswith("test_"):
                value()
    if block == next(b for b in BLOCKS if (b.page, b.language) == ("README.md", "python")):
        student = keras.saving.load_model("student.keras")
        assert type(student).__module__.startswith("keras.")
        assert student.output_shape == (None, 10)


@pytest.mark.slow
@parametrize_blocks("python")
def test_python_blocks_import_what_they_use(block, tmp_path):
    skip_without_module(block)
    run_alone(with_previous(block), tmp_path)


def with_previous(block):
    """Returns the block's code, after that of the blocks that it continues."""
    of_page = [b for b in BLOCKS if (b.page, b.language) == (block.page, block.language)]
    if block.mark == "continues":
        return with_previous(of_page[of_page.index(block) - 1]) + "\n" + block.code
    return block.code


def skip_without_module(block):
    if block.mark.startswith("needs "):
        pytest.importorskip(block.mark.removeprefix("needs "))


def run_alone(code, folder):
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]


@pytest.mark.process
@parametrize_blocks("bash", lambda number, block: pytest.mark.slow if number > 1 else ())
def test_quick_commands_run(block, commands, clone):
    for command in shell_commands(block.code):
        assert command[0] == "python", "mark a block with other commands as slow"
        completed = commands.run(*command[1:], cwd=clone)
        assert completed.returncode == 0, completed.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.mark.startswith("slow")}))
def test_slow_blocks_of_a_page_run_in_order(page, clone):
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    for block in BLOCKS:
        if block.page == page and block.mark.startswith("slow"):
            if block.language == "python":
                run_alone(block.code, clone)
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
def test_commands_that_are_not_run_have_correct_flags(commands, clone):
    for block in BLOCKS:
        if block.language == "bash" and block.mark.startswith("not run"):
            for command in shell_commands(block.code):
                check_command(command, commands, clone, block.name)


@pytest.mark.process
def test_commands_within_sentences_have_correct_flags(commands, clone):
    found = inline_commands(REPOSITORY)
    assert len(found) > 10
    for page, command in found:
        # In --method=NAME, NAME is a placeholder.
        command = [word for word in command if not re.fullmatch(r"--\w+=[A-Z]+", word)]
        check_command(command, commands, clone, page, dry_run=False)


@pytest.mark.process
def test_yaml_blocks_are_valid_and_their_commands_have_correct_flags(commands, clone):
    for block in BLOCKS:
        if block.language == "yaml":
            yaml.safe_load(block.code)
            for words in re.findall(r"command: \[(.*)\]", block.code):
                check_command(words.split(", "), commands, clone, block.name, dry_run=False)


def check_command(command, commands, clone, where, dry_run=True):
    """Checks a command's flags, and for train.py everything that it checks before loading data."""
    python = next((word for word in command if re.fullmatch(r"python[\d.]*", word)), None)
    if python is None:
        if command[0] == "make":
            subprocess.run(["make", "-n", *command[1:]], cwd=clone, check=True, capture_output=True)
        else:
            assert command[0] in SHELL_COMMANDS, (where, command)
        return
    # The words before python may be srun and its flags.
    _, script, *flags = command[command.index(python) :]
    if script == "-m":
        assert importlib.util.find_spec(flags[0]), (where, command)
        return
    assert (clone / script).is_file(), (where, command)
    if {"--help", "--helpfull"} & set(flags):
        return
    if not dry_run or script != "train.py" or "--distribute=multi_worker" in flags:
        completed = commands.run(script, "--only_check_args", *flags, cwd=clone)
        assert completed.returncode == 0, (where, completed.stderr)
        return
    flags = [flag.replace("$DATA_DIR", "data").replace("$WEIGHTS", "w.pth") for flag in flags]
    make_placeholders(clone, flags)
    completed = commands.run(script, "--dry_run", *flags, cwd=clone)
    if completed.returncode == 2 and "--dataset=folder" not in flags:
        assert NO_DATA.search(completed.stderr), (where, completed.stderr)
    else:
        assert completed.returncode == 0, (where, completed.stderr)


def make_placeholders(folder, flags):
    for flag in flags:
        for file in PLACEHOLDERS.findall(flag.partition("=")[2]):
            (folder / file).touch()


def test_python_that_is_not_run_compiles():
    for block in BLOCKS:
        if block.language == "python" and block.mark.startswith("not run"):
            compile(block.code, block.name, "exec")


def test_every_block_has_a_language_and_a_valid_mark():
    for block in BLOCKS:
        assert block.language in LANGUAGES, block.name
        if block.mark:
            kind, _, reason = block.mark.partition(":")
            assert kind.split(" ")[0] in MARKS or kind in MARKS, f"{block.name}: {block.mark}"
            assert reason.strip() or kind not in ("not run", "slow"), block.name
    fences = [
        line for page in pages(REPOSITORY) for line in page.read_text().splitlines()
        if line.lstrip().startswith("```")
    ]  # fmt: skip
    assert len(fences) == 2 * len(BLOCKS)


@pytest.mark.process
def test_the_page_of_flags_has_every_flag_and_no_other(commands, tmp_path):
    text = (REPOSITORY / "docs" / "train.md").read_text()
    terms = [line for line in text.splitlines() if line.startswith("`--")]
    flags = set()
    for script in ("train.py", "evaluate.py"):
        shown = commands.run(script, "--helpfull", cwd=tmp_path).stdout
        flags |= set(re.findall(r"^  --(?:\[no\])?(\w+):", shown, re.MULTILINE))
    assert len(flags) > 50
    assert set(re.findall(r"`--(\w+)`", "".join(terms))) == flags


def test_every_link_to_a_file_leads_there():
    for page in [*pages(REPOSITORY), REPOSITORY / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_nothing_refers_to_files_outside_of_the_repository():
    for page in [*pages(REPOSITORY), REPOSITORY / "CHANGELOG.md"]:
        assert "../shared" not in page.read_text(), page.name


@pytest.mark.parametrize(
    "name",
    [
        name if name == "resnet8" else pytest.param(name, marks=pytest.mark.slow)
        for name in models.available()
    ],
)
def test_the_table_of_the_zoo_matches_the_code(name):
    text = (REPOSITORY / "docs" / "zoo.md").read_text()
    table = re.search(r"<!-- table of the zoo -->\n(.*?)<!--", text, re.DOTALL)[1]
    rows = {re.search(r"`(\w+)`", row)[1]: row for row in table.splitlines()[2:] if row}
    assert list(rows) == models.available()
    model = models.build(name, input_shape=(32, 32, 3), num_classes=100)
    millions = f"{multiply_adds(model, (32, 32, 3)) / 1e6:,.1f} M"
    size = f"{file_bytes([model]) / 1e6:,.1f} MB"
    assert rows[name] == f"| `{name}` | {num_parameters(model):,} | {millions} | {size} |"
