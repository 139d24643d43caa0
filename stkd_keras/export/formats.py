"""A student as files for other runtimes, each tried by its own runtime on the test images."""

import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers.outputs import (
    compatible,
    input_shape,
    logits_function,
    num_classes,
    resolve_outputs,
)
from stkd_keras.data import Dataset, evaluation_pipeline
from stkd_keras.distillation.checks import check_student
from stkd_keras.errors import InputError, unknown_name
from stkd_keras.evaluation.cost import machine
from stkd_keras.evaluation.scores import compiled, predict_logits
from stkd_keras.export import converters, runtimes
from stkd_keras.export.converters import LABELS, quiet, refused_by_name
from stkd_keras.files.atomic import atomic_folder, write_model
from stkd_keras.files.json_files import write_json
from stkd_keras.files.write_errors import check_folder

BATCH = 128
"""Images a batch, of the test and of the throughput."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file to export to.

    Attributes:
        file: what it is called.
        takes: the dtype of its pixels.
        labels: where in it the names of the classes are.
        packages: what has to be installed, the runtime first, as pip names it.
        modules: the same, as Python names it.
        load: from the file to a function of pixels.
    """

    file: str
    takes: str
    labels: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    load: Callable[[pathlib.Path], runtimes.Run]


_LITERT = {
    "labels": f"associated file {LABELS}",
    "packages": ("ai-edge-litert",),
    "modules": ("ai_edge_litert.interpreter",),
    "load": runtimes.run_litert,
}
FORMATS = {
    "saved_model": Format(
        "saved_model",
        "float32",
        f"assets.extra/{LABELS}",
        ("tensorflow",),
        ("tensorflow",),
        runtimes.run_saved_model,
    ),
    "litert": Format("student.tflite", "float32", **_LITERT),  # type: ignore[arg-type]
    "litert_int8": Format("student_int8.tflite", "uint8", **_LITERT),  # type: ignore[arg-type]
    "onnx": Format(
        "student.onnx",
        "float32",
        "metadata class_names, a JSON list",
        ("onnxruntime", "tf2onnx", "onnx"),
        ("onnxruntime", "tf2onnx", "onnx"),
        runtimes.run_onnx,
    ),
}
"""The formats that `export` knows, by name."""


def export(
    student: keras.Model,
    dataset: Dataset,
    formats: Sequence[str],
    folder: str | os.PathLike,
) -> dict[str, Any]:
    """Exports a student, and tries each file by its own runtime on all the test images.

    Every file takes pixels in [0, 255], channels last, of the data set's image size and any number
    of images a call, as `pixels`, and gives `probabilities`, float32 (batch, classes). Pixels are
    float32, of "litert_int8" uint8. The names of the classes are in each file. docs/export.md says
    how to run them.

    The folder then has the files and export.json, all of them or, where anything fails, what was
    there before. Files of formats that aren't named stay.

    Args:
        student: any Keras classifier.
        dataset: of its test images all are tried; its training images choose the ranges of
            "litert_int8".
        formats: of `FORMATS`: "saved_model", "litert" (`student.tflite`), "litert_int8"
            (`student_int8.tflite`) and "onnx" (`student.onnx`).
        folder: where to; it is made if it is missing.

    Returns:
        The content of export.json: "student", the Keras model's own numbers; "formats", of each
        its "file", what it "takes" and "gives", where the class names are ("labels"), its
        "runtime", and the numbers; "dataset", the number of test "images", "class_names", the
        "machine". The numbers are "bytes", "accuracy", "latency_ms" (median, one image a call),
        "images_per_second" (128 a call) and, of files, "agreement", the share of images for which
        they name the same class as the student, and "largest_difference" of probabilities.

    Raises:
        InputError: for a format that isn't known or whose packages aren't installed, a student
            that doesn't fit the data set or that a format can't hold, or a folder that can't be
            written.

    Example:

    ```python
    student = keras.saving.load_model("student.keras")
    dataset = stkd_keras.data.load("folder", "photographs", image_size=64)
    experiment.export(student, dataset, ["litert", "onnx"], "exported")
    ```
    """
    formats = check_export(formats, folder)
    _check_fits(student, dataset)
    with atomic_folder(folder) as new:
        for name in formats:
            print(f"making {FORMATS[name].file}", flush=True)
            with refused_by_name(name, student):
                _write(name, new, student, dataset)
        content = _try_all(formats, new, student, dataset)
        write_json(new / "export.json", content)
    return content


def check_export(formats: Sequence[str], folder: str | os.PathLike) -> list[str]:
    """Refuses what `export` can't do, before anything slow is done.

    Args:
        formats: as of `export`.
        folder: likewise.

    Returns:
        The formats, each once, in the order in which they are made.

    Raises:
        InputError: as `export`.
    """
    if not formats:
        raise InputError(f"no format to export to; expected some of {', '.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("export format", name, FORMATS)
    folder = pathlib.Path(folder)
    check_folder(f"the folder to export to, {folder},", folder)
    for name in formats:
        _check_installed(name)
        _check_replaceable(folder / FORMATS[name].file, is_folder=name == "saved_model")
    _check_replaceable(folder / "export.json", is_folder=False)
    return [name for name in FORMATS if name in formats]


def format_export(content: dict[str, Any]) -> str:
    """Returns what `export` gives as a table for a terminal, shares in percent."""
    rows = [["", "size", "accuracy", "agreement", "difference", "latency", "images/s", "runtime"]]
    for name, numbers in {"student.keras": content["student"], **content["formats"]}.items():
        rows.append(
            [
                numbers.get("file", name),
                f"{numbers['bytes'] / 1e3:,.1f} kB",
                f"{100 * numbers['accuracy']:.2f} %",
                f"{100 * numbers['agreement']:.2f} %" if "agreement" in numbers else "",
                f"{numbers['largest_difference']:.1g}" if "agreement" in numbers else "",
                f"{numbers['latency_ms']:.2f} ms",
                f"{numbers['images_per_second']:,.0f}",
                numbers["runtime"],
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, runtime in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, runtime]))
    where = f"{content['images']:,} test images of {content['dataset']}, {content['machine']}"
    return "\n".join([*lines, where])


def _check_installed(name: str) -> None:
    for module in FORMATS[name].modules:
        try:
            with quiet():
                importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"to export to {name} takes {' and '.join(FORMATS[name].packages)}, but "
                f"{module} can't be imported ({error}): "
                f"pip install {' '.join(FORMATS[name].packages)}"
            ) from error


def _check_replaceable(path: pathlib.Path, is_folder: bool) -> None:
    """Refuses to replace what no export has written."""
    if not os.path.lexists(path):
        return
    is_ours = (path / "saved_model.pb").is_file() if is_folder else path.is_file()
    if not is_ours or path.is_symlink():
        raise InputError(
            f"{path} is there and isn't of an export, which would replace it: name another folder, "
            "or move it away"
        )


def _check_fits(student: keras.Model, dataset: Dataset) -> None:
    check_student(student)
    if not student.built or not student.weights:
        raise InputError(
            f"the student {student.name!r} has no weights yet: load the trained model, or call it "
            "on a batch"
        )
    resolve_outputs(student, "auto", "student")
    shape, classes = input_shape(student), num_classes(student, "student")
    if shape is not None and not compatible(shape, dataset.image_shape):
        raise InputError(
            f"the student {student.name!r} takes images of shape {shape}, but those of "
            f"{dataset.name} are {dataset.image_shape}: give it the data it was trained on"
        )
    if classes not in (None, dataset.num_classes):
        raise InputError(
            f"the student {student.name!r} has {classes} classes and {dataset.name} "
            f"{dataset.num_classes}: give it the data it was trained on"
        )


def _write(name: str, folder: pathlib.Path, student: keras.Model, dataset: Dataset) -> None:
    """Writes one format."""
    form, names = FORMATS[name], dataset.class_names
    serve = converters.serving_function(student, dataset.image_shape, form.takes)
    if name == "saved_model":
        converters.write_saved_model(folder / form.file, student, serve, names)
    elif name == "onnx":
        (folder / form.file).write_bytes(converters.to_onnx(serve, names))
    else:
        # LiteRT's converter reads SavedModels.
        with tempfile.TemporaryDirectory(dir=folder) as between:
            saved_model = pathlib.Path(between) / "saved_model"
            converters.write_saved_model(saved_model, student, serve, names)
            if name == "litert":
                content = converters.to_litert(saved_model, names)
            else:
                content = converters.to_litert_int8(saved_model, names, dataset.train)
        (folder / form.file).write_bytes(content)


def _try_all(
    formats: Sequence[str], folder: pathlib.Path, student: keras.Model, dataset: Dataset
) -> dict[str, Any]:
    """Runs the student and the files, and returns the content of export.json."""
    write_model(folder / "student.keras", student)
    classifier = compiled(logits_function(student), dataset.image_shape)
    expected, numbers = _try(
        "the student",
        lambda pixels: tf.nn.softmax(classifier(tf.constant(pixels))).numpy(),
        "float32",
        dataset,
    )
    of_student = {
        "bytes": _size(folder / "student.keras"),
        **numbers,
        "runtime": f"tensorflow {tf.__version__}",
    }
    (folder / "student.keras").unlink()
    height, width, channels = dataset.image_shape
    of_formats = {}
    for name in formats:
        form = FORMATS[name]
        with refused_by_name(name, student):
            run = form.load(folder / form.file)
            given, numbers = _try(form.file, run, form.takes, dataset)
        of_formats[name] = {
            "file": form.file,
            "takes": f"pixels, {form.takes} (batch, {height}, {width}, {channels}) in [0, 255]",
            "gives": f"probabilities, float32 (batch, {dataset.num_classes})",
            "labels": form.labels,
            "bytes": _size(folder / form.file),
            **numbers,
            "agreement": float((given.argmax(axis=1) == expected.argmax(axis=1)).mean()),
            "largest_difference": float(np.abs(given - expected).max()),
            "runtime": f"{form.packages[0]} {importlib.metadata.version(form.packages[0])}",
        }
    return {
        "student": of_student,
        "formats": of_formats,
        "dataset": dataset.name,
        "images": len(dataset.test),
        "class_names": converters.as_text(dataset.class_names),
        "machine": machine(),
    }


def _try(
    what: str, run: runtimes.Run, dtype: str, dataset: Dataset
) -> tuple[np.ndarray, dict[str, float]]:
    """Runs a classifier on all the test images; returns its probabilities, and the numbers."""
    print(f"running {what} on the {len(dataset.test):,} test images", flush=True)
    batches = evaluation_pipeline(dataset.test, BATCH)

    def answer(pixels: tf.Tensor) -> tf.Tensor:
        return tf.constant(run(pixels.numpy().astype(dtype)))

    probabilities, labels = predict_logits(answer, batches)
    first = next(iter(batches.take(1)))[0].numpy().astype(dtype)
    pixels = np.resize(first, (BATCH, *first.shape[1:]))
    numbers = {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "latency_ms": 1e3 * runtimes.median_seconds(run, pixels[:1]),
        "images_per_second": BATCH / runtimes.median_seconds(run, pixels),
    }
    return probabilities, numbers


def _size(path: pathlib.Path) -> int:
    """The bytes of a file, or of all the files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
