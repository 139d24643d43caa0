"""Scores a classifier on the test split of a data set."""

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import contextlib
import dataclasses
import io
import json
import pathlib
import sys
import types
from typing import Any

from absl import flags

import models
from models.loading import is_whole_model, takes_normalization
from models.teachers import TeacherSource, load_teachers, parse_teachers
from stkd_keras import command, data, experiment, export
from stkd_keras.errors import InputError, one_line
from stkd_keras.run_directory import read_json

# What is taken from a run's config.json, and what it has to be.
RECORDED: dict[str, type | types.UnionType] = {
    "dataset": str,
    "data_dir": str | None,
    "image_size": int | None,
    "skip_bad_images": bool | None,
}

DESCRIPTION = """
python evaluate.py --model=runs/digits-resnet20-resnet8-stkd-s0

Prints accuracy, negative log-likelihood and expected calibration error (15 equal-width bins) on
the test split and, beside a teacher, how often the two agree and the KL divergence between them.

With --export it writes the model for other runtimes, and tries each file on the test split.
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
    recorded: dict[str, Any] = {}
    if pathlib.Path(source).is_dir():
        source, recorded = student_of_run(pathlib.Path(source))
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
    # --json promises JSON and nothing else there, and an error to be the only line of the other.
    notes = io.StringIO() if JSON.value else sys.stdout
    with contextlib.redirect_stdout(notes):
        sources = get_teachers(recorded) if folder is None else []
        dataset = load_dataset(recorded)
        student = models.load_for(dataset, source, WEIGHTS.value, NORMALIZATION.value)
        if folder is not None:
            result = experiment.export(student, dataset, formats, folder)
        else:
            teacher = load_teachers(dataset, sources)[0] if sources else None
            result = experiment.evaluate(student, teacher, dataset, {})
    if isinstance(notes, io.StringIO):
        print(notes.getvalue(), end="", file=sys.stderr)
    shown = experiment.format_metrics if folder is None else export.format_export
    print(json.dumps(result, indent=2) if JSON.value else shown(result))


def folder_of_export(model: str) -> pathlib.Path | None:
    """Where the files of --export go; None without it."""
    if EXPORT.value is None:
        if OUTPUT_DIR.value is not None:
            raise InputError(f"--output_dir={OUTPUT_DIR.value} is for the files of --export")
        return None
    if TEACHER.value is not None:
        raise InputError("--teacher isn't compared with in an --export; leave one of them out")
    if OUTPUT_DIR.value is not None:
        return pathlib.Path(OUTPUT_DIR.value)
    if not pathlib.Path(model).is_dir():
        raise InputError(
            f"--export of {model}, which is no run's directory, needs --output_dir=FOLDER"
        )
    return pathlib.Path(model) / "export"


def load_dataset(recorded: dict) -> data.Dataset:
    """The data set of the flags, or else of the run."""
    skip = SKIP_BAD_IMAGES.value
    dataset = data.load(
        DATASET.value or recorded.get("dataset", "digits"),
        DATA_DIR.value or recorded.get("data_dir"),
        image_size=IMAGE_SIZE.value or recorded.get("image_size"),
        memory_limit=command.bytes_of(MEMORY_LIMIT.value),
        skip_bad_images=bool(recorded.get("skip_bad_images") if skip is None else skip),
    )
    command.list_skipped(dataset.skipped)
    return dataset


def student_of_run(folder: pathlib.Path) -> tuple[str, dict]:
    """The student's file of a run's directory, and what the run says of data set and teachers."""
    student, config = folder / "student.keras", folder / "config.json"
    if not student.is_file() or not config.is_file():
        raise InputError(
            f"--model={folder} isn't the directory of a complete run: it has no "
            f"{student.name if config.is_file() else config.name}"
        )
    content = read_json(config)
    settings = {**content.get("settings", {}), "data_dir": content.get("data_dir")}
    if "dataset" not in settings:
        raise InputError(f"{config} doesn't say the data set; is it a run of train.py?")
    for key, kind in RECORDED.items():
        if not isinstance(settings.get(key), kind):
            raise InputError(
                f"{config} has {key} {settings.get(key)!r}, which train.py doesn't write: correct "
                "it, or name the model's file and the data set instead"
            )
    recorded = {key: settings.get(key) for key in RECORDED}
    name = settings["dataset"]
    if ":" in name.removeprefix("tfds:"):  # TFDS would run its code: that is for a user to say.
        raise InputError(
            f"{config} has the dataset {one_line(name)}, of a TFDS namespace, whose code would be "
            "run; name the model's file, and --dataset, if you trust it"
        )
    return str(student), {**recorded, "teachers": teachers_of_run(config, content)}


def teachers_of_run(config: pathlib.Path, content: dict) -> list[TeacherSource]:
    """The teachers that a run's config.json names."""
    recorded = content.get("teachers") or []
    sources = None
    with contextlib.suppress(TypeError):
        sources = [TeacherSource(**each) for each in recorded]
    if sources is None or not all(map(_is_as_written, sources)):
        raise InputError(
            f"{config} has the teachers {one_line(recorded)}, which train.py doesn't write: "
            "correct them, or name the model's file and the teachers instead"
        )
    return sources


def _is_as_written(source: TeacherSource) -> bool:
    texts = dataclasses.astuple(source)
    return texts[0] is not None and all(text is None or isinstance(text, str) for text in texts)


def get_teachers(recorded: dict) -> list[TeacherSource]:
    """The teachers of the flags, or else of the run; none where there are none."""
    sources: list[TeacherSource] = recorded.get("teachers", [])
    if TEACHER.value is not None:
        sources = parse_teachers(
            TEACHER.value, TEACHER_WEIGHTS.value, TEACHER_NORMALIZATION.value, TEACHER_CLASSES.value
        )
    else:
        for file in (file for source in sources for file in source.files):
            if not pathlib.Path(file).is_file():
                print(f"the run's teacher {file} isn't there any more; going on without")
                return []
    for source in sources:
        if not source.is_trained:
            raise InputError(
                f"--teacher={source.source} has no weights yet; add --teacher_weights=FILE"
            )
    return sources


if __name__ == "__main__":
    command.run(main, DESCRIPTION)
