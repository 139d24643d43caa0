"""Writes a report's HTML page."""

import base64
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
import keras
import numpy as np
from PIL import Image

import stkd_keras
from stkd_keras.data import Dataset
from stkd_keras.errors import InputError, one_line
from stkd_keras.evaluation import cost
from stkd_keras.evaluation.scores import log_softmax
from stkd_keras.files.atomic import write_atomically
from stkd_keras.mixing import Mixup
from stkd_keras.report.figures import draw_figures
from stkd_keras.report.measurements import (
    Predictions,
    fetch_test_images,
    largest_entries,
    measure,
    metrics_of,
    most_different,
)
from stkd_keras.report.run_files import printable, read_run_files
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.timing import in_words

# Larger matrices are only drawn: for 200 classes, their numbers would take megabytes.
MOST_CLASSES_IN_JSON = 100
UNKNOWN = "–"  # noqa: RUF001


@dataclasses.dataclass(frozen=True)
class Student:
    """A student in a report.

    Attributes:
        name: its name in the report.
        model: any Keras classifier.
        run: its run directory, or None.
        exported: the folder it was exported to (default: `export/` in the run directory).
    """

    name: str
    model: keras.Model
    run: str | os.PathLike | None = None
    exported: str | os.PathLike | None = None


def check_report_file(file: str | os.PathLike) -> None:
    """Raises an `InputError` if the file is a folder, or its folder doesn't exist."""
    path = pathlib.Path(file)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"is in {path.parent}, which isn't a folder"
        raise InputError(f"the report {path} {what}; choose a file, such as PATH/report.html")


def report(
    file: str | os.PathLike,
    students: Sequence[Student],
    teacher: FrozenTeacher | None,
    dataset: Dataset,
    teacher_name: str | None = None,
) -> dict[str, dict[str, float]]:
    """Writes a self-contained HTML report on students and, optionally, their teacher.

    Evaluates all models on the test split and on virtual samples made from it, and measures their
    costs. docs/report.md describes the page.

    Args:
        file: the file to write or replace.
        students: at least one. The report compares the first one with the others.
        teacher: the teacher, or None.
        dataset: the data set.
        teacher_name: the teacher's name in the report (default: its name in the first student's
            run, such as resnet20, or "teacher").

    Returns:
        The scores of the first student, as `evaluate` returns them.

    Raises:
        InputError: if the file can't be written, or a run directory has unexpected content.

    Example:

    ```python
    student = keras.saving.load_model("runs/digits/student.keras")
    students = [experiment.Student("resnet8", student, run="runs/digits")]
    experiment.report("report.html", students, None, stkd_keras.data.load("digits"))
    ```
    """
    check_report_file(file)
    if not students:
        raise InputError("the report has no student; give at least one")
    runs = [read_run_files(student.run, student.exported) for student in students]
    run = runs[0]
    names = [student.name for student in students]
    compared: list[keras.Model | FrozenTeacher] = [student.model for student in students]
    calibrations = [each.calibration for each in runs]
    if teacher is not None:
        names.insert(1, teacher_name or run.teacher or "teacher")
        compared.insert(1, teacher)
        calibrations.insert(1, None)
    by_name = dict(zip(_unique([*map(printable, names)]), compared, strict=True))
    mixing, temperature = run.mixing or Mixup(), run.settings.get("temperature", 1.0)
    seed = run.settings.get("data_seed", 0)
    models, test, virtual = measure(by_name, dataset, mixing, seed, temperature, calibrations)
    print("report: drawing")
    class_names = [printable(name) for name in dataset.class_names]
    different = most_different(test.logits[0], test.logits[1], 12) if teacher is not None else []
    accuracies = [row["accuracy"] for row in models[0]["per_class"]]
    page = _template().render(
        dataset=dataset,
        class_names=class_names,
        models=models,
        student=models[0],
        teacher=models[1] if teacher is not None else None,
        run=run,
        machine=cost.machine(),
        version=stkd_keras.__version__,
        temperature=temperature,
        mixing={"class": type(mixing).__name__, **mixing.get_config()},
        ranked=[
            int(c) for c in np.argsort(accuracies, kind="stable") if not math.isnan(accuracies[c])
        ],
        confused=largest_entries(models[0]["confusion"], 10),
        similar=largest_entries(models[0]["similarity"], 5),
        most_different=[{"image": index, "kl": kl} for index, kl in different],
        different=_different_cards(different, test, models, dataset, class_names),
        virtual=_virtual_cards(virtual, models, class_names),
        figures=draw_figures(models, [run.history for run in runs], class_names),
    )
    # File names may contain bytes that aren't valid text.
    write_atomically(file, page.encode(errors="backslashreplace"))
    return metrics_of(test, teacher is not None, run.calibration)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stkd_keras", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {
        "percent": _percent, "number": _number, "times": _times,
        "one_line": one_line, "in_words": in_words, "for_json": _for_json,
    }  # fmt: skip
    return environment.get_template("report.html.jinja")


def _unique(names: Sequence[str]) -> list[str]:
    """Numbers the models of the same name."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[:index].count(name) + 1})"
        for index, name in enumerate(names)
    ]


def _different_cards(
    different: Sequence[tuple[int, float]],
    test: Predictions,
    models: Sequence[dict],
    dataset: Dataset,
    names: Sequence[str],
) -> list[dict]:
    if not different:
        return []
    indices = [index for index, _ in different]
    labels = np.eye(len(names))[test.labels[indices]]
    images = fetch_test_images(dataset, indices)
    shown = Predictions(labels, [logits[indices] for logits in test.logits], images)
    return [
        {**card, "title": f"{names[test.labels[index]]}, image {index}", "kl": kl}
        for card, (index, kl) in zip(_cards(shown, models, names), different, strict=True)
    ]


def _virtual_cards(
    virtual: Predictions, models: Sequence[dict], names: Sequence[str]
) -> list[dict]:
    cards = _cards(virtual, models, names)
    for card, label in zip(cards, virtual.labels, strict=False):
        mixed = [c for c in np.argsort(-label, kind="stable") if label[c] > 0]
        card["title"] = ", ".join(f"{names[c]} ({100 * label[c]:.0f} %)" for c in mixed)
    return cards


def _cards(predictions: Predictions, models: Sequence[dict], names: Sequence[str]) -> list[dict]:
    """Returns each image with its label and the predictions of teacher and student."""
    images = np.rint(np.clip(predictions.images, 0, 255)).astype(np.uint8)
    columns = {"label": predictions.labels[: len(images)]}
    roles = [model["role"] for model in models]
    for role in ("teacher", "student") if "teacher" in roles else ("student",):
        logits = predictions.logits[roles.index(role)]
        columns[role] = np.exp(log_softmax(logits[: len(images)]))
    return [
        {"image": _data_uri(image), "columns": list(columns), "rows": _most_probable(values, names)}
        for image, *values in zip(images, *columns.values(), strict=True)
    ]


def _most_probable(columns: Sequence[np.ndarray], names: Sequence[str]) -> list[dict]:
    top = [(c, x) for x in columns for c in np.argsort(-x, kind="stable")[:3]]
    chosen = dict.fromkeys(c for c, x in top if x[c] >= 0.005)
    ordered = sorted(chosen, key=lambda c: -sum(x[c] for x in columns))
    return [{"name": names[c], "values": [x[c] for x in columns]} for c in ordered]


def _data_uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] not in (3, 4) else image)
    picture.thumbnail((192, 192))
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _for_json(content: Any) -> Any:
    """Converts values for JSON: NaN and large arrays become None, arrays become lists."""
    if isinstance(content, dict):
        return {key: _for_json(value) for key, value in content.items()}
    if isinstance(content, np.ndarray):
        return None if len(content) > MOST_CLASSES_IN_JSON else _for_json(content.tolist())
    if isinstance(content, list | tuple):
        return [_for_json(value) for value in content]
    if isinstance(content, np.integer):
        return int(content)
    if isinstance(content, float):  # Includes np.float64.
        return round(float(content), 9) if math.isfinite(content) else None
    return content


def _percent(fraction: float | None, digits: int = 1) -> str:
    return _formatted(fraction, lambda x: f"{100 * x:.{digits}f} %")


def _number(value: float | None, unit: float = 1.0) -> str:
    """Formats integers with thousands separators, other numbers with three digits."""
    if isinstance(value, int) and unit == 1:
        return f"{value:,}"
    return _formatted(value, lambda x: f"{x / unit:{',.0f' if x >= 1000 * unit else '.3g'}}")


def _times(value: float | None, reference: float | None) -> str:
    if not value or not reference:
        return UNKNOWN
    ratio = value / reference
    return f"{ratio:.{2 if ratio < 1 else 1 if ratio < 10 else 0}f}×"  # noqa: RUF001


def _formatted(value: float | None, form) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else form(value)
