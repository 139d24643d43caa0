"""Teachers in ONNX files, run by ONNX Runtime on the CPU."""

import hashlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from stkd_keras import FrozenTeacher
from stkd_keras.errors import InputError, explain_errors, one_line

PerChannel = float | Sequence[float] | None


def load_onnx(
    file: str | os.PathLike,
    image_shape: Sequence[int],
    *,
    mean: PerChannel = None,
    std: PerChannel = None,
    outputs: str = "auto",
) -> FrozenTeacher:
    """Loads a classifier from an ONNX file, as exported by PyTorch, scikit-learn, Keras and others.

    The layout, size and type of its input and the number of its classes are taken from the file;
    images of another size are resized bilinearly. If it has several outputs, the one called
    "logits" or "probabilities" is used. The teacher has no inner features, computes without XLA,
    and can't be saved with a distiller: record it (`stkd_keras.record_teacher`).

    Args:
        file: the file, with its external data, if any, in the same folder.
        image_shape: (height, width, channels) of the images.
        mean: mean of the pixels scaled to [0, 1], a number or one per channel.
        std: their standard deviation. With `mean`, the file gets (pixels / 255 - mean) / std. If
            both are None, it gets pixels in [0, 255]; a float input (B, channels, height, width)
            then raises, because such files expect normalized pixels.
        outputs: "logits", "probabilities", or "auto" to tell them apart by running the file.

    Raises:
        InputError: if the file can't be read or isn't a classifier of such images, or if its
            outputs can't be told apart.
    """
    file, image_shape = os.fspath(file), tuple(image_shape)
    session, digest = _open(file)
    source, output = _input_of(session, file), _output_of(session, file)
    is_given = mean is not None or std is not None
    normalization = (
        np.asarray(0.0 if mean is None else mean), np.asarray(1.0 if std is None else std)
    )  # fmt: skip
    if is_given:
        _check_normalization(file, source, image_shape, *normalization)
    network = _Network(session, source, output, *(normalization if is_given else (0.0, 1 / 255)))
    network, outputs_of_probe = _with_layout(network, file, image_shape)
    if network.layout == "NCHW" and network.dtype.kind == "f" and not is_given:
        raise InputError(
            f"{file} takes channels before height and width, as PyTorch's models do, which expect "
            "normalized pixels; give the normalization it was trained with (--teacher_normalization"
            "=imagenet, for example, none for pixels in [0, 1], or raw for [0, 255])"
        )
    kind = _kind(file, outputs_of_probe) if outputs == "auto" else outputs
    digest.update(repr((network.layout, network.mean, network.std)).encode())
    name, classes = pathlib.Path(file).stem, outputs_of_probe.shape[1]
    return FrozenTeacher(_OnnxModel(name, network, image_shape, classes, digest.digest()), kind)


class _Network(NamedTuple):
    """A session, and how to feed it pixels."""

    session: Any
    source: Any
    output: str
    mean: Any
    std: Any
    layout: str = "NHWC"  # Or "NCHW" or "flat".
    size: tuple[int, int] = (0, 0)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_DTYPES[self.source.type])

    @property
    def shape(self) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in self.source.shape]

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Maps float32 pixels (B, H, W, channels) of the network's size to its outputs (B, C)."""
        pixels = pixels * np.float32(1 / (255 * self.std)) - np.float32(self.mean / self.std)
        if self.dtype.kind in "iu":
            pixels = np.rint(pixels)
        if self.layout == "NCHW":
            pixels = pixels.transpose(0, 3, 1, 2)
        elif self.layout == "flat":
            pixels = pixels.reshape(len(pixels), -1)
        pixels = np.ascontiguousarray(pixels, self.dtype)
        batch = self.shape[0] or max(1, len(pixels))
        # The last batch is filled up with the first images.
        padded = np.resize(pixels, (-(-len(pixels) // batch) * batch, *pixels.shape[1:]))
        parts = [
            self.session.run([self.output], {self.source.name: padded[start : start + batch]})[0]
            for start in range(0, len(padded), batch)
        ]
        return np.concatenate(parts)[: len(pixels)].astype(np.float32)


class _OnnxModel(keras.Model):
    """Runs a network as a Keras model of float32 pixels in [0, 255].

    Its only weight is a hash of everything its outputs depend on, for the teacher's fingerprint.
    """

    def __init__(self, name: str, network: _Network, image_shape, num_classes: int, digest: bytes):
        super().__init__(name=name, dtype="float32")
        self.supports_jit = False
        self._network, self._num_classes, self._digest = network, num_classes, digest
        self.build((None, *image_shape))

    def build(self, input_shape):
        digest = np.frombuffer(self._digest, np.uint8)
        self.add_weight(
            digest.shape, lambda *args, **kwargs: digest, "uint8", trainable=False, name="digest"
        )
        self._resizes = input_shape[1:3] != self._network.size
        self.built = True

    def call(self, pixels):
        if self._resizes:
            pixels = tf.image.resize(pixels, self._network.size)
        outputs = tf.numpy_function(self._network.run, [pixels], tf.float32, stateful=False)
        return tf.ensure_shape(outputs, (None, self._num_classes))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self._num_classes)


_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip


def _open(file: str):
    """Returns a session, and a hash of the file and its external data."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Errors are raised, too.
    if hasattr(os, "sched_getaffinity"):
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    providers = ["CPUExecutionProvider"]
    advice = "expected a model exported to ONNX, with its data in the same folder: export it again"
    with explain_errors(f"can't load {file}", advice):
        content = pathlib.Path(file).read_bytes()
        # Reads no file outside of the folder.
        session = onnxruntime.InferenceSession(file, options, providers=providers)
        digest = hashlib.sha256(content)
        graph = onnx.load_model_from_string(content).graph
        for name in sorted({e.value for w in graph.initializer for e in w.external_data
                            if e.key == "location"}):  # fmt: skip
            with (pathlib.Path(file).parent / name).open("rb") as external:
                digest.update(hashlib.file_digest(external, "sha256").digest())
    return session, digest


def _input_of(session, file: str):
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one_line(each.name, 50) for each in inputs) or "none"
        raise InputError(
            f"{file} has {len(inputs)} inputs ({names}), expected one, the images: export a "
            "classifier of images"
        )
    (source,) = inputs
    if source.type not in _DTYPES:
        raise InputError(
            f"the input of {file} is a {source.type}, expected one of {', '.join(_DTYPES)}: export "
            "a classifier of images"
        )
    return source


def _output_of(session, file: str) -> str:
    outputs = {each.name: each.type for each in session.get_outputs()}
    named = [name for name in ("logits", "probabilities") if name in outputs]
    if len(outputs) > 1 and not named:
        raise InputError(
            f"{file} has {len(outputs)} outputs ({one_line(', '.join(outputs), 100)}), expected "
            'one, or one called "logits" or "probabilities": export it with that name (with '
            'skl2onnx, options={"zipmap": False})'
        )
    name = named[0] if len(outputs) > 1 else next(iter(outputs))
    if outputs[name] not in ("tensor(float)", "tensor(float16)", "tensor(double)"):
        raise InputError(
            f"the output {one_line(name, 50)} of {file} is a {outputs[name]}, expected floats "
            "(batch, classes): export its logits or probabilities"
        )
    return name


def _with_layout(network: _Network, file: str, image_shape: tuple) -> tuple[_Network, np.ndarray]:
    """Returns the network in the layout in which it takes such images, and a probe's outputs."""
    layouts = _layouts(network.shape, image_shape)
    if not layouts:
        raise InputError(
            f"{file} takes inputs of shape {_shown(network.shape)}, but the images have the shape "
            f"(height, width, channels) {image_shape}; expected images with as many channels, in "
            "either layout, or flattened images of this size"
        )
    error: Exception | None = None
    for layout, (height, width) in layouts.items():
        size = (height or image_shape[0], width or image_shape[1])
        network = network._replace(layout=layout, size=size)
        probe = np.random.default_rng(0).uniform(
            0, 255, (network.shape[0] or 4, *size, image_shape[-1])
        )
        try:
            outputs = network.run(probe.astype(np.float32))
        except Exception as reason:  # ONNX Runtime's errors have no common class.
            error = reason
            continue
        _check_outputs(file, outputs)
        return network, outputs
    raise InputError(
        f"{file} can't be run on images of shape {image_shape} ({one_line(error)}); expected a "
        "classifier of such images: export it with its own fixed size"
    ) from error


def _layouts(shape: list[int | None], image_shape: tuple) -> dict[str, tuple]:
    """Returns the layouts that an input of this shape may have, with their height and width."""
    channels = (None, image_shape[-1])
    if len(shape) == 2 and shape[1] in (None, math.prod(image_shape)):
        return {"flat": image_shape[:2]}
    layouts = {}
    if len(shape) == 4 and shape[1] in channels:
        layouts["NCHW"] = (shape[2], shape[3])
    if len(shape) == 4 and shape[3] in channels:
        layouts["NHWC"] = (shape[1], shape[2])
    return layouts


def _check_outputs(file: str, outputs: np.ndarray) -> None:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise InputError(
            f"{file} returns outputs of shape {_shown([None, *outputs.shape[1:]])}, expected "
            "(batch, classes) with at least two classes: export a classifier"
        )
    if not np.isfinite(outputs).all():
        raise InputError(f"{file} returns NaNs or infinities; expected finite logits")


def _check_normalization(file: str, source, image_shape: tuple, mean, std) -> None:
    if "int" in source.type:
        raise InputError(
            f"{file} takes pixels as {source.type}, so it normalizes them itself; leave the "
            "normalization out (--teacher_normalization)"
        )
    if any(np.size(each) not in (1, image_shape[-1]) for each in (mean, std)):
        raise InputError(
            f"the normalization of {file} is for {max(np.size(mean), np.size(std))} channels, but "
            f"the images have {image_shape[-1]}; give one number per channel"
        )


def _kind(file: str, outputs: np.ndarray) -> str:
    """Tells logits from probabilities."""
    if (outputs < 0).any() or (outputs > 1.01).any():
        return "logits"
    if np.allclose(outputs.sum(axis=1), 1, atol=0.01):
        return "probabilities"
    raise InputError(
        f"the outputs of {file} are from 0 to 1 but don't add up to 1; say whether they are logits "
        "or probabilities (--teacher_outputs)"
    )


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
