"""The model card of a distilled student: what it is made of, how good it is, and its limits."""

import html
import pathlib
import shlex
from typing import Any

import keras

from stkd_keras.classifiers.outputs import resolve_outputs
from stkd_keras.evaluation.scores import wilson_interval

_HEAD = """---
library_name: keras
pipeline_tag: image-classification
tags: [knowledge-distillation]
---
"""


def model_card(
    student: keras.Model, config: dict[str, Any], metrics: dict[str, dict[str, float]]
) -> str:
    """Returns a model card, after Mitchell et al., arXiv 1810.03993, as Hugging Face reads it.

    Args:
        student: the model that it is about.
        config: the content of the run's config.json, as train.py writes it. What isn't there isn't
            spoken of.
        metrics: the content of metrics.json.

    Returns:
        Markdown with a YAML head.
    """
    teacher, data = _named(config, "teacher"), config.get("data", {})
    title = f"{_named(config, 'student') or student.name} on {data.get('name', 'images')}"
    if _has_teacher(config) and teacher:
        title += f", distilled from {teacher}"
    sections = {
        f"# {_text(title)}": _what_it_is(student, config),
        "## What it was made of": _origin(config),
        "## How good it is": _quality(config, metrics),
        "## Limits": _limits(config, metrics),
    }
    return _HEAD + "".join(f"\n{heading}\n\n{text}\n" for heading, text in sections.items())


def _what_it_is(student: keras.Model, config: dict[str, Any]) -> str:
    kind = _kind_of_answers(student)
    shape = ", ".join(str(size) for size in student.input_shape[1:])
    classes = config.get("data", {}).get("classes", [])
    return f"""\
`student.keras` classifies images into {student.output_shape[-1]} classes. It has \
{student.count_params():,} parameters and takes pixels as they are: float32 (N, {shape}), in \
[0, 255]; its own first layer normalises them. It answers {kind}, float32 (N, \
{student.output_shape[-1]}).

```python
import keras

student = keras.saving.load_model("student.keras")
{kind} = student.predict(images)
```

Classes, in the order of its answers: {", ".join(map(_text, classes)) or "not known"}."""


def _kind_of_answers(student: keras.Model) -> str:
    try:
        return resolve_outputs(student, "auto", "student")
    except ValueError:  # The distiller was told what they are.
        return "outputs"


def _origin(config: dict[str, Any]) -> str:
    settings, data = config.get("settings", {}), config.get("data", {})
    lines = [f"- Teacher: {_text(_teachers(config))}."]
    if fingerprint := settings.get("teacher_weights"):
        lines.append(f"- Fingerprint of the teacher's weights: `{_code(fingerprint)}`.")
    if data:
        counts = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
        size = " x ".join(map(str, data["image_shape"]))
        name = _text(f"{data['name']} {data['version']}")
        lines.append(f"- Data: {name}, {counts} images of {size}.")
    if fingerprint := settings.get("images"):
        lines.append(f"- Fingerprint of the training images: `{_code(fingerprint)}`.")
    versions = ", ".join(f"{k} {v}" for k, v in config.get("versions", {}).items())
    lines.append(f"- Made with {_text(versions)}, commit `{_code(config.get('git_commit'))}`.")
    if config.get("command"):
        lines += ["- Command:", "", f"      {_code(shlex.join(['python', *config['command']]))}"]
    chosen = {
        name: value
        for name, value in settings.items()
        if value is not None and name not in ("images", "teacher_weights", "teacher", "student")
    }
    rows = [f"| {_text(name)} | {_text(value)} |" for name, value in chosen.items()]
    return "\n".join([*lines, "", "| setting | value |", "|---|---|", *rows])


def _quality(config: dict[str, Any], metrics: dict[str, dict[str, float]]) -> str:
    rows = [
        "| images | accuracy (95 % interval) | negative log-likelihood | calibration error |",
        "|---|---|---|---|",
    ]
    counts = config.get("data", {}).get("images", {})
    for name in ("test", "validation", "train", "teacher"):
        if name in metrics:
            label = "test, the teacher" if name == "teacher" else name
            count = counts.get("test" if name == "teacher" else name)
            rows.append(f"| {label} | {_scores(metrics[name], count)} |")
    lines = [*rows, ""]
    if fidelity := metrics.get("fidelity"):
        lines += [
            f"On {100 * fidelity['agreement']:.2f} % of the test images it names the teacher's "
            f"class; KL(teacher || student) is {fidelity['kl']:.4f} nats on average.",
            "",
        ]
    return "\n".join(
        [
            *lines,
            "Intervals are Wilson's, of the sampling of images alone: another seed gives another "
            "student. The calibration error is over 15 equal-width bins.",
        ]
    )


def _scores(scores: dict[str, float], count: int | None) -> str:
    accuracy = f"{100 * scores['accuracy']:.2f} %"
    if count:
        low, high = wilson_interval(round(scores["accuracy"] * count), count)
        accuracy += f" ({100 * low:.2f} to {100 * high:.2f})"
    return f"{accuracy} | {scores['nll']:.4f} | {scores['ece']:.4f}"


def _limits(config: dict[str, Any], metrics: dict[str, dict[str, float]]) -> str:
    data = config.get("data", {})
    lines = [
        "- It names one of its classes for every image, also for one of something else.",
        f"- Measured on the test images of {_text(data.get('name', 'its data set'))} alone: other "
        "cameras, sizes and subjects weren't tried, nor attacks, nor groups of people or things "
        "within a class.",
    ]
    if data:
        lines.append(
            f"- It learnt from {data['images'].get('train', 0):,} labelled images of "
            f"{data['image_shape'][0]}x{data['image_shape'][1]} pixels; larger ones have to be "
            "scaled to that."
        )
    if "teacher" in metrics:
        gap = 100 * (metrics["teacher"]["accuracy"] - metrics["test"]["accuracy"])
        behind = "behind" if gap >= 0 else "ahead of"
        lines.append(
            f"- It is {abs(gap):.2f} points {behind} its teacher, whose mistakes and biases it was "
            "taught, too."
        )
    if metrics["test"]["ece"] > 0.05:
        lines.append(
            f"- Its confidence is {100 * metrics['test']['ece']:.1f} points from its accuracy on "
            "average: don't take it for a probability."
        )
    lines.append(
        "- The licences of data and teacher hold for it, too; this card doesn't know them."
    )
    return "\n".join(lines)


def _named(config: dict[str, Any], role: str) -> str | None:
    """What the command called a model; in the settings, a file is a hash of what it holds."""
    given = config.get("flags", {}).get(role) or config.get("settings", {}).get(role)
    return given and ", ".join(pathlib.PurePath(name).name for name in given.split(","))


def _has_teacher(config: dict[str, Any]) -> bool:
    return config.get("settings", {}).get("teacher_weights") is not None


def _teachers(config: dict[str, Any]) -> str:
    if not _has_teacher(config):
        return "none was asked"
    return "; ".join(
        " with weights ".join(filter(None, (each.get("source"), each.get("weights"))))
        for each in config.get("teachers", [])
    )


def _text(value: object) -> str:
    """What a file or a user has named, as Markdown shows it and nothing else."""
    escaped = html.escape(str(value), quote=False)
    for character in "\\`*_[]|#":
        escaped = escaped.replace(character, f"\\{character}")
    return " ".join(escaped.split())


def _code(value: object) -> str:
    return " ".join(str(value).replace("`", "'").split())
