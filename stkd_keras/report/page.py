"""The page of a report: what is on it, in which words, and its file."""

import base64
import dataclasses
import io
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

import stkd_keras
from stkd_keras.data import Dataset
from stkd_keras.errors import InputError, one_line
from stkd_keras.files.atomic import write_atomically
from stkd_keras.mixing import CutMix, Mixup
from stkd_keras.report import figures, text
from stkd_keras.report.numbers import as_json, largest_entries, off_diagonal
from stkd_keras.report.run_files import RunFiles

MOST_CLASSES_IN_A_TABLE = 20
EXTREME_CLASSES = 5
CONFUSED_PAIRS = 10
ALIKE_PAIRS = 5
CLASSES_A_CARD = 3
LARGEST_IMAGE = 192


@dataclasses.dataclass(frozen=True)
class Card:
    """An image, and what is said of it.

    Attributes:
        image: uint8 (height, width, channels).
        label: float (C,), the label as a row.
        answers: float (C,) by "teacher" and "student".
        index: the image's number in the test split; None for a virtual sample.
        kl: KL(teacher || student), or None.
    """

    image: np.ndarray
    label: np.ndarray
    answers: dict[str, np.ndarray]
    index: int | None = None
    kl: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """All that the page is made of.

    Attributes:
        models: the numbers of each, the student's first, the teacher's second if there is one.
        class_names: names of the classes, printable, as are those of the models.
        dataset: the data set.
        runs: what is known of each student's run.
        temperature: of the similarities.
        mixing: what made the virtual samples.
        mixing_is_own: whether the run mixed so, too.
        different: what student and teacher answer most differently.
        virtual: virtual samples.
        machine: what the times were taken on.
    """

    models: list[dict[str, Any]]
    class_names: list[str]
    dataset: Dataset
    runs: list[RunFiles]
    temperature: float
    mixing: Mixup | CutMix
    mixing_is_own: bool
    different: list[Card]
    virtual: list[Card]
    machine: str

    @property
    def has_teacher(self) -> bool:
        """Whether one of the models is a teacher."""
        return any(model["role"] == "teacher" for model in self.models)

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return [model["name"] for model in self.models]


def check_report_file(file: str | os.PathLike) -> None:
    """Refuses a place where no report can be written, before anything is measured.

    Raises:
        InputError: likewise.
    """
    path = pathlib.Path(file)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"is in {path.parent}, which is no folder"
        raise InputError(f"the report {path} {what}; name a file, as PATH/report.html")


def write_page(file: str | os.PathLike, report: Report) -> None:
    """Writes the page, whole or not at all.

    Raises:
        InputError: where it can't be written.
    """
    # File names may hold bytes that no text has.
    write_atomically(file, render(report).encode(errors="backslashreplace"))


def render(report: Report) -> str:
    """Returns the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stkd_keras", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {
        "percent": text.percent,
        "number": text.number,
        "nats": text.nats,
        "millions": text.millions,
        "megabytes": text.megabytes,
        "times": text.times,
    }
    template = environment.get_template("report.html.jinja")
    return template.render(
        report=report,
        models=report.models,
        student=report.models[0],
        teacher=report.models[1] if report.has_teacher else None,
        run=report.runs[0],
        title=_title(report),
        summary=text.summary(report.models),
        facts=_facts(report),
        settings=[(one_line(k), one_line(v)) for k, v in sorted(report.runs[0].settings.items())],
        classes=_class_rows(report),
        confused=_pairs(report, "confusion", CONFUSED_PAIRS),
        alike=_pairs(report, "similarity", ALIKE_PAIRS),
        mixing=_mixing_in_words(report),
        different=[_shown(card, report.class_names) for card in report.different],
        virtual=[_shown(card, report.class_names) for card in report.virtual],
        figures=_figures(report),
        numbers=_numbers(report),
    )


def _finalized(value: Any) -> Any:
    """What is written for a value: no text from a file as it is."""
    return text.printable(value) if type(value) is str else value


def _title(report: Report) -> str:
    name = report.models[0]["name"]
    return f"{name}, distilled from {report.models[1]['name']}" if report.has_teacher else name


def _facts(report: Report) -> list[tuple[str, str | list[str]]]:
    """What made the run, by name, as far as it is known."""
    run, dataset = report.runs[0], report.dataset
    counts = {**run.data.get("images", {}), "test": len(dataset.test)}
    images = ", ".join(
        f"{count:,} {name}" for name, count in counts.items() if isinstance(count, int)
    )
    shape = "x".join(map(str, dataset.image_shape))
    data = f"{dataset.name} {dataset.version}, {dataset.num_classes} classes, images of {shape}"
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    facts: dict[str, str | list[str]] = {
        "Command": [shlex.quote(word) for word in ("python", *run.command)] if run.command else "",
        "Data": f"{data}: {images}",
        "Trained for": text.duration(run.seconds) if run.seconds else "",
        "Versions": one_line(versions) if versions else "",
        "Commit": one_line(run.git_commit) if run.git_commit else "",
        "Measured on": f"{report.machine}, with stkd_keras {stkd_keras.__version__}",
    }
    return [(name, value) for name, value in facts.items() if value]


def _class_rows(report: Report) -> dict[str, list[dict]]:
    """The classes of the per class table: "all", and of many the student's "worst" and "best"."""
    rows = [
        {
            "name": name,
            "images": report.models[0]["per_class"][number]["images"],
            "models": [model["per_class"][number] for model in report.models],
        }
        for number, name in enumerate(report.class_names)
    ]
    if len(rows) <= MOST_CLASSES_IN_A_TABLE:
        return {"all": rows, "worst": [], "best": []}
    ordered = sorted(
        (row for row in rows if row["images"]), key=lambda row: row["models"][0]["accuracy"]
    )
    return {
        "all": rows,
        "worst": ordered[:EXTREME_CLASSES],
        "best": ordered[::-1][:EXTREME_CLASSES],
    }


def _pairs(report: Report, matrix: str, count: int) -> list[dict]:
    """The largest entries of the student's matrix off its diagonal, with those of the others."""
    return [
        {
            "true": report.class_names[true],
            "other": report.class_names[other],
            "values": [model[matrix][true, other] for model in report.models],
        }
        for true, other in largest_entries(report.models[0][matrix], count)
    ]


def _mixing_in_words(report: Report) -> str:
    config = report.mixing.get_config()
    arguments = ", ".join(f"{name}={value}" for name, value in config.items())
    return f"{type(report.mixing).__name__}({arguments})"


def _shown(card: Card, class_names: Sequence[str]) -> dict[str, Any]:
    """A card as the page has it: the classes that any of its distributions finds likeliest."""
    columns = {"label": card.label, **card.answers}
    chosen: list[int] = []
    for values in columns.values():
        likeliest = [int(c) for c in np.argsort(-values, kind="stable")[:CLASSES_A_CARD]]
        chosen += [c for c in likeliest if c not in chosen and values[c] >= 0.005]
    chosen.sort(key=lambda c: -sum(values[c] for values in columns.values()))
    label = ", ".join(
        f"{100 * card.label[c]:.0f} % {class_names[c]}" if card.label[c] < 1 else class_names[c]
        for c in np.argsort(-card.label, kind="stable")
        if card.label[c] > 0
    )
    what = "virtual sample" if card.index is None else f"test image {card.index}"
    return {
        "image": _data_uri(card.image),
        "alt": f"{what}: {label}",
        "title": label if card.index is None else f"{label}, image {card.index}",
        "kl": card.kl,
        "columns": list(columns),
        "rows": [
            {"name": class_names[c], "values": [values[c] for values in columns.values()]}
            for c in chosen
        ],
    }


def _data_uri(image: np.ndarray) -> str:
    """An image as it stands within a page: PNG, no larger than it is shown."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] not in (3, 4) else image)
    picture.thumbnail((LARGEST_IMAGE, LARGEST_IMAGE))
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figures(report: Report) -> dict[str, list[dict]]:
    """The figures of each section."""
    models, names, classes = report.models, report.names, report.class_names
    each = list(zip(range(len(models)), names, models, strict=True))
    drawn: dict[str, list] = {
        "accuracy": [figures.draw_accuracies(names, models)] if len(models) > 1 else [],
        "reliability": [figures.draw_reliability(name, n, model) for n, name, model in each],
        "confusion": [figures.draw_confusion(name, n, model, classes) for n, name, model in each],
    }
    highest = max(
        (np.nanmax(off_diagonal(model["similarity"]), initial=0) for model in models), default=0
    )
    drawn["similarity"] = [
        figures.draw_similarity(name, n, model["similarity"], highest, classes)
        for n, name, model in each
    ]
    if report.has_teacher:
        student, teacher = models[:2]
        scatter = figures.draw_similarity_scatter(
            student["name"], teacher["name"], student["similarity"], teacher["similarity"],
            student["similarity_correlation"],
        )  # fmt: skip
        drawn["similarity"].append(scatter)
    drawn["curves"] = _curves(report)
    return {
        section: [{"svg": Markup(d.svg), "caption": d.caption} for d in drawings]
        for section, drawings in drawn.items()
    }


def _curves(report: Report) -> list[figures.Drawing]:
    history = report.runs[0].history
    shares = {
        "validation accuracy": history.get("val_accuracy"),
        "accuracy on what is trained on": history.get("accuracy"),
        "agreement with the teacher": history.get("teacher_agreement"),
    }
    losses = {
        name: values
        for name, values in history.items()
        if name.endswith("loss") and not name.startswith("val_")
    }
    students = [n for n, model in enumerate(report.models) if model["role"] != "teacher"]
    runs = {
        number: run.history["val_accuracy"]
        for number, run in zip(students, report.runs, strict=True)
        if "val_accuracy" in run.history
    }
    drawings = [
        figures.draw_curves(
            "accuracy", _given(shares), "%", "Accuracy and agreement by epoch", in_percent=True
        ),
        figures.draw_curves("loss", losses, "loss", "Training losses by epoch"),
        figures.draw_curves(
            "validation-loss", _given({"validation loss": history.get("val_loss")}), "loss",
            "Cross-entropy on the validation images by epoch",
        ),
    ]  # fmt: skip
    if len(runs) > 1:
        of_runs = {report.names[number]: values for number, values in runs.items()}
        drawings.append(
            figures.draw_curves(
                "runs", of_runs, "validation accuracy, %",
                "Validation accuracy of the runs by epoch", in_percent=True, series=list(runs),
            )
        )  # fmt: skip
    return [drawing for drawing in drawings if drawing is not None]


def _given(curves: Mapping[str, list[float] | None]) -> dict[str, list[float]]:
    return {name: values for name, values in curves.items() if values is not None}


def _numbers(report: Report) -> dict[str, Any]:
    """The page's numbers, for programs."""
    return as_json(
        {
            "dataset": {
                "name": report.dataset.name,
                "version": report.dataset.version,
                "test_images": len(report.dataset.test),
            },
            "classes": report.class_names,
            "temperature": report.temperature,
            "mixing": {"class": type(report.mixing).__name__, **report.mixing.get_config()},
            "machine": report.machine,
            "models": report.models,
            "most_different": [{"image": c.index, "kl": c.kl} for c in report.different],
        }
    )
