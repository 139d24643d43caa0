"""Compares three ways to train a student on few images, with the teacher of an earlier run.

    python benchmarks/few_images.py --run=runs/demo

takes the data set and the teacher of a run of train.py, trains small students on a few images per
class with cross-entropy, with knowledge distillation and with STKD, and prints a table of their
test accuracies. It takes about a minute on two cores.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import keras
import numpy as np
from absl import flags

import models
import stkd_keras
from models.teachers.loading import load_teachers
from models.teachers.sources import TeacherSource
from stkd_keras import data, experiment, recipes
from stkd_keras.cli import app
from stkd_keras.files.json_files import read_json

RUN = flags.DEFINE_string("run", "runs/demo", "directory of a run of train.py")
DATA_DIR = flags.DEFINE_string("data_dir", None, "data directory of TFDS")
IMAGES_PER_CLASS = flags.DEFINE_integer("images_per_class", 5, "training images per class")
STEPS = flags.DEFINE_integer("steps", 300, "training steps of each student", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 50, "batch size", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 3, "students per method", lower_bound=1)
METHODS = ("ce", "kd", "stkd")


def main() -> None:
    """Runs the command."""
    config = read_json(pathlib.Path(RUN.value) / "config.json")
    dataset = data.load(config["settings"]["dataset"], DATA_DIR.value)
    teacher, _ = load_teachers(dataset, [TeacherSource(**each) for each in config["teachers"]])
    few, _ = data.split_train(dataset, images_per_class=IMAGES_PER_CLASS.value)
    accuracies = {
        method: [train(method, seed, dataset, few, teacher) for seed in range(SEEDS.value)]
        for method in METHODS
    }
    print(
        f"\nAccuracy of {config['settings']['student']} on the test split of {dataset.name}, "
        f"{IMAGES_PER_CLASS.value} training images per class, {SEEDS.value} seeds:\n"
    )
    print("| method | mean | " + " | ".join(f"seed {s}" for s in range(SEEDS.value)) + " |")
    print("|---|---|" + "---|" * SEEDS.value)
    for method, values in accuracies.items():
        cells = [f"{100 * value:.1f} %" for value in [np.mean(values), *values]]
        print(f"| {method} | " + " | ".join(cells) + " |")


def train(method: str, seed: int, dataset, few, teacher) -> float:
    """Trains one student and returns its test accuracy, from 0 to 1."""
    settings = recipes.method_settings(method)
    keras.utils.set_random_seed(seed)
    student = models.build(
        "resnet8", dataset.image_shape, dataset.num_classes, dataset.mean, dataset.std
    )
    distiller = stkd_keras.SimilarityTransferDistiller(
        student,
        teacher if settings["soft_weight"] else None,
        mixing=recipes.make_mixing(settings),
        soft_weight=settings["soft_weight"],
        label_weight=settings["label_weight"],
    )
    distiller.compile(experiment.make_optimizer(0.1, 5e-4, STEPS.value), metrics=["accuracy"])
    batches = data.pipeline(dataset, few, BATCH_SIZE.value, data_seed=0)
    print(f"{method}, seed {seed}")
    distiller.fit(batches, steps_per_epoch=STEPS.value, shuffle=False)
    test = data.evaluation_pipeline(dataset.test, experiment.EVALUATION_BATCH)
    return distiller.evaluate(test, verbose=0, return_dict=True)["accuracy"]


if __name__ == "__main__":
    app.run(main, __doc__)
