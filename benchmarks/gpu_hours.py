"""Estimates the GPU hours of a table of benchmarks/accuracy.py without measuring anything.

    python benchmarks/gpu_hours.py --table=benchmarks/tables/cifar10.yaml

counts multiply-adds (two floating-point operations each). A step costs three passes of the student
and one of the teacher, unless the teacher is recorded; a step of the teacher's own training costs
three passes of the teacher. The estimate assumes 10 TFLOP/s, and at least 10 ms per step for
launching many small kernels. It wasn't checked on a GPU, and may be off by a factor of three.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import functools

from absl import flags
from accuracy_runs import Folder
from accuracy_table import Run, Table, hide_flags_of_train, read_table, teacher_key

import models
from models.teachers.training import TEACHER_RECIPE
from stkd_keras import recipes
from stkd_keras.cli import app
from stkd_keras.errors import InputError
from stkd_keras.evaluation.cost import multiply_adds

hide_flags_of_train()

TABLE = flags.DEFINE_string("table", None, "the table's file, YAML")
THROUGHPUT = flags.DEFINE_float(
    "tflops", 10.0, "sustained throughput of the GPU in TFLOP/s", lower_bound=1e-3
)
SHORTEST = flags.DEFINE_float(
    "shortest_ms", 10.0, "duration of the shortest step in ms", lower_bound=0.0
)

# Training images, height and width, classes.
DATASETS = {
    "cifar10": (50_000, 32, 10),
    "cifar100": (50_000, 32, 100),
    "cinic10": (90_000, 32, 10),
    "tiny_imagenet": (100_000, 64, 200),
}


def main() -> None:
    """Runs the command."""
    if TABLE.value is None:
        raise InputError("no --table given; expected a file such as benchmarks/tables/cifar10.yaml")
    print(f"{gpu_hours(read_table(pathlib.Path(TABLE.value))):.0f}")


def gpu_hours(table: Table) -> float:
    """Returns the hours of all runs of a table, including the training of their teachers."""
    folder = Folder(table, pathlib.Path())
    seconds, recordings, teachers = 0.0, set(), set()
    for run in table.runs:
        images, _, _ = DATASETS[run.flags["dataset"]]
        name = run.flags["recipe"] or "scratch"
        recipe = recipes.recipe_for(run.flags["dataset"], recipe=name)
        epochs = run.flags["epochs"] or recipe.epochs
        batch_size = run.flags["batch_size"] or recipe.batch_size
        recording, teacher = folder.recording(run), teacher_key(run.flags)
        uses_teacher = recipes.needs_teacher(run.flags["method"], method_settings(run))
        uses_teacher = uses_teacher and (recording is None or recording not in recordings)
        amount = 3 * size(run, run.flags["student"]) + uses_teacher * size(
            run, run.flags["teacher"]
        )
        seconds += epochs * images / batch_size * step_seconds(amount * batch_size)
        if teacher is not None and teacher not in teachers:
            epochs = run.flags["teacher_epochs"] or recipe.teacher_epochs
            batch_size = TEACHER_RECIPE["batch_size"]
            amount = 3 * size(run, run.flags["teacher"])
            seconds += epochs * images / batch_size * step_seconds(amount * batch_size)
        recordings.add(recording)
        teachers.add(teacher)
    return seconds / 3600


def step_seconds(amount: float) -> float:
    """Returns how long a number of multiply-adds takes."""
    return max(2 * amount / (1e12 * THROUGHPUT.value), SHORTEST.value / 1e3)


def size(run: Run, name: str) -> int:
    """Returns the multiply-adds of a model for one image of a run."""
    _, length, classes = DATASETS[run.flags["dataset"]]
    return size_of(name, length, classes)


@functools.cache
def size_of(name: str, length: int, classes: int) -> int:
    """Returns the multiply-adds of a model for one image."""
    image_shape = (length, length, 3)
    return multiply_adds(models.build(name, image_shape, classes), image_shape) or 0


def method_settings(run: Run) -> dict:
    """Returns the settings of a run's method."""
    explicit = {name: run.flags[name] for name in recipes.SETTINGS}
    return recipes.method_settings(run.flags["method"], **explicit)


if __name__ == "__main__":
    app.run(main, __doc__)
