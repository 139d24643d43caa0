"""Compares methods over full trainings on CIFAR-10, in PyTorch on one GPU, within a given time.

    python benchmarks/gpu_comparison.py --images=cifar10.npz --runs=RUNS --minutes=12
    python benchmarks/gpu_comparison.py --runs=RUNS

The first command trains a teacher from scratch and then students of it: those that aren't in
RUNS/runs.jsonl yet, as far as the time allows. Students with the same seed start from the same
weights, and all see the same batches. The second command prints the table. See docs/gpu.md.
"""

import itertools
import json
import pathlib
import time
from typing import NamedTuple

import numpy as np
import scipy.stats
from absl import app, flags

START = time.monotonic()
IMAGES = flags.DEFINE_string("images", None, "images to train on; without it, only report")
RUNS = flags.DEFINE_string("runs", None, "folder of runs.jsonl and the teacher", required=True)
MINUTES = flags.DEFINE_float("minutes", 12.0, "time for the whole command", lower_bound=0.0)
STEPS = flags.DEFINE_integer("steps", None, "steps of each network, for a trial", lower_bound=3)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "images per step", lower_bound=1)
TEACHER, TEACHER_EPOCHS = "wrn_40_2", 80
STUDENT, STUDENT_EPOCHS = "resnet20", 200
SEEDS = range(3)
FIRST_ROWS = ("kd", "stkd")
OTHER_ROWS = ("ce", "dkd", "dist", "stkd, mixing in the first half", "stkd with CutMix")


class Run(NamedTuple):
    """A network to train."""

    network: str
    row: str
    seed: int
    steps: int
    batch_size: int


def main(_: list[str]) -> None:
    """Runs the command."""
    folder = pathlib.Path(RUNS.value)
    if IMAGES.value is not None:
        train_missing(folder)
    report(read(folder))


def train_missing(folder: pathlib.Path) -> None:
    """Trains the networks that aren't in runs.jsonl, as far as the time allows."""
    # The report doesn't need PyTorch.
    import gpu_comparison_torch as training

    folder.mkdir(parents=True, exist_ok=True)
    weights, done, teacher = folder / "teacher.safetensors", read(folder), None
    data = training.load(IMAGES.value)
    groups = planned(len(data["train"][0]))
    if done and (done.keys() - set(itertools.chain(*groups)) or not weights.is_file()):
        raise app.UsageError(f"{folder} has other settings or no teacher; choose another --runs")
    for number, group in enumerate(groups):
        if number == 1:
            teacher = training.load_teacher(TEACHER, weights)
        missing = [run for run in group if run not in done]
        learners = training.train(missing, data, teacher, START + 60 * MINUTES.value)
        for run, learner in zip(missing, learners, strict=False):
            if teacher is None:
                training.save(learner, weights)
            found = training.scores(learner, data)
            with (folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps({**run._asdict(), **found}) + "\n")
        if len(learners) < len(missing):
            print("The time is up; run the command again to train the others", flush=True)
            return


def planned(num_images: int) -> list[list[Run]]:
    """Returns the networks in the order of training; those of a list train side by side."""

    def runs(network: str, rows, seeds, epochs: int) -> list[Run]:
        steps = STEPS.value or epochs * (num_images // BATCH_SIZE.value)
        return [Run(network, row, s, steps, BATCH_SIZE.value) for s in seeds for row in rows]

    groups = [runs(TEACHER, ["ce"], [0], TEACHER_EPOCHS)]
    groups += [runs(STUDENT, FIRST_ROWS, SEEDS, STUDENT_EPOCHS)]
    return groups + [runs(STUDENT, OTHER_ROWS, [seed], STUDENT_EPOCHS) for seed in SEEDS]


def report(runs: dict[Run, dict[str, float]]) -> None:
    """Prints a Markdown table: means over seeds, and differences paired over seeds."""
    columns = ("nll", "ece", "temperature", "nll_after", "ece_after")
    names = ("network", "row", "test accuracy", "minus kd (95 % interval)", *columns, "runs")
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    kd = {run.seed: found["accuracy"] for run, found in runs.items() if run.row == "kd"}
    for network, row in dict.fromkeys(run[:2] for run in runs):
        own = {run.seed: found for run, found in runs.items() if run[:2] == (network, row)}
        mean = {name: np.mean([found[name] for found in own.values()]) for name in own[min(own)]}
        cells = [network, row, f"{100 * mean['accuracy']:.2f}", ""]
        differences = [100 * (own[seed]["accuracy"] - kd[seed]) for seed in own if seed in kd]
        if network == STUDENT and row != "kd" and differences:
            cells[3] = f"{np.mean(differences):+.2f}"
            if len(differences) > 1:
                low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
                cells[3] += f" ({low:+.2f} to {high:+.2f})"
        cells += [f"{mean[name]:.4f}" for name in columns]
        print(f"| {' | '.join(cells)} | {len(own)} |")


def read(folder: pathlib.Path) -> dict[Run, dict[str, float]]:
    """Returns the scores of the trained networks."""
    path = folder / "runs.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return {Run(*(x.pop(name) for name in Run._fields)): x for x in map(json.loads, lines)}


if __name__ == "__main__":
    app.run(main)
