"""Converts classifiers to files for other runtimes, from pixels to probabilities."""

import contextlib
import csv
import io
import json
import logging
import os
import pathlib
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from stkd_keras.classifiers.outputs import compute_in, main_output, resolve_outputs
from stkd_keras.data import AnySplit, Dataset
from stkd_keras.data.dataset import some_images
from stkd_keras.data.sources.threads import with_progress
from stkd_keras.errors import InputError, one_line

LABELS = "labels.txt"
"""The file in a SavedModel or LiteRT file with the class names, one per line."""
CALIBRATION_IMAGES = 300
COMPARED_IMAGES = 10
LARGEST_ERROR = 0.6
"""Root mean squared error in quantization steps; rounding alone gives 0.29."""


@contextlib.contextmanager
def serving_model(
    student: keras.Model,
    image_shape: tuple[int, int, int],
    dtype: str,
    temperature: float | None = None,
) -> Iterator[keras.Model]:
    """Yields a model from `pixels` to a dict of `probabilities`, the names used in every format.

    A temperature divides the logits.
    """
    has_softmax = resolve_outputs(student, "auto", "student") == "probabilities"
    layers = student._flatten_layers(include_self=False)
    policies = [(each, each.dtype_policy) for each in layers if not isinstance(each, keras.Model)]
    if any(layer.compute_dtype in ("float16", "bfloat16") for layer, _ in policies):
        compute_in(student, "float32")
    try:
        pixels = keras.Input(image_shape, dtype=dtype, name="pixels")
        outputs = main_output(student(keras.ops.cast(pixels, "float32"), training=False))
        probabilities = outputs = keras.ops.cast(outputs, "float32")
        if outputs.shape[-1] == 1:  # A sigmoid: the probability of the second of two classes.
            probabilities = keras.ops.concatenate([1 - outputs, outputs], axis=-1)
        elif not has_softmax:
            logits = outputs if temperature is None else outputs / temperature
            probabilities = keras.ops.softmax(logits)
        if has_softmax and temperature is not None:
            # The smallest normal float32 keeps the logarithm finite.
            logits = keras.ops.log(keras.ops.maximum(probabilities, 2.0**-126))
            probabilities = keras.ops.softmax(logits / temperature)
        yield keras.Model(pixels, {"probabilities": probabilities})
    finally:
        for layer, policy in policies:
            if layer.dtype_policy != policy:
                layer.dtype_policy = policy


def write_saved_model(path: pathlib.Path, model: keras.Model, dataset: Dataset) -> None:
    """Writes a SavedModel, with the class names in `assets.extra/labels.txt`."""
    model.export(path, format="tf_saved_model", verbose=False)
    # TensorFlow's folder for additional files.
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / LABELS).write_bytes(_label_lines(dataset.class_names))


def write_litert(path: pathlib.Path, model: keras.Model, dataset: Dataset) -> None:
    """Writes a LiteRT file that computes in float32."""
    # Keras's default also allows TensorFlow operations, which plain LiteRT can't run.
    target = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    model.export(path, format="litert", verbose=False, target_spec=target)
    _add_labels(path, dataset.class_names)


def write_litert_int8(path: pathlib.Path, model: keras.Model, dataset: Dataset) -> None:
    """Writes a LiteRT file with 8-bit integer arithmetic (Jacob et al., arXiv 1712.05877).

    Weights have a scale per channel; 300 training images give the ranges of activations. The
    classifier's head stays in float32: with only 256 steps, many logits would tie. So do operations
    with an error above `LARGEST_ERROR`, typically a MobileNet's first two convolutions.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: with_progress(
            _pixels(dataset.train, CALIBRATION_IMAGES),
            min(CALIBRATION_IMAGES, len(dataset.train)),
            "measuring the ranges of activations",
        )
        # The only public way to exclude a part of a model from quantization.
        options = tf.lite.experimental.QuantizationDebugOptions
        quantizer = tf.lite.experimental.QuantizationDebugger(
            converter=converter,
            debug_dataset=lambda: _pixels(dataset.train, COMPARED_IMAGES),
            debug_options=options(),
        )
        in_float = _head(quantizer.calibrated_model)
        quantizer.options = options(denylisted_nodes=in_float)
        quantizer.options = options(denylisted_nodes=in_float + _imprecise(quantizer))
        path.write_bytes(quantizer.get_nondebug_quantized_model())
    _add_labels(path, dataset.class_names)


def write_onnx(path: pathlib.Path, model: keras.Model, dataset: Dataset) -> None:
    """Writes an ONNX file, with the class names as a JSON list in its metadata."""
    import onnx.checker
    import tf2onnx

    signature = [tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype, name="pixels")]
    traced = tf.function(lambda pixels: model(pixels, training=False), input_signature=signature)
    with _functions_inlined():
        concrete = traced.get_concrete_function()
    # tf2onnx would turn captured constants, such as a Normalization's mean, into inputs.
    frozen = convert_variables_to_constants_v2(concrete)
    constant = tf.function(
        lambda pixels: {"probabilities": frozen(pixels)[0]}, input_signature=signature
    )
    content, _ = tf2onnx.convert.from_function(
        constant, signature, custom_op_handlers={"Erfc": (_erfc_as_erf, [])}
    )
    onnx.checker.check_model(content)  # tf2onnx leaves unsupported operations in the graph.
    for tensor in (*content.graph.input, *content.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    names = json.dumps(as_text(dataset.class_names), ensure_ascii=False)
    content.metadata_props.add(key="class_names", value=names)
    path.write_bytes(content.SerializeToString())


@contextlib.contextmanager
def conversion_errors(name: str, student: keras.Model) -> Iterator[None]:
    """Turns a converter's errors into one line with the format's name; silences its output."""
    try:
        with quiet():
            yield
    except (InputError, OSError):
        raise
    except Exception as error:  # Each converter has its own exception classes.
        message = getattr(error, "message", str(error))
        if re.search("No space left|Disk quota|Permission denied|Read-only", message):
            raise OSError(0, one_line(message.rpartition("; ")[2])) from error
        missing = sorted(set(re.findall(r"'(tf\.\w+)' op is neither", message)))
        why = f"it doesn't support {', '.join(missing)}" if missing else one_line(error)
        raise InputError(
            f"can't export {student.name!r} to {name} ({why}); expected a classifier of operations "
            f"that {name} supports: leave {name} out, or export another model"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences standard error, warnings and logging. Exceptions are still raised."""
    sys.stderr.flush()
    disabled = logging.root.manager.disable
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def as_text(class_names: Sequence[str]) -> list[str]:
    """Returns the class names as one line of valid UTF-8 each; folder names may be neither."""
    return [
        " ".join(name.encode(errors="backslashreplace").decode().splitlines())
        for name in class_names
    ]


@contextlib.contextmanager
def _functions_inlined() -> Iterator[None]:
    """Makes traces include the calls of other functions, which tf2onnx may not support.

    Keras compiles grouped convolutions with XLA, and such functions aren't inlined afterwards.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _erfc_as_erf(context, node, name, arguments) -> None:
    """Converts erfc(x), which Keras's GELU uses and ONNX lacks, to 1 - erf(x)."""
    erf = context.make_node("Erf", [node.input[0]])
    one = context.make_const(f"{name}_one", np.array(1, np.float32))
    node.type, node.domain = "Sub", ""
    context.replace_inputs(node, [one.output[0], erf.output[0]])


def _pixels(split: AnySplit, count: int) -> Iterator[list[np.ndarray]]:
    """Yields the inputs of a LiteRT converter: lists of one batch of one image."""
    images = (image for images in some_images(split, count) for image in images)
    first = next(images).copy()
    # Covers the full range, so that the quantization scale of the pixels is exactly 1.
    first.flat[:2] = 0, 255
    yield [first[None]]
    yield from ([image[None]] for image in images)


def _imprecise(quantizer: tf.lite.experimental.QuantizationDebugger) -> list[str]:
    """Returns the tensors that differ too much if their operation alone is quantized."""
    quantizer.run()
    table = io.StringIO()
    quantizer.layer_statistics_dump(table)
    return [
        row["tensor_name"]
        for row in csv.DictReader(table.getvalue().splitlines())
        if float(row["mean_squared_error"]) ** 0.5 > LARGEST_ERROR * float(row["scale"])
    ]


def _head(content: bytes) -> list[str]:
    """Returns the names of a LiteRT model's tensors from the pooled features to the output."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph, kinds = model.subgraphs[0], schema.BuiltinOperator
    makers = {int(output): operator for operator in graph.operators for output in operator.outputs}
    names, tensor, has_weights = [], int(graph.outputs[0]), False
    while tensor in makers:
        kind = model.operatorCodes[makers[tensor].opcodeIndex].builtinCode
        if has_weights and kind not in (kinds.MEAN, kinds.RESHAPE):
            break
        has_weights = has_weights or kind in (kinds.FULLY_CONNECTED, kinds.CONV_2D)
        names.append(graph.tensors[tensor].name.decode())
        tensor = int(makers[tensor].inputs[0])
    return names


def _add_labels(path: pathlib.Path, class_names: Sequence[str]) -> None:
    """Appends the labels as a zip archive after the model, like TensorFlow Lite metadata."""
    file = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        # ZipInfo has a fixed timestamp, so that equal models give equal files.
        archive.writestr(zipfile.ZipInfo(LABELS), _label_lines(class_names))
    path.write_bytes(file.getvalue())


def _label_lines(class_names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in as_text(class_names)).encode()
