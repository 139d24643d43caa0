"""Reads the directory of a finished run of train.py."""

import contextlib
import dataclasses
import os
import pathlib
import typing
from typing import Any

from models.teachers.sources import TeacherSource
from stkd_keras.errors import InputError, one_line
from stkd_keras.files.json_files import read_json
from stkd_keras.teacher.member import DTYPES
from stkd_keras.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A complete run: its student, data set and teachers.

    Attributes:
        student: the student's `.keras` file.
        dataset: the data set's name, as in `stkd_keras.data.load`.
        data_dir: the folder of its images, or None for TFDS's own.
        image_size: height and width in pixels that images were resized to; None if they weren't.
        skip_bad_images: whether unreadable images were left out.
        teachers: the teachers; empty for a run without any.
        teacher_dtype: the precision of the teachers, as in `FrozenTeacher`.
    """

    student: str
    dataset: str
    data_dir: str | None = None
    image_size: int | None = None
    skip_bad_images: bool | None = None
    teachers: tuple[TeacherSource, ...] = ()
    teacher_dtype: str | None = None


def read_run(folder: str | os.PathLike, flag: str = "folder") -> FinishedRun:
    """Reads the directory of a finished run.

    Args:
        folder: the run's directory.
        flag: the flag or argument that error messages name.

    Raises:
        InputError: if it isn't the directory of a complete run, if train.py didn't write its
            config.json, or if the data set is in a TFDS namespace, which would run its code.

    Example:

    ```python
    run = models.finished_runs.read_run("runs/digits-resnet20-resnet8-stkd-s0")
    dataset = stkd_keras.data.load(run.dataset, run.data_dir, image_size=run.image_size)
    student = models.load_for(dataset, run.student)
    ```
    """
    student, config = RunDirectory(folder).model, RunDirectory(folder).config
    if not student.is_file() or not config.is_file():
        raise InputError(
            f"{flag}={folder} isn't the directory of a complete run: it has no "
            f"{student.name if config.is_file() else config.name}"
        )
    content = read_json(config)
    settings = {**content.get("settings", {}), "data_dir": content.get("data_dir")}
    if "dataset" not in settings:
        raise InputError(
            f"{config} doesn't name the data set; expected a run of train.py: check the path"
        )
    kinds = typing.get_type_hints(FinishedRun)
    del kinds["student"], kinds["teachers"]
    recorded: dict[str, Any] = {key: settings.get(key) for key in kinds}
    for key, value in recorded.items():
        if not isinstance(value, kinds[key]) or (
            key == "teacher_dtype" and value not in (None, *DTYPES)
        ):
            raise InputError(
                f"{config} has {key} {one_line(value)}, which train.py doesn't write: "
                "correct it, or name the model's file and the data set instead"
            )
    name = recorded["dataset"]
    if ":" in name.removeprefix("tfds:"):  # TFDS would run its code: the user has to ask for it.
        raise InputError(
            f"{config} has the dataset {one_line(name)}, in a TFDS namespace, whose code would be "
            "run; name the model's file, and --dataset, if you trust it"
        )
    return FinishedRun(str(student), teachers=_teachers(config, content), **recorded)


def _teachers(config: pathlib.Path, content: dict[str, Any]) -> tuple[TeacherSource, ...]:
    recorded = content.get("teachers") or []
    sources = None
    with contextlib.suppress(TypeError):
        sources = tuple(TeacherSource(**each) for each in recorded)
    if sources is None or not all(map(_is_as_written, sources)):
        raise InputError(
            f"{config} has the teachers {one_line(recorded)}, which train.py doesn't write: "
            "correct them, or name the model's file and the teachers instead"
        )
    return sources


def _is_as_written(source: TeacherSource) -> bool:
    texts = dataclasses.astuple(source)
    return texts[0] is not None and all(text is None or isinstance(text, str) for text in texts)
