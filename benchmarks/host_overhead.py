"""Measures what a training step costs on the host: ours in relation to Keras's `fit`.

    python benchmarks/host_overhead.py

trains a student with one convolution on batches of eight images, so that almost all of a step is
the work of Python and of TensorFlow's executor. Contenders alternate in this process, one `fit`
each per round. It prints a Markdown table of medians, followed by ratios, and takes about two
minutes on two cores. `--count_ops` prints the number of graph operations of a step as well.
"""

import collections
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

import stkd_keras
from stkd_keras.cli import app

STEPS = flags.DEFINE_integer("steps", 500, "steps of each fit", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "timed fits of each contender", lower_bound=1)
EXECUTION = flags.DEFINE_integer("steps_per_execution", 50, "of the last contender", lower_bound=1)
COUNT_OPS = flags.DEFINE_bool("count_ops", False, "whether to count the operations of a step")
MOST_FREQUENT = 12  # kinds of operations that --count_ops lists

KERAS, OURS, MANY = "Keras's fit of the student", "ours", "ours, many steps per execution, XLA"


def main() -> None:
    """Runs the benchmark."""
    models = contenders()
    batches = noise()
    milliseconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(1 + ROUNDS.value):
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(batches, steps_per_epoch=STEPS.value, verbose=0)
            if number:  # The first fit compiles.
                taken = time.perf_counter() - start
                milliseconds[name].append(1e3 * taken / STEPS.value)
    medians = {name: statistics.median(taken) for name, taken in milliseconds.items()}
    print("| step | median | range |\n|---|---|---|")
    for name, taken in milliseconds.items():
        print(f"| {name} | {medians[name]:.2f} ms | {min(taken):.2f} to {max(taken):.2f} |")
    print("\n| ratio | |\n|---|---|")
    for name in (OURS, MANY):
        print(f"| {name} / {KERAS} | {medians[name] / medians[KERAS]:.3f} |")
    if COUNT_OPS.value:
        for name in (KERAS, OURS):
            print_operations(name, models[name], batches)


def contenders() -> dict[str, keras.Model]:
    """Returns the compiled models by name."""
    student = classifier()
    student.compile(
        keras.optimizers.SGD(0.01),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    ours, many = (
        stkd_keras.SimilarityTransferDistiller(classifier(), classifier()) for _ in range(2)
    )
    ours.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"])
    many.compile(
        keras.optimizers.SGD(0.01),
        metrics=["accuracy"],
        jit_compile=True,
        steps_per_execution=EXECUTION.value,
    )
    return {KERAS: student, OURS: ours, MANY: many}


def classifier() -> keras.Model:
    """Returns a model with one convolution that gives logits."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )


def noise() -> tf.data.Dataset:
    """Returns an endless data set of one batch."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (8, 8, 8, 3)).astype("float32")
    labels = np.eye(10, dtype="float32")[rng.integers(0, 10, 8)]
    return tf.data.Dataset.from_tensors((images, labels)).repeat().prefetch(tf.data.AUTOTUNE)


def print_operations(name: str, model: keras.Model, batches: tf.data.Dataset) -> None:
    """Prints how many operations the model's training step has, and the most frequent kinds."""
    step = tf.function(model.train_step, autograph=False)
    definition = step.get_concrete_function(next(iter(batches))).graph.as_graph_def()
    bodies = [definition.node, *(body.node_def for body in definition.library.function)]
    kinds = collections.Counter(node.op for nodes in bodies for node in nodes)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(MOST_FREQUENT))
    print(f"\n{name}: {kinds.total()} operations in {len(bodies)} graphs: {listed}")


if __name__ == "__main__":
    app.run(main, __doc__)
