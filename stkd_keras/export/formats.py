"""Exports a student to other runtimes and evaluates each file on the test images."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers import outputs
from stkd_keras.data import Dataset, evaluation_pipeline
from stkd_keras.distillation.checks import check_student
from stkd_keras.errors import InputError, explain_errors, is_positive, unknown_name
from stkd_keras.evaluation.cost import file_bytes, machine, median_seconds
from stkd_keras.evaluation.scores import compiled, predict_logits
from stkd_keras.export import converters, runtimes
from stkd_keras.export.converters import LABELS, conversion_errors, quiet, serving_model
from stkd_keras.files.json_files import write_json
from stkd_keras.files.write_errors import check_folder, unwritable

BATCH = 128
"""Images per batch, both for evaluation and for throughput."""
LOW_AGREEMENT = 0.9


@dataclasses.dataclass(frozen=True)
class Format:
    """A format: its file and input, where its labels are, and how it is written and run."""

    file: str
    dtype: str
    labels: str
    packages: tuple[str, ...]
    write: Callable
    load: Callable[[pathlib.Path], runtimes.Run]


_LITERT = f"associated file {LABELS}", ("ai-edge-litert",)
FORMATS = {
    "saved_model": Format(
        "saved_model", "float32", f"assets.extra/{LABELS}", ("tensorflow",),
        converters.write_saved_model, runtimes.run_saved_model,
    ),
    "litert": Format(
        "student.tflite", "float32", *_LITERT, converters.write_litert, runtimes.run_litert
    ),
    "litert_int8": Format(
        "student_int8.tflite", "uint8", *_LITERT, converters.write_litert_int8, runtimes.run_litert
    ),
    "onnx": Format(
        "student.onnx", "float32", "metadata class_names, a JSON list",
        ("onnxruntime", "tf2onnx", "onnx"), converters.write_onnx, runtimes.run_onnx,
    ),
}  # fmt: skip
"""The export formats by name."""


def export(
    student: keras.Model,
    dataset: Dataset,
    formats: Sequence[str],
    folder: str | os.PathLike,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Exports a student and evaluates each file in its own runtime on all test images.

    Every file takes `pixels` in [0, 255] of shape (batch, height, width, channels), with any batch
    size, and returns `probabilities`, float32 (batch, classes). Pixels are float32, or uint8 for
    "litert_int8". Each file contains the class names. docs/export.md shows how to run the files.

    Writes all files and export.json, or none of them if anything fails. Existing files of other
    formats are kept.

    Args:
        student: any Keras classifier.
        dataset: the data set. Evaluation uses its test images; "litert_int8" takes its quantization
            ranges from training images.
        formats: names from `FORMATS`: "saved_model", "litert" (`student.tflite`), "litert_int8"
            (`student_int8.tflite`) and "onnx" (`student.onnx`).
        folder: the folder to write to. It is created if it doesn't exist.
        temperature: divides the logits before the softmax, as `experiment.calibrate` returns it;
            None for the student's own probabilities.

    Returns:
        The content of export.json: "student", the scores of the Keras model; "formats", a dict of
        each format's "file", its inputs ("takes") and outputs ("gives"), the location of its class
        names ("labels"), its "runtime" and its scores; "dataset"; "images", the number of test
        images; "class_names"; "temperature"; and "machine". Scores are "bytes", "accuracy",
        "latency_ms" (median, one image per call), "images_per_second" (128 per call) and, for
        files, "agreement", the fraction of images for which file and student predict the same
        class, and "largest_difference", the largest difference between their probabilities, the
        student's being calibrated, too.

    Raises:
        InputError: if a format is unknown or its packages aren't installed, the student doesn't fit
            the data set or the format, the temperature isn't positive, or the folder can't be
            written.

    Example:

    ```python
    student = keras.saving.load_model("student.keras")
    dataset = stkd_keras.data.load("folder", "photographs", image_size=64)
    experiment.export(student, dataset, ["litert", "onnx"], "exported")
    ```
    """
    formats = check_export(formats, folder)
    if temperature is not None and not is_positive(temperature):
        raise InputError(f"temperature is {temperature!r}, but must be a positive number, or None")
    _check_fits(student, dataset)
    with _new_files(pathlib.Path(folder)) as new:
        for name in formats:
            form = FORMATS[name]
            print(f"writing {form.file}", flush=True)
            start = time.monotonic()
            with (
                conversion_errors(name, student),
                serving_model(student, dataset.image_shape, form.dtype, temperature) as model,
            ):
                form.write(new / form.file, model, dataset)
            print(f"wrote {form.file} in {time.monotonic() - start:.0f} s", flush=True)
        content = _evaluate_all(formats, new, student, dataset, temperature)
        write_json(new / "export.json", content)
    return content


def check_export(formats: Sequence[str], folder: str | os.PathLike) -> list[str]:
    """Checks the formats and the folder of an export; returns the distinct formats in order."""
    if not formats:
        raise InputError(f"no export format is given; expected some of {', '.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("export format", name, FORMATS)
    folder = pathlib.Path(folder)
    check_folder(f"the export folder {folder}", folder)
    for name in formats:
        _check_installed(name)
        _check_replaceable(folder / FORMATS[name].file, is_folder=name == "saved_model")
    _check_replaceable(folder / "export.json", is_folder=False)
    return [name for name in FORMATS if name in formats]


def format_export(content: dict[str, Any]) -> str:
    """Formats the result of `export` as a table for the terminal, with fractions in percent."""
    rows = [["", "size", "accuracy", "agreement", "difference", "latency", "images/s", "runtime"]]
    for name, scores in {"student.keras": content["student"], **content["formats"]}.items():
        rows.append(
            [
                scores.get("file", name),
                f"{scores['bytes'] / 1e3:,.1f} kB",
                f"{100 * scores['accuracy']:.2f} %",
                f"{100 * scores['agreement']:.2f} %" if "agreement" in scores else "",
                f"{scores['largest_difference']:.1g}" if "agreement" in scores else "",
                f"{scores['latency_ms']:.2f} ms",
                f"{scores['images_per_second']:,.0f}",
                scores["runtime"],
            ]
        )
    lines = ["{:<20}{:>12}{:>10}{:>11}{:>12}{:>12}{:>10}  {}".format(*row) for row in rows]
    for scores in content["formats"].values():
        if scores["agreement"] < LOW_AGREEMENT:
            lines.append(
                f"warning: {scores['file']} predicts another class than the student for "
                f"{100 * (1 - scores['agreement']):.0f} % of the images"
            )
    where = f"{content['images']:,} test images of {content['dataset']}, {content['machine']}"
    if content.get("temperature") is not None:
        where += f"\nprobabilities are calibrated with temperature {content['temperature']:.4g}"
    return "\n".join([*lines, where])


@contextlib.contextmanager
def _new_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, whose content moves to `folder` at the end."""
    temporary = folder / ".unfinished-export"
    new, old = temporary / "new", temporary / "old"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # A killed process may have left it.
        new.mkdir(parents=True)
        old.mkdir()
        yield new
        for path in sorted(new.iterdir()):
            if (folder / path.name).is_dir():  # `replace` only replaces empty folders.
                (folder / path.name).replace(old / path.name)
            path.replace(folder / path.name)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_installed(name: str) -> None:
    packages = FORMATS[name].packages
    problem = f"the export format {name} needs {' and '.join(packages)}, but can't import them"
    with explain_errors(problem, f"pip install {' '.join(packages)}"), quiet():
        for package in packages:
            importlib.import_module(package.replace("-", "_"))


def _check_replaceable(path: pathlib.Path, is_folder: bool) -> None:
    if not os.path.lexists(path):
        return
    is_export = (path / "saved_model.pb").is_file() if is_folder else path.is_file()
    if not is_export or path.is_symlink():
        raise InputError(
            f"{path} exists and isn't from an export: choose another folder, or move it away"
        )


def _check_fits(student: keras.Model, dataset: Dataset) -> None:
    check_student(student)
    if not student.built or not student.weights:
        raise InputError(
            f"the student {student.name!r} has no weights yet: load the trained model, or call it "
            "on a batch"
        )
    shape, classes = outputs.input_shape(student), outputs.num_classes(student, "student")
    fits = shape is None or outputs.compatible(shape, dataset.image_shape)
    if not fits or classes not in (None, dataset.num_classes):
        raise InputError(
            f"the student {student.name!r} takes images of shape {shape} and has {classes} "
            f"classes, but {dataset.name} has images of shape {dataset.image_shape} and "
            f"{dataset.num_classes} classes: use the data it was trained on"
        )
    outputs.resolve_outputs(student, "auto", "student")


def _evaluate_all(
    formats: Sequence[str],
    folder: pathlib.Path,
    student: keras.Model,
    dataset: Dataset,
    temperature: float | None,
) -> dict[str, Any]:
    """Evaluates the student and all files; returns the content of export.json."""
    classifier = compiled(outputs.logits_function(student), dataset.image_shape)

    def run_student(pixels: np.ndarray) -> np.ndarray:
        return tf.nn.softmax(classifier(tf.constant(pixels)) / (temperature or 1.0)).numpy()

    expected, scores = _evaluate("the student", run_student, "float32", dataset)
    content: dict[str, Any] = {
        "student": {
            "bytes": file_bytes([student]),
            **scores,
            "runtime": f"tensorflow {tf.__version__}",
        },
        "formats": {},
        "dataset": dataset.name,
        "images": len(dataset.test),
        "class_names": converters.as_text(dataset.class_names),
        "temperature": temperature,
        "machine": machine(),
    }
    shape = ", ".join(map(str, dataset.image_shape))
    for name in formats:
        form = FORMATS[name]
        with conversion_errors(name, student):
            run = form.load(folder / form.file)
            given, scores = _evaluate(form.file, run, form.dtype, dataset)
        content["formats"][name] = {
            "file": form.file,
            "takes": f"pixels, {form.dtype} (batch, {shape}) in [0, 255]",
            "gives": f"probabilities, float32 (batch, {dataset.num_classes})",
            "labels": form.labels,
            "bytes": _size(folder / form.file),
            **scores,
            "agreement": float((given.argmax(axis=1) == expected.argmax(axis=1)).mean()),
            "largest_difference": float(np.abs(given - expected).max()),
            "runtime": f"{form.packages[0]} {importlib.metadata.version(form.packages[0])}",
        }
    return content


def _evaluate(
    what: str, run: runtimes.Run, dtype: str, dataset: Dataset
) -> tuple[np.ndarray, dict[str, float]]:
    """Runs a classifier on all test images; returns its probabilities and scores."""
    print(f"running {what} on the {len(dataset.test):,} test images", flush=True)
    batches = evaluation_pipeline(dataset.test, BATCH)
    probabilities, labels = predict_logits(
        lambda pixels: tf.constant(run(pixels.numpy().astype(dtype))), batches
    )
    first = next(iter(batches.take(1)))[0].numpy().astype(dtype)
    pixels = np.resize(first, (BATCH, *first.shape[1:]))
    [one] = median_seconds(lambda: run(pixels[:1]), seconds=1.5)
    [many] = median_seconds(lambda: run(pixels), seconds=1.5)
    return probabilities, {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "latency_ms": 1e3 * one,
        "images_per_second": BATCH / many,
    }


def _size(path: pathlib.Path) -> int:
    """Returns the size of a file, or of all files in a folder, in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
