"""Reads the directory of a run of train.py."""

import contextlib
import dataclasses
import os
import pathlib
import typing
from typing import Any

import keras

from models.loading import load_for
from models.teachers.sources import TeacherSource
from stkd_keras.data import Dataset
from stkd_keras.errors import InputError, one_line
from stkd_keras.files.json_files import read_json
from stkd_keras.teacher.member import DTYPES
from stkd_keras.training.checkpoints import newest_backup
from stkd_keras.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run: its student, data set and teachers.

    Attributes:
        student: the student's `.keras` file; before training, if the run is unfinished.
        dataset: the data set's name, as in `stkd_keras.data.load`.
        data_dir: the folder of its images, or None for TFDS's own.
        image_size: height and width in pixels that images were resized to, a number or a list of
            both; None if they weren't.
        resize: how they were resized; None for "crop".
        augment: the augmentation of the training images, as in `stkd_keras.data.pipeline`.
        skip_bad_images: whether unreadable images were left out.
        teachers: the teachers; empty for a run without any.
        teacher_dtype: the precision of the teachers, as in `FrozenTeacher`.
        unfinished: the run's directory if the run is unfinished, else None.
    """

    student: str
    dataset: str
    data_dir: str | None = None
    image_size: int | list | None = None
    resize: str | None = None
    augment: str | None = None
    skip_bad_images: bool | None = None
    teachers: tuple[TeacherSource, ...] = ()
    teacher_dtype: str | None = None
    unfinished: str | None = None


def read_run(folder: str | os.PathLike, flag: str = "folder") -> FinishedRun:
    """Reads the directory of a run, which is finished or has a checkpoint.

    Args:
        folder: the run's directory.
        flag: the flag or argument that error messages name.

    Raises:
        InputError: if it isn't the directory of a run with a student, if train.py didn't write its
            config.json, or if the data set is in a TFDS namespace, which would run its code.

    Example:

    ```python
    run = models.finished_runs.read_run("runs/digits-resnet20-resnet8-stkd-s0")
    dataset = stkd_keras.data.load(run.dataset, run.data_dir, image_size=run.image_size)
    student, _ = models.finished_runs.load_student(run, dataset)
    ```
    """
    files = RunDirectory(folder)
    config, is_finished = files.config, files.model.is_file()
    if not config.is_file():
        raise InputError(f"{flag}={folder} isn't the directory of a run: it has no {config.name}")
    if not is_finished and not (files.initial_model.is_file() and any(files.backup.glob("step-*"))):
        raise InputError(
            f"{flag}={folder} has no {files.model.name} and no checkpoint with a student: it was "
            "interrupted too early; run its command again to resume it"
        )
    content = read_json(config)
    settings = {**content.get("settings", {}), "data_dir": content.get("data_dir")}
    if "dataset" not in settings:
        raise InputError(
            f"{config} doesn't name the data set; expected a run of train.py: check the path"
        )
    kinds = typing.get_type_hints(FinishedRun)
    del kinds["student"], kinds["teachers"], kinds["unfinished"]
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
    return FinishedRun(
        str(files.model if is_finished else files.initial_model),
        teachers=_teachers(config, content),
        unfinished=None if is_finished else str(folder),
        **recorded,
    )


def load_student(run: FinishedRun, dataset: Dataset) -> tuple[keras.Model, int | None]:
    """Loads the student of a run.

    Args:
        run: the run.
        dataset: its data set.

    Returns:
        The student; and the step of its weights if the run is unfinished, else None.

    Raises:
        InputError: as in `models.load`, or if all checkpoints are damaged.
    """
    student = load_for(dataset, run.student)
    if run.unfinished is None:
        return student, None
    files = RunDirectory(run.unfinished)
    backup = newest_backup(files.backup, files.settings)
    if backup is None:
        raise InputError(f"{files.backup} has no checkpoint; run the command again to resume it")
    backup.restore_student(student)
    print(f"{files.path} is unfinished: using the student of its checkpoint at step {backup.step}")
    return student, backup.step


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
