"""Times the forward pass of each family's teacher: Keras's own, the zoo's, and folded.

python benchmarks/teacher_forward.py

Prints a Markdown table of medians, with the three timed by turns in this process. "Keras" is the
same architecture with Keras's own batch normalisation.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import models
import stkd_keras

FAMILIES = {
    "resnet": ["resnet20", "resnet56", "resnet110", "resnet32x4"],
    "ResNet for ImageNet": ["resnet18", "resnet50"],
    "Wide ResNet": ["wrn_16_2", "wrn_40_2"],
    "VGG": ["vgg8", "vgg13"],
    "MobileNetV2": ["mobilenet_v2"],
    "ShuffleNet": ["shufflenet_v1", "shufflenet_v2"],
}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--models", nargs="*", default=[x for row in FAMILIES.values() for x in row]
    )
    arguments = parser.parse_args()
    images = tf.constant(
        np.random.default_rng(0).uniform(0, 255, (arguments.batch_size, 32, 32, 3)), tf.float32
    )
    print("| model | Keras, ms | zoo, ms | folded, ms | folded / Keras | folded / zoo | folded |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        zoo = models.build(name, (32, 32, 3), 100)
        # A clone computes as Keras does.
        own = keras.Model.from_config(zoo.get_config())
        own.set_weights(zoo.get_weights())
        teacher = stkd_keras.FrozenTeacher(zoo)
        calls = [
            tf.function(lambda x, model=own: model(x, training=False)),
            tf.function(lambda x, model=zoo: model(x, training=False)),
            tf.function(teacher),
        ]
        times = by_turns(calls, images, arguments.rounds)
        keras_ms, zoo_ms, folded_ms = (1e3 * statistics.median(each) for each in times)
        print(
            f"| `{name}` | {keras_ms:.0f} | {zoo_ms:.0f} | {folded_ms:.0f} "
            f"| {folded_ms / keras_ms:.2f} | {folded_ms / zoo_ms:.2f} |",
            flush=True,
        )


def by_turns(calls: list, images: tf.Tensor, rounds: int) -> list[list[float]]:
    """Returns the seconds of each call, round by round, after two rounds that aren't counted."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 2):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(images).numpy()
            if number >= 2:
                seconds.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
