"""Loads exported classifiers into their runtimes."""

import os
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

Run = Callable[[np.ndarray], np.ndarray]
"""Maps pixels (batch, height, width, channels) to probabilities, float32 (batch, classes)."""


def run_saved_model(path: pathlib.Path) -> Run:
    model = tf.saved_model.load(str(path))
    serve = model.signatures["serving_default"]

    def run(pixels: np.ndarray) -> np.ndarray:
        return serve(pixels=tf.constant(pixels))["probabilities"].numpy()

    run.model = model  # type: ignore[attr-defined] # The function needs it, but holds no reference.
    return run


def run_litert(path: pathlib.Path) -> Run:
    """Loads a LiteRT file into ai_edge_litert, on all cores."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=os.cpu_count() or 1)
    runner = interpreter.get_signature_runner("serving_default")
    return lambda pixels: runner(pixels=pixels)["probabilities"]


def run_onnx(path: pathlib.Path) -> Run:
    """Loads an ONNX file into onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels})[0]
