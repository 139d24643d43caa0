"""A trained classifier as a file for other runtimes: pixels go in, probabilities come out."""

import contextlib
import io
import json
import logging
import os
import pathlib
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from stkd_keras.classifiers.outputs import compute_in, resolve_outputs
from stkd_keras.data import AnySplit
from stkd_keras.data.dataset import some_images
from stkd_keras.errors import InputError, one_line

LABELS = "labels.txt"
"""The file with the names of the classes, one a line, in a SavedModel and in a LiteRT file."""
REPRESENTATIVE_IMAGES = 300
"""Training images that the ranges of integers are chosen by."""


def serving_function(
    student: keras.Model, image_shape: tuple[int, int, int], dtype: str = "float32"
) -> Any:
    """Returns what is exported: the classifier in inference, with the softmax if it has none.

    A classifier of mixed precision computes in float32 there, which every runtime knows.

    Args:
        student: any Keras classifier.
        image_shape: (height, width, channels).
        dtype: of the pixels, "float32" or "uint8".

    Returns:
        A traced `tf.function` from `pixels`, (batch, height, width, channels) in [0, 255], to a
        dict of `probabilities`, float32 (batch, classes).

    Raises:
        InputError: as `stkd_keras.outputs.resolve_outputs` with "auto".
    """
    has_softmax = resolve_outputs(student, "auto", "student") == "probabilities"
    signature = [tf.TensorSpec([None, *image_shape], dtype, name="pixels")]

    @tf.function(input_signature=signature)
    def serve(pixels):
        answers = student(tf.cast(pixels, tf.float32), training=False)
        answers = tf.cast(answers, tf.float32)
        return {"probabilities": answers if has_softmax else tf.nn.softmax(answers)}

    with _in_float32(student):
        serve.get_concrete_function()
    return serve


def write_saved_model(
    folder: pathlib.Path, student: keras.Model, serve: Any, class_names: Sequence[str]
) -> None:
    """Writes a SavedModel whose `serving_default` is the serving function.

    The names of the classes are in its `assets.extra/labels.txt`.

    Args:
        folder: where to; it must not be there.
        student: the classifier, whose weights the function uses.
        serve: of `serving_function`.
        class_names: one for each class.
    """
    archive = keras.export.ExportArchive()
    archive.track(student)
    archive.add_endpoint("serve", serve)
    archive.write_out(str(folder), verbose=False)
    # The place for what goes with a SavedModel and isn't part of its graph.
    labels = folder / "assets.extra" / LABELS
    labels.parent.mkdir()
    labels.write_bytes(_label_lines(class_names))


def to_litert(saved_model: pathlib.Path, class_names: Sequence[str]) -> bytes:
    """Returns a LiteRT file that computes in float32 what a SavedModel of ours does.

    Args:
        saved_model: of `write_saved_model`.
        class_names: one for each class; they are in the file as its associated file `labels.txt`.
    """
    return _with_labels(_converter(saved_model).convert(), class_names)


def to_litert_int8(
    saved_model: pathlib.Path, class_names: Sequence[str], train_split: AnySplit
) -> bytes:
    """Returns a LiteRT file that computes in integers of 8 bits what a SavedModel of ours does.

    Weights are integers with a scale for each channel, activations with the ranges that 300
    training images have (Jacob et al., arXiv 1712.05877). What makes probabilities of the last
    features stays in float32: in steps of 1/256 of the logits' range many classes would tie.

    Args:
        saved_model: of `write_saved_model`, with pixels in uint8.
        class_names: as of `to_litert`.
        train_split: the training images.
    """
    converter = _converter(saved_model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: _representative(train_split)
    options = tf.lite.experimental.QuantizationDebugOptions
    # The public way to leave a part of a model out of the quantisation.
    quantizer = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=converter.representative_dataset, debug_options=options()
    )
    quantizer.options = options(denylisted_nodes=_head(quantizer.calibrated_model))
    return _with_labels(quantizer.get_nondebug_quantized_model(), class_names)


def to_onnx(serve: Any, class_names: Sequence[str]) -> bytes:
    """Returns an ONNX file of the serving function.

    Args:
        serve: of `serving_function`.
        class_names: one for each class; they are in the metadata as `class_names`, a JSON list.
    """
    import onnx.checker
    import tf2onnx

    # Of what a function captures, such as a Normalization's mean, tf2onnx would make inputs.
    frozen = convert_variables_to_constants_v2(serve.get_concrete_function())

    @tf.function(input_signature=serve.input_signature)
    def constant(pixels):
        return {"probabilities": frozen(pixels)[0]}

    model, _ = tf2onnx.convert.from_function(
        constant, serve.input_signature, custom_op_handlers={"Erfc": (_erfc_of_erf, [])}
    )
    onnx.checker.check_model(model)  # What has no counterpart is left in it as it was.
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    names = json.dumps(as_text(class_names), ensure_ascii=False)
    model.metadata_props.add(key="class_names", value=names)
    return model.SerializeToString()


@contextlib.contextmanager
def refused_by_name(name: str, student: keras.Model) -> Iterator[None]:
    """Gives what a converter can't do one line.

    Args:
        name: of the format.
        student: the classifier that it can't take.

    Raises:
        InputError: in place of its errors, but for those of the operating system.
    """
    try:
        with quiet():
            yield
    except (InputError, OSError):
        raise
    except tf.errors.OpError as error:
        if not re.search("No space left|Disk quota|Permission denied|Read-only", error.message):
            raise _not_made(name, student, error) from error
        raise OSError(0, one_line(error.message.rpartition("; ")[2])) from error
    except Exception as error:  # Each converter has kinds of its own.
        raise _not_made(name, student, error) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what TensorFlow, converters and runtimes write of their work from the terminal.

    What goes wrong there is a Python exception.
    """
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


@contextlib.contextmanager
def _in_float32(model: keras.Model) -> Iterator[None]:
    """Has a model compute in float32 for a while."""
    layers = model._flatten_layers(include_self=False)
    policies = [
        (layer, layer.dtype_policy) for layer in layers if not isinstance(layer, keras.Model)
    ]
    if any(layer.compute_dtype in ("float16", "bfloat16") for layer, _ in policies):
        compute_in(model, "float32")
    try:
        yield
    finally:
        for layer, policy in policies:
            if layer.dtype_policy != policy:
                layer.dtype_policy = policy


def _erfc_of_erf(context, node, name, arguments) -> None:
    """Has tf2onnx write erfc(x), of which Keras makes GELU and ONNX has none, as 1 - erf(x)."""
    erf = context.make_node("Erf", [node.input[0]])
    one = context.make_const(f"{name}_one", np.array(1, np.float32))
    node.type, node.domain = "Sub", ""
    context.replace_inputs(node, [one.output[0], erf.output[0]])


def _converter(saved_model: pathlib.Path) -> tf.lite.TFLiteConverter:
    return tf.lite.TFLiteConverter.from_saved_model(
        str(saved_model), signature_keys=["serving_default"]
    )


def _representative(split: AnySplit) -> Iterator[list[np.ndarray]]:
    """Gives single training images to choose ranges by."""
    is_first = True
    for images in some_images(split, REPRESENTATIVE_IMAGES):
        for pixels in images:
            if is_first:
                # Then the first integers are the pixels themselves, with a scale of exactly 1.
                pixels = pixels.copy()
                pixels.flat[:2] = 0, 255
                is_first = False
            yield [pixels[None]]


def _head(content: bytes) -> list[str]:
    """The tensors of a LiteRT model from its output back to the pooled features, by name."""
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


def _with_labels(content: bytes, class_names: Sequence[str]) -> bytes:
    """Packs the labels as TensorFlow Lite's metadata does: a zip archive behind the model."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        # A fixed time, so that the same model is the same file.
        archive.writestr(zipfile.ZipInfo(LABELS), _label_lines(class_names))
    return file.getvalue()


def _label_lines(class_names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in as_text(class_names)).encode()


def as_text(class_names: Sequence[str]) -> list[str]:
    """The names as text of one line each: those of folders may hold anything."""
    return [
        " ".join(name.encode(errors="backslashreplace").decode().splitlines())
        for name in class_names
    ]


def _not_made(name: str, student: keras.Model, error: Exception) -> InputError:
    missing = sorted(set(re.findall(r"'(tf\.\w+)' op is neither", str(error))))
    why = f"it has no counterpart of {', '.join(missing)}" if missing else one_line(error)
    return InputError(
        f"can't export {student.name!r} to {name} ({why}); expected a classifier of operations "
        f"that {name} has: leave {name} out, or take another model"
    )
