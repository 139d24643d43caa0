"""What a classifier costs: parameters, multiply-adds, the size of its file, and its time."""

import math
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

BATCH_SIZES = (1, 128)
WARM_UP_ROUNDS = 2
MOST_ROUNDS = 30
FEWEST_ROUNDS = 3
SECONDS_A_BATCH_SIZE = 8.0


def num_parameters(model: keras.Model) -> int:
    """Returns how many numbers training changes in a model, whether or not it is frozen now.

    The running statistics of normalisation aren't counted, as papers don't.
    """
    variables = {
        id(variable): math.prod(variable.shape)
        for layer in model._flatten_layers()
        for variable in layer._trainable_variables
    }
    return sum(variables.values())


def multiply_adds(
    classifier: Callable[[tf.Tensor], tf.Tensor], image_shape: Sequence[int]
) -> int | None:
    """Returns how many multiplications a classifier does for one image.

    Those of convolutions and matrix products, each of which is added to a sum, as papers count
    them; biases, normalisation and activations aren't counted.

    Args:
        classifier: a function from images (B, height, width, channels) to logits: a Keras model, a
            `FrozenTeacher`, or `stkd_keras.outputs.logits_function` of a model.
        image_shape: (height, width, channels).

    Returns:
        The number, or None where a loop, a branch or a shape that isn't known beforehand decides.
    """
    images = tf.TensorSpec([1, *image_shape], tf.float32)
    graph = tf.function(lambda x: classifier(x)).get_concrete_function(images).graph
    counts = [_of_operation(operation) for operation in _operations(graph)]
    return None if None in counts else sum(counts)  # type: ignore[arg-type]


def file_bytes(models: Iterable[keras.Model]) -> int:
    """Returns the size of the `.keras` files of models, in bytes."""
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.keras")
        for model in models:
            model.save(file)
            total += os.path.getsize(file)
    return total


def median_seconds(
    classifiers: Mapping[str, Callable[[tf.Tensor], tf.Tensor]],
    image_shape: Sequence[int],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> dict[str, dict[int, float]]:
    """Times classifiers by turns in this process, so that what disturbs one disturbs all.

    Of each batch size two rounds warm up; then come up to 30 that count, at least 3, and no more
    than 8 seconds of them.

    Args:
        classifiers: functions from images to logits by name, best of
            `stkd_keras.evaluation.compiled`.
        image_shape: (height, width, channels).
        batch_sizes: images a call.

    Returns:
        By name and batch size the median of the seconds of a call, from an image in memory to
        logits in memory.
    """
    random = np.random.default_rng(0)
    result: dict[str, dict[int, float]] = {name: {} for name in classifiers}
    for batch_size in batch_sizes:
        images = tf.constant(random.uniform(0, 255, (batch_size, *image_shape)), tf.float32)
        seconds: dict[str, list[float]] = {name: [] for name in classifiers}
        for _ in range(WARM_UP_ROUNDS):
            for call in classifiers.values():
                call(images).numpy()
        end = time.perf_counter() + SECONDS_A_BATCH_SIZE
        for number in range(MOST_ROUNDS):
            if number >= FEWEST_ROUNDS and time.perf_counter() > end:
                break
            for name, call in classifiers.items():
                start = time.perf_counter()
                call(images).numpy()
                seconds[name].append(time.perf_counter() - start)
        for name, times in seconds.items():
            result[name][batch_size] = statistics.median(times)
    return result


def machine() -> str:
    """Returns what the computer is: its GPUs, if TensorFlow uses any, and its processor."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join([*gpus, f"{count} cores of {_processor()}"])


_BRANCHES = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def _operations(graph) -> Iterable[tf.Operation]:
    """The operations of a graph and of the functions that it calls."""
    for operation in graph.get_operations():
        if operation.type in _CALLS:
            yield from _operations(graph._get_function(operation.get_attr("f").name).graph)
        else:
            yield operation


def _of_operation(operation: tf.Operation) -> int | None:
    """The multiplications of one operation; None where they can't be known."""
    kind = operation.type
    if kind in _BRANCHES:
        return None
    shapes = [tensor.shape for tensor in operation.inputs]
    if kind in ("Conv2D", "Conv3D", "DepthwiseConv2dNative"):
        # An output channel, or of a depthwise kernel each of its inputs' several ones, is a sum
        # over the kernel; all the channels together take the whole kernel once a position.
        return _product(operation.outputs[0].shape[:-1], shapes[1])
    if kind == "Conv2DBackpropInput":  # A transposed convolution.
        return _product(shapes[2][:-1], shapes[1])
    if kind in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
        is_transposed = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        return _product(operation.outputs[0].shape, shapes[0][-2 if is_transposed else -1 :][:1])
    if kind == "Einsum":
        return _of_einsum(operation.get_attr("equation").decode(), shapes)
    return 0


def _of_einsum(equation: str, shapes: list[tf.TensorShape]) -> int | None:
    """The product of the sizes of all that an equation names."""
    sizes: dict[str, int | None] = {}
    for names, shape in zip(equation.partition("->")[0].split(","), shapes, strict=True):
        before, ellipsis, after = names.partition("...")
        left_out = len(shape) - len(before) - len(after)
        between = [f"...{n}" for n in range(left_out)] if ellipsis else []
        sizes.update(zip([*before, *between, *after], shape, strict=True))
    return _product(list(sizes.values())) if len(shapes) > 1 else 0


def _product(*shapes) -> int | None:
    sizes = [size for shape in shapes for size in shape]
    return None if None in sizes else math.prod(sizes)


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
