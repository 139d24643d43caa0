"""Parses the flags that name teachers."""

import dataclasses
import os
import pathlib

from models import applications
from models.applications import is_application
from models.loading import (
    check_normalization,
    check_source,
    is_onnx,
    is_pretrained,
    is_whole_model,
    takes_normalization,
)
from models.weights import imagenet
from stkd_keras.errors import InputError, explain_errors
from stkd_keras.files.untrusted import read_text


@dataclasses.dataclass(frozen=True)
class TeacherSource:
    """The model and the files of a teacher.

    Attributes:
        source: a `.keras` or `.onnx` file, a model of the zoo, or one of keras.applications.
        weights: the file with its weights, or "imagenet". None: a model of the zoo has yet to be
            trained, and an application gets ImageNet's weights.
        normalization: how pixels are normalized for an ONNX file, or for the weights of a model of
            the zoo, as in `stkd_keras.data.parse_normalization`; None for the data set's own, and
            none at all for an ONNX file.
        classes: a text file with one class name per line, in the teacher's order. None if the
            classes are the data set's, in its order.
        outputs: "logits" or "probabilities", or None to detect which of them it returns.
    """

    source: str
    weights: str | None = None
    normalization: str | None = None
    classes: str | None = None
    outputs: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the teacher has weights."""
        has_weights = _is_model_file(self.source) or self.weights is not None
        return has_weights or is_application(self.source)

    @property
    def is_pretrained(self) -> bool:
        """Whether the teacher has ImageNet's weights."""
        without_file = self.weights is None and is_application(self.source)
        return without_file or is_pretrained(self.source, self.weights)

    def has_to_be_trained(self, num_classes: int | None = None) -> bool:
        """Whether the teacher must first be trained or fine-tuned on the data.

        `num_classes` is the data's; without it, whether that may be the case.
        """
        is_finetuned = self.is_pretrained and self.classes is None
        return not self.is_trained or (is_finetuned and num_classes != imagenet.NUM_CLASSES)

    @property
    def weights_to_train(self) -> str | None:
        """The weights that its training starts from: "imagenet", or None for fresh ones."""
        return imagenet.WEIGHTS if self.is_pretrained else None

    @property
    def name(self) -> str:
        """The model's name, or its file."""
        return self.weights if self.weights and is_whole_model(self.weights) else self.source

    @property
    def files(self) -> list[str]:
        """The files that the teacher needs."""
        source = self.source if _is_model_file(self.source) else None
        weights = None if self.is_pretrained else self.weights
        return [file for file in (source, weights, self.classes) if file is not None]


def parse_teachers(
    teacher: str,
    weights: str | None = None,
    normalization: str | None = None,
    classes: str | None = None,
    outputs: str | None = None,
) -> list[TeacherSource]:
    """Parses the flags --teacher, --teacher_weights, and so on.

    Args:
        teacher: one or several sources, separated by commas.
        weights: one file per teacher, or "imagenet", separated by commas, empty for none; None for
            none at all.
        normalization: applies to all ONNX files, and models of the zoo with weights.
        classes: one file for all teachers, or one per teacher.
        outputs: as in `TeacherSource`, for all teachers.

    Returns:
        The teachers, with absolute paths.

    Raises:
        InputError: if the numbers of values differ, a name is unknown, a file is missing, or the
            values contradict each other.
    """
    sources = teacher.split(",")
    weights_of_each = _per_teacher("--teacher_weights", weights, sources)
    classes_of_each = _per_teacher("--teacher_classes", classes, sources, one_for_all=True)
    if not any(map(takes_normalization, sources, weights_of_each)):
        check_normalization(normalization, sources[0], weights_of_each[0], prefix="teacher_")
    return [
        _checked(TeacherSource(source, file, normalization, names, outputs))
        for source, file, names in zip(sources, weights_of_each, classes_of_each, strict=True)
    ]


def read_class_names(file: str | pathlib.Path) -> list[str]:
    """Reads a UTF-8 file with one class name per line; blank lines at its end are ignored."""
    with explain_errors(f"can't read {file}", "expected UTF-8 text with one class name per line"):
        lines = read_text(file).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InputError(f"{file} is blank at line {number}; expected one class name per line")
        if line in seen:
            raise InputError(
                f"{file} has {line!r} at lines {seen[line]} and {number}; expected each of the "
                "teacher's classes once"
            )
        seen[line] = number
    if len(lines) < 2:
        raise InputError(f"{file} has {len(lines)} class names; expected all of the teacher's")
    return lines


def slug(name: str) -> str:
    """Turns the name of a model, a model's file or a data set into a part of a path."""
    if _is_model_file(name):
        name = pathlib.Path(name).stem
    return name.removeprefix(applications.PREFIX).replace(":", "-").replace("/", "-")


def _per_teacher(
    flag: str, values: str | None, teachers: list[str], one_for_all: bool = False
) -> list[str | None]:
    """Splits a flag's value at its commas into one value per teacher, None for empty ones."""
    if values is None:
        return [None] * len(teachers)
    parts = [part or None for part in values.split(",")]
    if one_for_all and len(parts) == 1:
        parts *= len(teachers)
    if len(parts) != len(teachers):
        raise InputError(
            f"{flag}={values} is {len(parts)} files, but --teacher is {len(teachers)} teachers; "
            f"expected {'one for all, or ' if one_for_all else ''}one for each, and nothing "
            "between the commas for a teacher without"
        )
    return parts


def _checked(given: TeacherSource) -> TeacherSource:
    """Returns the source with absolute paths, without a normalization that has no use."""
    source, weights, normalization, classes, _ = dataclasses.astuple(given)
    if is_onnx(source):
        if weights is not None:
            raise InputError(f"{source} has its own weights; leave --teacher_weights={weights} out")
        if not os.path.isfile(source):
            raise InputError(f"no file {source}; expected an ONNX file, check the path")
    else:
        check_source(source, weights)
    if classes is not None and not os.path.isfile(classes):
        raise InputError(f"no file {classes}; expected the teacher's class names, check the path")
    if classes is not None and not given.is_trained:
        raise InputError(
            f"--teacher_classes={classes} names the classes of {source}, which has no weights and "
            "so is trained on the data's own; add --teacher_weights=FILE, or leave it out"
        )
    return dataclasses.replace(
        given,
        source=os.path.abspath(source) if _is_model_file(source) else source,
        weights=weights if given.is_pretrained else weights and os.path.abspath(weights),
        normalization=normalization if takes_normalization(source, weights) else None,
        classes=classes and os.path.abspath(classes),
    )


def _is_model_file(source: str) -> bool:
    return is_whole_model(source) or is_onnx(source)
