"""Measures how much folding batch normalization speeds up the forward pass of the zoo's models.

    python benchmarks/teacher_forward.py

alternates in this process between the model with Keras's own batch normalization, the zoo's model
(with one fused operation), the frozen teacher (folded), and, as a lower bound, the model without
normalization, and prints the medians as a Markdown table. It takes about twelve minutes on two
cores.
"""

import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import numpy as np
import tensorflow as tf
from absl import flags

import models
import stkd_keras
from stkd_keras.cli import app

MODELS = flags.DEFINE_list("models", None, "comma-separated names (default: all)")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "batch size", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 11, "timed calls of each kind", lower_bound=1)
NOT_COUNTED = 2


def main() -> None:
    """Runs the benchmark."""
    images = np.random.default_rng(0).uniform(0, 255, (BATCH_SIZE.value, 32, 32, 3))
    images = tf.constant(images, tf.float32)
    print("| model | Keras | zoo | folded | none | folded / Keras | folded / zoo ", end="")
    print("| normalizations folded |")
    print("|---|---|---|---|---|---|---|---|")
    for name in MODELS.value or models.available():
        zoo = with_statistics(models.build(name, (32, 32, 3), 100))
        teacher = stkd_keras.FrozenTeacher(zoo)
        calls = [in_inference(clone(zoo)), in_inference(zoo), tf.function(teacher)]
        calls.append(in_inference(without_normalization(clone(zoo))))
        medians = [1000 * statistics.median(seconds) for seconds in alternate(calls, images)]
        of_keras, own, folded, _ = medians
        print(
            f"| `{name}` | {' | '.join(f'{each:.0f} ms' for each in medians)} "
            f"| {folded / of_keras:.2f} | {folded / own:.2f} "
            f"| {teacher.num_folded} of {teacher.num_normalizations} |",
            flush=True,
        )


def with_statistics(model: keras.Model) -> keras.Model:
    """Sets random statistics, since TensorFlow would skip the addition of zeros."""
    rng = np.random.default_rng(0)
    for layer in normalizations(model):
        layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


def clone(model: keras.Model) -> keras.Model:
    """Returns the model with Keras's own layers."""
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def without_normalization(model: keras.Model) -> keras.Model:
    """Turns the model's batch normalization off."""
    for layer in normalizations(model):
        layer.call = lambda inputs, *_, **__: inputs
    return model


def normalizations(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the model's batch normalization layers."""
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def in_inference(model: keras.Model):
    """Returns the compiled inference call of a model."""
    return tf.function(lambda images: model(images, training=False))


def alternate(calls: list, images: tf.Tensor) -> list[list[float]]:
    """Times the calls in turn, and returns seconds without the first rounds."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(NOT_COUNTED + ROUNDS.value):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(images).numpy()
            if number >= NOT_COUNTED:
                seconds.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    app.run(main, __doc__)
