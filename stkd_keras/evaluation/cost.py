"""Parameters, multiply-adds, file size and latency of classifiers."""

import math
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf

BATCH_SIZES = (1, 128)
FEWEST_ROUNDS, MOST_ROUNDS = 3, 50


def num_parameters(model: keras.Model) -> int:
    """Returns the number of trainable parameters, even if the model is frozen."""
    variables = {
        id(variable): math.prod(variable.shape)
        for layer in model._flatten_layers()
        for variable in layer._trainable_variables
    }
    return sum(variables.values())


def multiply_adds(
    classifier: Callable[[tf.Tensor], tf.Tensor], image_shape: Sequence[int]
) -> int | None:
    """Counts multiply-adds of convolutions and matrix products per image; None if unknown."""
    images = tf.TensorSpec([1, *image_shape], tf.float32)
    graph = tf.function(lambda x: classifier(x)).get_concrete_function(images).graph
    counts = [_count(operation) for operation in _operations(graph)]
    return None if None in counts else sum(counts)  # type: ignore[arg-type]


def file_bytes(models: Iterable[keras.Model]) -> int:
    """Returns the total size of the models' `.keras` files in bytes."""
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.keras")
        for model in models:
            model.save(file)
            total += os.path.getsize(file)
    return total


def median_seconds(*calls: Callable[[], object], seconds: float) -> list[float]:
    """Returns the median duration of each call in seconds.

    The calls take turns, so that a disturbance affects all of them. After two warm-up rounds, 3 to
    50 rounds are timed, until `seconds` are over.
    """
    for call in (*calls, *calls):
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        for call, of_call in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            of_call.append(time.perf_counter() - start)
    return [statistics.median(of_call) for of_call in times]


def machine() -> str:
    """Returns a description of the GPUs, if any, and the CPU."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join([*gpus, f"{count} cores of {_processor()}"])


# Branches, and Python functions, such as a call of ONNX Runtime.
_UNKNOWN = (
    "While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "PyFunc", "EagerPyFunc"
)  # fmt: skip
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def _operations(graph) -> Iterable[tf.Operation]:
    """Yields the operations of a graph and of the functions it calls."""
    for operation in graph.get_operations():
        if operation.type in _CALLS:
            yield from _operations(graph._get_function(operation.get_attr("f").name).graph)
        else:
            yield operation


def _count(operation: tf.Operation) -> int | None:
    """Counts the multiply-adds of one operation; None if unknown."""
    kind = operation.type
    if kind in _UNKNOWN:
        return None
    shapes = [tensor.shape for tensor in operation.inputs]
    if kind in ("Conv2D", "Conv3D", "DepthwiseConv2dNative"):
        # Each output position uses every kernel entry once.
        return _product(operation.outputs[0].shape[:-1], shapes[1])
    if kind == "Conv2DBackpropInput":  # A transposed convolution.
        return _product(shapes[2][:-1], shapes[1])
    if kind in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
        is_transposed = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        return _product(operation.outputs[0].shape, shapes[0][-2 if is_transposed else -1 :][:1])
    if kind == "Einsum":
        return _count_einsum(operation.get_attr("equation").decode(), shapes)
    return 0


def _count_einsum(equation: str, shapes: list[tf.TensorShape]) -> int | None:
    """Returns the product of the sizes of all axes in an equation."""
    sizes: dict[str, int | None] = {}
    for names, shape in zip(equation.partition("->")[0].split(","), shapes, strict=True):
        before, ellipsis, after = names.partition("...")
        count = len(shape) - len(before) - len(after)
        between = [f"...{n}" for n in range(count)] if ellipsis else []
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
