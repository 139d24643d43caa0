"""What folding batch normalisation saves: the forward pass of every model of the zoo.

    python benchmarks/teacher_forward.py

times, by turns in this process, the model with Keras's own batch normalisation, the zoo's model
(whose normalisation is one fused op), the frozen teacher (folded), and, as the least that could be
reached, the network without any normalisation, and prints the medians as a Markdown table. It
takes about twelve minutes on two cores.
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

MODELS = flags.DEFINE_list("models", None, "names with commas between them (default: all)")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "images of 32x32 pixels", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 11, "calls of each kind that are counted", lower_bound=1)
NOT_COUNTED = 2


def main() -> None:
    """Runs the benchmark."""
    images = np.random.default_rng(0).uniform(0, 255, (BATCH_SIZE.value, 32, 32, 3))
    images = tf.constant(images, tf.float32)
    print("| model | Keras | zoo | folded | none | folded / Keras | folded / zoo ", end="")
    print("| normalisations folded |")
    print("|---|---|---|---|---|---|---|---|")
    for name in MODELS.value or models.available():
        zoo = with_statistics(models.build(name, (32, 32, 3), 100))
        teacher = stkd_keras.FrozenTeacher(zoo)
        calls = [in_inference(clone(zoo)), in_inference(zoo), tf.function(teacher)]
        calls.append(in_inference(without_normalization(clone(zoo))))
        medians = [1000 * statistics.median(seconds) for seconds in by_turns(calls, images)]
        of_keras, own, folded, _ = medians
        print(
            f"| `{name}` | {' | '.join(f'{each:.0f} ms' for each in medians)} "
            f"| {folded / of_keras:.2f} | {folded / own:.2f} "
            f"| {teacher.num_folded} of {teacher.num_normalizations} |",
            flush=True,
        )


def with_statistics(model: keras.Model) -> keras.Model:
    """The model, with shifts that aren't 0: TensorFlow would leave the addition of those out."""
    rng = np.random.default_rng(0)
    for layer in normalizations(model):
        layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


def clone(model: keras.Model) -> keras.Model:
    """The same model as Keras computes it."""
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def without_normalization(model: keras.Model) -> keras.Model:
    """The model, whose normalisations do nothing."""
    for layer in normalizations(model):
        layer.call = lambda inputs, *_, **__: inputs
    return model


def normalizations(model: keras.Model) -> list[keras.layers.Layer]:
    """The model's batch normalisations."""
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def in_inference(model: keras.Model):
    """The compiled call of a model in inference."""
    return tf.function(lambda images: model(images, training=False))


def by_turns(calls: list, images: tf.Tensor) -> list[list[float]]:
    """Returns the seconds of each call, round by round, without those of the first rounds."""
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
