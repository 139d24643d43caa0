"""Scores a classifier on the test split of a data set."""

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import contextlib
import io
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import keras
from absl import flags

import models
from models.finished_runs import FinishedRun, read_run
from models.loading import is_whole_model, takes_normalization
from models.teachers.loading import load_teachers
from models.teachers.sources import TeacherSource, parse_teachers
from stkd_keras import data, experiment, export
from stkd_keras.cli import app
from stkd_keras.errors import InputError, one_line
from stkd_keras.files.json_files import read_json
from stkd_keras.report import Student, check_report_file
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.run_directory import RunDirectory

DESCRIPTION = """
python evaluate.py --model=runs/digits-resnet20-resnet8-stkd-s0

Prints accuracy, negative log-likelihood and expected calibration error (15 equal-width bins) on
the test split and, beside a teacher, how often the two agree and the KL divergence between them.
With --report it writes all that and more into one HTML file; with --export it writes the model
for other runtimes, and tries each file on the test split.
"""

MODEL = flags.DEFINE_string(
    "model",
    None,
    "a run's directory, a .keras file, or a model of the zoo or keras.applications:NAME with "
    "--weights",
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "weights: .weights.h5 (of an application also .h5), or any other file, which is PyTorch's",
)
NORMALIZATION = flags.DEFINE_string(
    "normalization",
    None,
    "how the pixels of --weights were normalised: dataset (the default), imagenet, cifar10, "
    "cifar100, none, or six numbers (means, then standard deviations, in units of [0, 1])",
)
TEACHER = flags.DEFINE_string(
    "teacher",
    None,
    "what to compare with, as of train.py: .keras files, models of the zoo with --teacher_weights, "
    "or keras.applications:NAME",
)
TEACHER_WEIGHTS = flags.DEFINE_string("teacher_weights", None, "as of train.py")
TEACHER_NORMALIZATION = flags.DEFINE_string(
    "teacher_normalization", None, "as --normalization, of --teacher_weights"
)
TEACHER_CLASSES = flags.DEFINE_string(
    "teacher_classes", None, "a text file with the teacher's classes, as of train.py"
)
DATASET = flags.DEFINE_string(
    "dataset", None, f"data set: {', '.join(data.NAMES)} (default: the run's, or digits)"
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "as of train.py (default: the run's folder, or TFDS's own)"
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "as of train.py (default: the run's)", lower_bound=1
)
SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images", None, "leave out what can't be read (default: as the run did)"
)
MEMORY_LIMIT = flags.DEFINE_float(
    "memory_limit",
    data.DEFAULT_MEMORY_LIMIT / 1e9,
    "GB of decoded images; larger data sets are read while they are used",
)
EXPORT = flags.DEFINE_list(
    "export",
    None,
    f"formats to export to and to try on the test images, of {', '.join(export.FORMATS)}",
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "where the files of --export go (default: export/ in the run's directory)"
)
JSON = flags.DEFINE_bool("json", False, "print JSON, with fractions in place of percent")
REPORT = flags.DEFINE_bool(
    "report", False, "write an HTML file that stands alone, report.html in the run's directory"
)
REPORT_FILE = flags.DEFINE_string(
    "report_file", None, "the file of --report; needed where --model isn't a run's directory"
)
COMPARE = flags.DEFINE_list(
    "compare", None, "directories of other runs on the same data, to stand beside in the report"
)


def main() -> None:
    """Runs the command."""
    if MODEL.value is None:
        raise InputError("--model is missing: a run's directory, a .keras file or a zoo's name")
    teacher_flags = (TEACHER_WEIGHTS, TEACHER_NORMALIZATION, TEACHER_CLASSES)
    if TEACHER.value is None and any(flag.value for flag in teacher_flags):
        raise InputError(
            "--teacher_weights, --teacher_normalization and --teacher_classes need --teacher"
        )
    source: str = MODEL.value
    path = pathlib.Path(source)
    # Neither a model's name nor its file looks like the latter: a run is meant that isn't there.
    names_a_run = path.is_dir() or ("/" in source and not path.exists() and not path.suffix)
    run = read_run(source) if names_a_run else None
    if run is not None:
        source = run.student
    file, others = check_report_flags(MODEL.value, run is not None)
    models.check_source(source, weights=WEIGHTS.value)
    formats, folder = EXPORT.value or [], folder_of_export(MODEL.value)
    if WEIGHTS.value is None and not is_whole_model(source):  # Its answers would be noise.
        raise InputError(f"--model={source} has no weights yet; add --weights=FILE")
    if NORMALIZATION.value is not None and not takes_normalization(source, WEIGHTS.value):
        raise InputError(
            f"--normalization={NORMALIZATION.value} goes with --weights of a .weights.h5 or "
            f"PyTorch file for a model of the zoo; {source} brings its own, so leave it out"
        )
    if folder is not None:
        export.check_export(formats, folder)
    result: dict[str, Any] = {}
    # --json promises JSON and nothing else there, and an error to be the only line of the other.
    notes = io.StringIO() if JSON.value else sys.stdout
    with contextlib.redirect_stdout(notes):
        is_scored = file is not None or folder is None
        sources = get_teachers(run) if is_scored else []
        dataset = load_dataset(run)
        for other in others.values():
            check_same_data(other, dataset)
        student = models.load_for(dataset, source, WEIGHTS.value, NORMALIZATION.value)
        dtype = run.teacher_dtype if run is not None and TEACHER.value is None else None
        teacher = load_teachers(dataset, sources, dtype=dtype)[0] if sources else None
        if folder is not None:
            exported = experiment.export(student, dataset, formats, folder)
            print(export.format_export(exported))
            result = exported
        if is_scored:
            result = (
                experiment.evaluate(student, teacher, dataset, {})
                if file is None
                else write_report(MODEL.value, file, others, student, teacher, dataset, sources)
            )
            print(experiment.format_metrics(result))
    if isinstance(notes, io.StringIO):
        print(notes.getvalue(), end="", file=sys.stderr)
        print(json.dumps(result, indent=2))


def write_report(
    source: str,
    file: str,
    others: dict[str, pathlib.Path],
    student: keras.Model,
    teacher: FrozenTeacher | None,
    dataset: data.Dataset,
    sources: Sequence[TeacherSource],
) -> dict:
    """Writes the report; returns the scores.

    Args:
        source: the value of --model.
        file: where to.
        others: other runs' directories by their names.
        student: the model of --model.
        teacher: what it is compared with, or None.
        dataset: the data set.
        sources: where the teacher is.
    """
    is_run = pathlib.Path(source).is_dir()
    name, run = name_of_student(source, is_run), source if is_run else None
    students = [Student(name, student, run, folder_of_export(source))]
    for other, folder in others.items():
        loaded = models.load_for(dataset, str(RunDirectory(folder).model))
        students.append(Student(other, loaded, folder))
    teacher_name = " + ".join(short_name(source.name) for source in sources)
    metrics = experiment.report(file, students, teacher, dataset, teacher_name)
    print(f"report: {file}")
    return metrics


def folder_of_export(model: str) -> pathlib.Path | None:
    """Where the files of --export go; None without it."""
    if EXPORT.value is None:
        if OUTPUT_DIR.value is not None:
            raise InputError(f"--output_dir={OUTPUT_DIR.value} is for the files of --export")
        return None
    if TEACHER.value is not None and not REPORT.value:
        raise InputError(
            "--teacher isn't compared with in an --export: leave one of them out, or add --report"
        )
    if OUTPUT_DIR.value is not None:
        return pathlib.Path(OUTPUT_DIR.value)
    if not pathlib.Path(model).is_dir():
        raise InputError(
            f"--export of {model}, which is no run's directory, needs --output_dir=FOLDER"
        )
    return pathlib.Path(model) / "export"


def check_report_flags(model: str, is_run: bool) -> tuple[str | None, dict[str, pathlib.Path]]:
    """The report's file, if one is to be written, and the other runs' directories by their names.

    Args:
        model: the value of --model.
        is_run: whether that is a run's directory.
    """
    for flag in (REPORT_FILE, COMPARE):
        if flag.value and not REPORT.value:
            raise InputError(f"--{flag.name} is of the report; add --report, or leave it out")
    if not REPORT.value:
        return None, {}
    if REPORT_FILE.value is None and not is_run:
        raise InputError(
            f"--model={model} isn't a run's directory, so the report has no place; add "
            "--report_file=PATH"
        )
    file = REPORT_FILE.value or os.path.join(model, "report.html")
    check_report_file(file)
    folders = [pathlib.Path(folder) for folder in COMPARE.value or []]
    by_name = {
        folder.resolve().name if count_names(folders, folder) == 1 else str(folder): folder
        for folder in folders
    }
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise InputError("--compare has a run twice; name each once")
    for folder in folders:
        read_run(folder, "--compare")
    return file, by_name


def count_names(folders: list[pathlib.Path], folder: pathlib.Path) -> int:
    """How many of the folders are called as one of them."""
    return [each.resolve().name for each in folders].count(folder.resolve().name)


def check_same_data(folder: pathlib.Path, dataset: data.Dataset) -> None:
    """Refuses a run on other data than those that the report is on."""
    described = read_json(folder / "config.json").get("data")
    described = described if isinstance(described, dict) else {}
    expected = {
        "name": dataset.name,
        "version": dataset.version,
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.class_names),
    }
    for key, value in expected.items():
        if described.get(key) != value:
            raise InputError(
                f"--compare={folder} is a run on data with {key} {one_line(described.get(key))}, "
                f"expected {one_line(value)}, as of --model: leave it out"
            )


def name_of_student(model: str, is_run: bool) -> str:
    """What the report calls the student: the model's name, or its file or run.

    Args:
        model: the value of --model.
        is_run: whether that is a run's directory.
    """
    path = pathlib.Path(model)
    if not is_run:
        return short_name(model)
    name = read_json(path / "config.json").get("settings", {}).get("student")
    # A student that began as a file is known by a hash of what was in it.
    is_name = isinstance(name, str) and not re.fullmatch("[0-9a-f]{64}", name)
    return short_name(str(name)) if is_name else path.resolve().name


def short_name(source: str) -> str:
    """The name of a model, of its file without folders."""
    return pathlib.Path(source).stem if is_whole_model(source) else source


def load_dataset(run: FinishedRun | None) -> data.Dataset:
    """The data set of the flags, or else of the run."""
    run = run or FinishedRun(student="", dataset="digits")
    skip = SKIP_BAD_IMAGES.value
    dataset = data.load(
        DATASET.value or run.dataset,
        DATA_DIR.value or run.data_dir,
        image_size=IMAGE_SIZE.value or run.image_size,
        memory_limit=app.bytes_of(MEMORY_LIMIT.value),
        skip_bad_images=bool(run.skip_bad_images if skip is None else skip),
    )
    app.list_skipped(dataset.skipped)
    return dataset


def get_teachers(run: FinishedRun | None) -> Sequence[TeacherSource]:
    """The teachers of the flags, or else of the run; none where there are none."""
    sources: Sequence[TeacherSource] = run.teachers if run is not None else ()
    if TEACHER.value is not None:
        sources = parse_teachers(
            TEACHER.value, TEACHER_WEIGHTS.value, TEACHER_NORMALIZATION.value, TEACHER_CLASSES.value
        )
    else:
        for file in (file for source in sources for file in source.files):
            if not pathlib.Path(file).is_file():
                print(f"the run's teacher {file} isn't there any more; going on without")
                return ()
    for source in sources:
        if not source.is_trained:
            raise InputError(
                f"--teacher={source.source} has no weights yet; add --teacher_weights=FILE"
            )
    return sources


if __name__ == "__main__":
    app.run(main, DESCRIPTION)
