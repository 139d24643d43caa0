"""Parses the teachers that a command line names."""

import dataclasses
import os
import pathlib

from models import applications
from models.applications import is_application
from models.loading import (
    check_normalization,
    check_source,
    is_whole_model,
    takes_normalization,
)
from stkd_keras.errors import InputError
from stkd_keras.files.untrusted import read_text


@dataclasses.dataclass(frozen=True)
class TeacherSource:
    """Where a teacher is.

    Attributes:
        source: a `.keras` file, a model of the zoo, or one of keras.applications.
        weights: the file that fills it, or None: then a model of the zoo has yet to be trained,
            and an application gets the weights of ImageNet.
        normalization: how pixels are normalised for the weights of a model of the zoo, as in
            `stkd_keras.data.parse_normalization`; None for the data set's own.
        classes: a text file with the name of one class a line, in the teacher's order. None where
            they are the data set's, in its order.
    """

    source: str
    weights: str | None = None
    normalization: str | None = None
    classes: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the teacher is there already."""
        has_weights = is_whole_model(self.source) or self.weights is not None
        return has_weights or is_application(self.source)

    @property
    def name(self) -> str:
        """What it is called: its file, or the model's name."""
        return self.weights if self.weights and is_whole_model(self.weights) else self.source

    @property
    def files(self) -> list[str]:
        """The files that it needs."""
        source = self.source if is_whole_model(self.source) else None
        return [file for file in (source, self.weights, self.classes) if file is not None]


def parse_teachers(
    teacher: str,
    weights: str | None = None,
    normalization: str | None = None,
    classes: str | None = None,
) -> list[TeacherSource]:
    """Reads the flags --teacher, --teacher_weights, --teacher_normalization, --teacher_classes.

    Args:
        teacher: one or several, with commas between them.
        weights: as many files, with nothing between the commas for none. None: none at all.
        normalization: of all that are models of the zoo with weights.
        classes: one file for all, or as many as teachers.

    Returns:
        The teachers, with absolute paths, so that they are found from any folder.

    Raises:
        InputError: if their numbers differ, a name isn't known, a file is missing, or one flag
            doesn't go with another.
    """
    sources = teacher.split(",")
    weights_of_each = _as_many("--teacher_weights", weights, sources)
    classes_of_each = _as_many("--teacher_classes", classes, sources, one_for_all=True)
    if not any(map(takes_normalization, sources, weights_of_each)):
        check_normalization("teacher", normalization, sources[0], weights_of_each[0])
    return [
        _checked(source, file, normalization, names)
        for source, file, names in zip(sources, weights_of_each, classes_of_each, strict=True)
    ]


def read_class_names(file: str | pathlib.Path) -> list[str]:
    """Reads a text file with one class name a line.

    Args:
        file: UTF-8, with or without a byte order mark, of any system's line ends; blank lines at
            its end are left out.

    Raises:
        InputError: if it is missing or no such text, or if a line is blank or a name comes twice.
    """
    check_class_file(str(file))
    try:
        lines = read_text(file).split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} isn't UTF-8 text; expected one class name a line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InputError(f"{file} is blank at line {number}; expected one class name a line")
        if line in seen:
            raise InputError(
                f"{file} has {line!r} at the lines {seen[line]} and {number}; expected each of the "
                "teacher's classes once"
            )
        seen[line] = number
    if len(lines) < 2:
        raise InputError(f"{file} has {len(lines)} class names; expected all of the teacher's")
    return lines


def check_class_file(file: str) -> None:
    """Refuses a file of class names that isn't there.

    Raises:
        InputError: likewise.
    """
    if not pathlib.Path(file).is_file():
        raise InputError(f"no file {file}; expected the teacher's class names, check the path")


def slug(name: str) -> str:
    """Turns the name of a model, a model's file or a data set into a part of a path."""
    if is_whole_model(name):
        name = pathlib.Path(name).stem
    return name.removeprefix(applications.PREFIX).replace(":", "-").replace("/", "-")


def _as_many(
    flag: str, values: str | None, teachers: list[str], one_for_all: bool = False
) -> list[str | None]:
    """The values of a flag with commas in it, one for each teacher, None for an empty one."""
    if values is None:
        return [None] * len(teachers)
    parts = [part or None for part in values.split(",")]
    if one_for_all and len(parts) == 1:
        parts *= len(teachers)
    if len(parts) != len(teachers):
        raise InputError(
            f"{flag}={values} is {len(parts)} files, but --teacher is {len(teachers)} teachers; "
            f"expected {'one for all, or ' if one_for_all else ''}as many, with nothing between "
            "the commas for none"
        )
    return parts


def _checked(
    source: str, weights: str | None, normalization: str | None, classes: str | None
) -> TeacherSource:
    check_source(source, weights)
    if classes is not None:
        check_class_file(classes)
    teacher = TeacherSource(
        os.path.abspath(source) if is_whole_model(source) else source,
        weights and os.path.abspath(weights),
        normalization if takes_normalization(source, weights) else None,
        classes and os.path.abspath(classes),
    )
    if classes is not None and not teacher.is_trained:
        raise InputError(
            f"--teacher_classes={classes} names the classes of {source}, which has no weights and "
            "so is trained on the data's own; add --teacher_weights=FILE, or leave it out"
        )
    return teacher
