"""Times training steps in TensorFlow, for gpu.py.

Run as `python gpu_steps.py PART SETTINGS`, PART being "steps" or "replicas" and SETTINGS JSON.
Prints lines of JSON: the name of a row and what is newly known of it.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import numpy as np
import tensorflow as tf
from contenders import (
    as_keras_does,
    build,
    distiller,
    keras_distiller,
    noise,
    record,
    repeated,
    student_alone,
    with_statistics,
)
from gpu_turns import built, report, time_by_turns

import stkd_keras
from stkd_keras.distribution import make_strategy

REPLICA_MEMORY = 16384  # MB

# A model and its batches; None for a contender that only prepares.
Step = tuple[keras.Model, tf.data.Dataset] | None


def main(part: str, settings: dict[str, Any]) -> None:
    """Times one part."""
    tf.get_logger().setLevel("ERROR")  # Warns of functions that are traced for each contender.
    devices = tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("CPU")
    details = tf.config.experimental.get_device_details(devices[0])
    report(None, device=details.get("device_name", "CPU"), tensorflow=tf.__version__)
    if part == "replicas":
        parts = [tf.config.LogicalDeviceConfiguration()] * 2
        if devices[0].device_type == "GPU":
            parts = [tf.config.LogicalDeviceConfiguration(memory_limit=REPLICA_MEMORY)] * 2
        tf.config.set_logical_device_configuration(devices[0], parts)
    found = (replicas if part == "replicas" else contenders)(settings)
    makers = {name: functools.partial(made, make) for name, make in found.items()}
    time_by_turns(built(makers, settings), settings, reset_peak, peak)


def made(make: Callable[[], Step]) -> Callable[[int], int] | None:
    """Builds a contender; returns its loop."""
    step = make()
    return step and loop(*step)


def contenders(settings: dict[str, Any]) -> dict[str, Callable[[], Step]]:
    """Returns functions that build the models and their batches, by name."""
    teacher, student, classes = settings["teacher"], settings["student"], settings["classes"]
    images, labels = noise(settings["batch_size"], classes)
    batches = repeated(images, labels, classes)
    weights = with_statistics(build(teacher, classes), images).get_weights()
    many = {"steps_per_execution": settings["steps_per_execution"]}

    def frozen(**options):
        model = build(teacher, classes)
        model.set_weights(weights)
        return stkd_keras.FrozenTeacher(model, **options)

    def ours(compile_options=None) -> Step:
        return distiller(build(student, classes), frozen(), compile_options), batches

    def in_bfloat16(compile_options=None) -> Step:
        keras.config.set_dtype_policy("mixed_bfloat16")
        made = build(student, classes)
        keras.config.set_dtype_policy("float32")
        return distiller(made, frozen(dtype="bfloat16"), compile_options), batches

    @functools.cache
    def recording():
        # Enough for all rounds, the executions before them, and what tf.data reads ahead.
        each = max(settings["chunk"], settings["steps_per_execution"])
        return record(frozen(), images, labels, classes, (settings["rounds"] + 4) * each + 32)

    def by_replay(compile_options=None) -> Step:
        recorded, attached = recording()
        mixing = stkd_keras.Mixup()
        made = distiller(build(student, classes), recorded, compile_options, mixing=mixing)
        return made, attached

    def of_keras() -> Step:
        made = (as_keras_does(name, classes) for name in (teacher, student))
        return keras_distiller(*made, batches)

    # The last ones are left out first if the time is short.
    return {
        "ours": ours,
        "ours, many steps": lambda: ours(many),
        "Keras as written": of_keras,
        "recording the teacher": lambda: recording() and None,
        "ours by replay, many steps": lambda: by_replay(many),
        "ours, bfloat16, many steps": lambda: in_bfloat16(many),
        "ours, XLA off": lambda: ours({"jit_compile": False}),
        "student alone": lambda: (student_alone(student, classes), batches),
        "ours by replay": by_replay,
        "ours, bfloat16": in_bfloat16,
    }


def replicas(settings: dict[str, Any]) -> dict[str, Callable[[], Step]]:
    """Returns the same for one and for two replicas, which share each batch."""
    teacher, student, classes = settings["teacher"], settings["student"], settings["classes"]
    images, labels = noise(settings["batch_size"], classes)
    batches = repeated(images, labels, classes)

    def one() -> Step:
        model = with_statistics(build(teacher, classes), images)
        return distiller(build(student, classes), model), batches

    def two() -> Step:
        strategy = make_strategy("mirrored") or logical_processors()
        with strategy.scope():
            model = one()[0]
        # Keras creates variables for its metrics in the strategy's scope only within `fit`.
        model.fit(batches, steps_per_epoch=1, verbose=0)
        return model, strategy.experimental_distribute_dataset(batches)

    return {"one replica": one, "two replicas": two}


def loop(model: keras.Model, batches: tf.data.Dataset) -> Callable[[int], int]:
    """Returns a function that takes at least the given number of steps and returns how many."""
    iterator = iter(batches)
    model.make_train_function()
    each = model.steps_per_execution

    def run(steps: int) -> int:
        executions = -(-steps // each)
        for _ in range(executions):
            logs = model.train_function(iterator)
        keras.tree.map_structure(np.asarray, logs)
        return executions * each

    return run


def reset_peak() -> None:
    """Resets the peak of the GPUs' memory."""
    for device in tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(device.name)


def peak() -> float | None:
    """Returns the peak of all GPUs' memory in MB, or None without a GPU."""
    devices = tf.config.list_logical_devices("GPU")
    peaks = [tf.config.experimental.get_memory_info(device.name)["peak"] for device in devices]
    return sum(peaks) / 1e6 if peaks else None


def logical_processors() -> tf.distribute.Strategy:
    """Returns a strategy for the halves of the CPU."""
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    return tf.distribute.MirroredStrategy(names)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
