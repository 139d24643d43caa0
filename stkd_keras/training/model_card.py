"""Writes the model card of a distilled student."""

import html
import pathlib
import re
import shlex
from typing import Any

import jinja2
import keras
from markupsafe import Markup

from stkd_keras.classifiers.outputs import num_classes, resolve_outputs
from stkd_keras.errors import InputError
from stkd_keras.evaluation.scores import wilson_interval
from stkd_keras.training.settings import is_sha256


def model_card(
    student: keras.Model,
    config: dict[str, Any],
    metrics: dict[str, dict[str, float]],
    step: int | None = None,
) -> str:
    """Returns a model card in Markdown (Mitchell et al., arXiv 1810.03993).

    An unfinished student is the one at a step.
    """
    try:
        output = resolve_outputs(student, "auto", "student")
    except InputError:  # Undetectable; the user told the distiller.
        output = "outputs"
    settings, data = config.get("settings", {}), config.get("data", {})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stkd_keras", "training"),
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    return environment.get_template("model_card.md.jinja").render(
        {"versions": {}, **config, "settings": settings, "data": data},
        name=student_name(config) or student.name,
        teacher=teacher_name(config),
        teachers=config.get("teachers", []) if settings.get("teacher_weights") else [],
        num_classes=num_classes(student, "student"),
        parameters=student.count_params(),
        input_shape=student.input_shape[1:],
        output=output,
        command=shlex.join(["python", *config["command"]]) if config.get("command") else "",
        metrics=metrics,
        step=step,
        rows=_score_rows(metrics, data.get("images", {})),
    )


def student_name(config: dict[str, Any]) -> str | None:
    """Returns the display name of a run's student from its config.json, such as resnet8."""
    return _display_name(config, "student")


def teacher_name(config: dict[str, Any]) -> str | None:
    """Returns the display name of a run's teachers from its config.json, if it has any."""
    if config.get("settings", {}).get("teacher_weights") is None:
        return None
    sources = [each.get("source") for each in config.get("teachers", [])]
    return _display_name(config, "teacher") or " + ".join(map(model_name, filter(None, sources)))


def model_name(source: str) -> str:
    """Returns the display name of a model file; other names are returned unchanged."""
    path = pathlib.PurePath(source)
    if path.suffix not in (".keras", ".h5", ".onnx"):
        return source
    trained = re.search(r"-([^-]+)-[0-9a-f]{8}$", path.parent.name)
    return trained[1] if trained and path.name == "teacher.keras" else path.stem


def _display_name(config: dict[str, Any], role: str) -> str | None:
    given = config.get("flags", {}).get(role) or config.get("settings", {}).get(role)
    # The settings store a hash in place of a file name.
    if not isinstance(given, str) or is_sha256(given):
        return None
    return " + ".join(map(model_name, given.split(",")))


def _score_rows(metrics: dict, counts: dict[str, int]) -> list[tuple]:
    rows = []
    for name in ("test", "validation", "train", "teacher"):
        if name in metrics:
            accuracy, count = metrics[name]["accuracy"], counts.get(name.replace("teacher", "test"))
            interval = wilson_interval(round(accuracy * count), count) if count else ()
            label = "test, by the teacher" if name == "teacher" else name
            percent = [100 * bound for bound in interval]
            rows.append((label, metrics[name], percent))
            if "calibrated_ece" in metrics[name]:
                calibrated = {key: metrics[name][f"calibrated_{key}"] for key in ("nll", "ece")}
                rows.append((f"{label}, calibrated", metrics[name] | calibrated, percent))
    return rows


def _escaped(value: Any) -> Any:
    """Escapes text from files and users, so that Markdown shows it literally."""
    if type(value) is not str:
        return value
    one_line = re.sub(r"\s+", " ", html.escape(value, quote=False))
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", one_line)


def _code(value: object) -> Markup:
    return Markup(" ".join(str(value).replace("`", "'").split()))
