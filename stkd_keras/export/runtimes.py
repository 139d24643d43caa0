"""Exported classifiers, run by their own runtimes: what they answer, and how fast."""

import os
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

Run = Callable[[np.ndarray], np.ndarray]
"""From pixels (batch, height, width, channels) to probabilities, float32 (batch, classes)."""

# Calls and seconds that a time is the median of, whichever is reached first, after the first ones.
_FIRST_CALLS = 3
_MOST_CALLS = 200
_LEAST_CALLS = 5
_SECONDS = 1.5


def run_saved_model(path: pathlib.Path) -> Run:
    """Loads a SavedModel for TensorFlow."""
    model = tf.saved_model.load(str(path))
    serve = model.signatures["serving_default"]

    def run(pixels: np.ndarray) -> np.ndarray:
        return serve(pixels=tf.constant(pixels))["probabilities"].numpy()

    run.model = model  # type: ignore[attr-defined] # It has to live as long as its function.
    return run


def run_litert(path: pathlib.Path) -> Run:
    """Loads a LiteRT file for ai_edge_litert, on all cores."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=os.cpu_count() or 1)
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()

    def run(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape != interpreter.tensor(taken["index"])().shape:
            interpreter.resize_tensor_input(taken["index"], pixels.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(taken["index"], pixels)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return run


def run_onnx(path: pathlib.Path) -> Run:
    """Loads an ONNX file for onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels})[0]


def median_seconds(run: Run, pixels: np.ndarray) -> float:
    """Returns the median time of a call with these pixels, in seconds."""
    for _ in range(_FIRST_CALLS):
        run(pixels)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _MOST_CALLS:
        before = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - before)
        if len(times) >= _LEAST_CALLS and time.perf_counter() - start > _SECONDS:
            break
    return statistics.median(times)
