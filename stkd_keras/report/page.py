"""Writes the page of a report."""

import base64
import dataclasses
import io
import math
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
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
from stkd_keras.mixing import CutMix, Mixup
from stkd_keras.report.figures import draw_figures
from stkd_keras.report.measurements import (
    Predictions,
    fetch_test_images,
    largest_entries,
    measure,
    metrics_of,
    most_different,
)
from stkd_keras.report.run_files import RunFiles, printable, read_run_files
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.timing import in_words

MOST_CLASSES_IN_A_TABLE = 20
# Larger matrices are only drawn: as numbers, those of 200 classes have megabytes.
MOST_CLASSES_IN_JSON = 100
UNKNOWN = "–"  # noqa: RUF001


@dataclasses.dataclass(frozen=True)
class Student:
    """A student in a report.

    Attributes:
        name: its name in the report.
        model: any Keras classifier.
        run: the directory of the run that trained it, or None.
        exported: the folder it was exported to (default: `export/` in the run's directory).
    """

    name: str
    model: keras.Model
    run: str | os.PathLike | None = None
    exported: str | os.PathLike | None = None


def check_report_file(file: str | os.PathLike) -> None:
    """Raises an `InputError` if the file's folder doesn't exist, or the file is a folder."""
    path = pathlib.Path(file)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"is in {path.parent}, which is no folder"
        raise InputError(f"the report {path} {what}; name a file, such as PATH/report.html")


def write_report(
    file: str | os.PathLike,
    students: Sequence[Student],
    teacher: FrozenTeacher | None,
    dataset: Dataset,
    teacher_name: str | None = None,
) -> dict[str, dict[str, float]]:
    """Writes the report; see `stkd_keras.experiment.report`."""
    check_report_file(file)
    if not students:
        raise InputError("the report has no student; give at least one")
    runs = [read_run_files(student.run, student.exported) for student in students]
    run = runs[0]
    names = [student.name for student in students]
    compared: list[keras.Model | FrozenTeacher] = [student.model for student in students]
    if teacher is not None:
        names.insert(1, teacher_name or run.teacher or "teacher")
        compared.insert(1, teacher)
    by_name = dict(zip(_unique(names), compared, strict=True))
    mixing, temperature = run.mixing or Mixup(), run.settings.get("temperature", 1.0)
    seed = run.settings.get("data_seed", 0)
    models, test, virtual = measure(by_name, dataset, mixing, seed, temperature)
    print("report: drawing")
    class_names = [printable(name) for name in dataset.class_names]
    different = most_different(test.logits[0], test.logits[1], 12) if teacher is not None else []
    arguments = ", ".join(f"{name}={value}" for name, value in mixing.get_config().items())
    page = _render(
        dataset=dataset,
        models=models,
        student=models[0],
        teacher=models[1] if teacher is not None else None,
        run=run,
        machine=cost.machine(),
        temperature=temperature,
        mixing=f"{type(mixing).__name__}({arguments})",
        summary=_summary(models),
        facts=_facts(run, dataset),
        classes=_class_rows(models, class_names),
        confused=_pairs(models, "confusion", 10, class_names, "{:,}".format),
        similar=_pairs(models, "similarity", 5, class_names, _percent),
        different=_different_cards(different, test, dataset, class_names),
        virtual=_virtual_cards(virtual, models, class_names),
        figures=draw_figures(models, [run.history for run in runs], class_names),
        numbers=_numbers(models, dataset, class_names, mixing, temperature, different),
    )
    # File names may contain bytes that aren't valid text.
    write_atomically(file, page.encode(errors="backslashreplace"))
    return metrics_of(models)


def _render(**content) -> str:
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
        "percent": _percent, "number": _number, "nats": _nats, "times": _times,
        "one_line": one_line,
    }  # fmt: skip
    return environment.get_template("report.html.jinja").render(**content)


def _unique(names: Sequence[str]) -> list[str]:
    result: list[str] = []
    for name in map(printable, names):
        same = sum(each == name or each.startswith(f"{name} (") for each in result)
        result.append(f"{name} ({same + 1})" if name in result else name)
    return result


def _summary(models: Sequence[dict]) -> str:
    """Returns a sentence to quote: the student's accuracy and cost."""
    student = models[0]
    name, costs, accuracy = student["name"], student["cost"], student["accuracy"]
    if len(models) < 2 or models[1]["role"] != "teacher":
        low, high = student["accuracy_interval"]
        return (
            f"{name} has an accuracy of {_percent(accuracy)} (95 % interval {_percent(low)} to "
            f"{_percent(high)}) and {costs['parameters']:,} parameters."
        )
    teacher = models[1]
    if 0 < accuracy <= teacher["accuracy"]:
        reached = (
            f"reaches {_percent(accuracy / teacher['accuracy'])} of {teacher['name']}'s accuracy "
            f"({_percent(accuracy)} of {_percent(teacher['accuracy'])})"
        )
    else:
        reached = (
            f"has an accuracy of {_percent(accuracy)}, compared with "
            f"{_percent(teacher['accuracy'])} for {teacher['name']},"
        )
    ratios = [
        f"{_times(costs[key], teacher['cost'][key])} the {label}"
        for key, label in (
            ("parameters", "parameters"),
            ("multiply_adds", "multiply-adds"),
            ("images_per_second_128", "throughput on this machine"),
        )
        if costs[key] and teacher["cost"][key]
    ]
    return f"{name} {reached} with {', '.join(ratios[:-1])} and {ratios[-1]}."


def _facts(run: RunFiles, dataset: Dataset) -> list[tuple[str, str | list[str]]]:
    """Returns how the student was trained, by name, as far as it is known."""
    counts = {**run.image_counts, "test": len(dataset.test)}
    images = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    shape = "x".join(map(str, dataset.image_shape))
    data = f"{dataset.name} {dataset.version}, {dataset.num_classes} classes, images of {shape}"
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    facts: dict[str, str | list[str]] = {
        "Command": [shlex.quote(word) for word in ("python", *run.command)] if run.command else "",
        "Data": f"{data}: {images}",
        "Trained for": in_words(run.seconds) if run.seconds else "",
        "Versions": one_line(versions) if versions else "",
        "Commit": one_line(run.git_commit) if run.git_commit else "",
        "Measured on": f"{cost.machine()}, with stkd_keras {stkd_keras.__version__}",
    }
    return [(name, value) for name, value in facts.items() if value]


def _class_rows(models: Sequence[dict], class_names: Sequence[str]) -> dict[str, list[dict]]:
    """Returns the classes as "all", and the student's "worst" and "best" if there are many."""
    rows = [
        {"name": name, "images": each[0]["images"], "models": each}
        for name, *each in zip(class_names, *(m["per_class"] for m in models), strict=True)
    ]
    if len(rows) <= MOST_CLASSES_IN_A_TABLE:
        return {"all": rows, "worst": [], "best": []}
    tested = [row for row in rows if row["images"]]
    ordered = sorted(tested, key=lambda row: row["models"][0]["accuracy"])
    return {"all": rows, "worst": ordered[:5], "best": ordered[::-1][:5]}


def _pairs(
    models: Sequence[dict], matrix: str, count: int, names: Sequence[str], form: Callable
) -> list[dict]:
    """Returns the student's largest entries off the diagonal, with the other models' entries."""
    return [
        {
            "true": names[true],
            "other": names[other],
            "values": [form(model[matrix][true, other]) for model in models],
        }
        for true, other in largest_entries(models[0][matrix], count)
    ]


def _different_cards(
    different: list[tuple[int, float]], test: Predictions, dataset: Dataset, names: Sequence[str]
) -> list[dict]:
    if not different:
        return []
    indices = [index for index, _ in different]
    student, teacher = (np.exp(log_softmax(logits[indices])) for logits in test.logits[:2])
    labels = np.eye(dataset.num_classes)[test.labels[indices]]
    return [
        {
            **_card(images, {"label": label, "teacher": t, "student": s}, names),
            "title": f"{names[label.argmax()]}, image {index}",
            "kl": kl,
        }
        for images, label, t, s, (index, kl) in zip(
            fetch_test_images(dataset, indices), labels, teacher, student, different,
            strict=True,
        )
    ]  # fmt: skip


def _virtual_cards(virtual: Predictions, models: list[dict], names: Sequence[str]) -> list[dict]:
    count = len(virtual.images)
    columns = {"label": virtual.labels[:count]}
    for role in ("teacher", "student"):
        for model, logits in zip(models, virtual.logits, strict=True):
            if model["role"] == role:
                columns[role] = np.exp(log_softmax(logits[:count]))
    cards = []
    for number, image in enumerate(np.rint(np.clip(virtual.images, 0, 255)).astype(np.uint8)):
        label = columns["label"][number]
        mixed = [c for c in np.argsort(-label, kind="stable") if label[c] > 0]
        title = ", ".join(f"{names[c]} ({100 * label[c]:.0f} %)" for c in mixed)
        card = _card(image, {role: values[number] for role, values in columns.items()}, names)
        cards.append({**card, "title": title, "kl": None})
    return cards


def _card(image: np.ndarray, columns: dict[str, np.ndarray], names: Sequence[str]) -> dict:
    """Returns an image with the three most probable classes of each column."""
    chosen: list[int] = []
    for values in columns.values():
        top = [int(c) for c in np.argsort(-values, kind="stable")[:3]]
        chosen += [c for c in top if c not in chosen and values[c] >= 0.005]
    chosen.sort(key=lambda c: -sum(values[c] for values in columns.values()))
    picture = Image.fromarray(image[..., 0] if image.shape[-1] not in (3, 4) else image)
    picture.thumbnail((192, 192))
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return {
        "image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "columns": list(columns),
        "rows": [
            {"name": names[c], "values": [values[c] for values in columns.values()]} for c in chosen
        ],
    }


def _numbers(
    models: list[dict],
    dataset: Dataset,
    class_names: Sequence[str],
    mixing: Mixup | CutMix,
    temperature: float,
    different: list[tuple[int, float]],
) -> dict[str, Any]:
    """Returns the numbers of the page for programs."""
    return _as_json(
        {
            "dataset": {
                "name": dataset.name,
                "version": dataset.version,
                "test_images": len(dataset.test),
            },
            "classes": class_names,
            "temperature": temperature,
            "mixing": {"class": type(mixing).__name__, **mixing.get_config()},
            "machine": cost.machine(),
            "models": models,
            "most_different": [{"image": index, "kl": kl} for index, kl in different],
        }
    )


def _as_json(content: Any) -> Any:
    """Makes NaN None, arrays lists (large ones None), and NumPy's numbers Python's."""
    if isinstance(content, dict):
        return {key: _as_json(value) for key, value in content.items()}
    if isinstance(content, np.ndarray):
        return None if len(content) > MOST_CLASSES_IN_JSON else _as_json(content.tolist())
    if isinstance(content, list | tuple):
        return [_as_json(value) for value in content]
    if isinstance(content, np.integer):
        return int(content)
    if isinstance(content, float):  # NumPy's floats too.
        return round(float(content), 9) if math.isfinite(content) else None
    return content


def _percent(fraction: float | None, digits: int = 1) -> str:
    return _formatted(fraction, lambda x: f"{100 * x:.{digits}f} %")


def _nats(value: float | None) -> str:
    return _formatted(value, lambda x: f"{x:.4f}")


def _number(value: float | None, unit: float = 1.0) -> str:
    """Formats an integer with thousands separators, and other numbers to three digits."""
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
