"""Repeats the comparison of docs/results.md in PyTorch, on a GPU, with more seeds.

    python benchmarks/torch_accuracy.py --images=CIFAR10.npz --weights=RESNET56.safetensors
    python benchmarks/torch_accuracy.py

The first command trains the runs that aren't in --runs yet, and adds a line for each. All runs with
the same fraction of the images train concurrently on one CUDA device. The second command prints
the tables of docs/results.md. This is an independent implementation, which checks the results of
stkd_keras. It needs PyTorch and safetensors. CIFAR10.npz contains `train_images` (N, 32, 32, 3,
uint8), `train_labels` (N,), `test_images` and `test_labels`.
"""

import csv
import dataclasses
import math
import pathlib
import sys
import time
from typing import NamedTuple

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = flags.DEFINE_string(
    "runs", str(ROOT / "docs" / "results" / "torch" / "runs.csv"), "CSV with a line for each run"
)
IMAGES = flags.DEFINE_string("images", None, "images to train on; without it, only report")
WEIGHTS = flags.DEFINE_string("weights", None, "weights of the teacher, required for training")
STEPS = flags.DEFINE_integer("steps", 4200, "steps of each run", lower_bound=1)
flags.register_multi_flags_validator(
    ["images", "weights"],
    lambda given: (given["images"] is None) == (given["weights"] is None),
    "give both or none",
)
SPLITS = ("test", "validation", "train")
FRACTIONS = (0.02, 0.1, 1.0)
DATA_SEEDS = range(5)


@dataclasses.dataclass(frozen=True)
class Row:
    """How a row of the table is trained. Most fields are flags of train.py.

    Attributes:
        fractions: the fractions of the training images, with a run for each.
        mixing: the fraction of the steps that mix images; the rest follow without mixing.
        clean_soft_weight: weight of a soft loss on the unmixed images, which train.py had until
            commit 1f4727a.
    """

    fractions: tuple[float, ...] = FRACTIONS
    mixing: float = 0.0
    temperature: float = 4.0
    soft_weight: float = 0.9
    label_weight: float = 0.1
    clean_soft_weight: float = 0.0
    batch_size: int = 64
    learning_rate: float = 0.1


KD = Row(temperature=8.0)
STKD = Row(mixing=1.0)
CLEAN_TOO = Row(mixing=1.0, clean_soft_weight=0.9)
TWICE = {"batch_size": 128, "learning_rate": 0.2}
ROWS = {
    "ce": Row((0.1,), soft_weight=0.0, label_weight=1.0),
    "kd": KD,
    "kd, rate 0.2": dataclasses.replace(KD, learning_rate=0.2),
    "kd, 128 images": dataclasses.replace(KD, batch_size=128),
    "kd, 128 images, rate 0.2": dataclasses.replace(KD, **TWICE),
    "stkd": STKD,
    "stkd, mixing in the first half": dataclasses.replace(STKD, mixing=0.5),
    "stkd, 128 images, rate 0.2": dataclasses.replace(STKD, fractions=(0.1,), **TWICE),
    "stkd, and KD on the unmixed images": CLEAN_TOO,
    "the same, soft weights 0.45": dataclasses.replace(
        CLEAN_TOO, fractions=(0.1,), soft_weight=0.45, clean_soft_weight=0.45
    ),
}


class Run(NamedTuple):
    """A run of the comparison."""

    fraction: float
    row: str
    data_seed: int
    seed: int
    steps: int


def main(_: list[str]) -> None:
    """Runs the command."""
    if IMAGES.value is not None:
        train_missing()
    report(read(pathlib.Path(RUNS.value)))


def train_missing() -> None:
    """Trains the runs that have no line yet."""
    # The report doesn't need PyTorch.
    from torch_training import load, train

    data, teacher = load(IMAGES.value, WEIGHTS.value)
    path = pathlib.Path(RUNS.value)
    there = set(read(path))
    for fraction in FRACTIONS:
        names = [name for name, row in ROWS.items() if fraction in row.fractions]
        runs = [Run(fraction, name, seed, 0, STEPS.value) for name in names for seed in DATA_SEEDS]
        wave = [run for run in runs if run not in there]
        rows = [ROWS[run.row] for run in wave]
        start = time.monotonic()
        results = train(wave, rows, data, teacher, STEPS.value) if wave else []
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow([*Run._fields, *SPLITS])
            for run, scores in zip(wave, results, strict=True):
                numbers = [f"{score:.6f}" for score in scores]
                writer.writerow([*run, *numbers])
        seconds = time.monotonic() - start
        print(f"{len(wave)} runs with {100 * fraction:g} %: {seconds:.0f} s", flush=True)


def report(runs: dict[Run, tuple[float, ...]]) -> None:
    """Prints a Markdown table for each fraction of the images."""
    sys.path.insert(0, str(ROOT))
    from accuracy_report import estimate

    runs = {run: scores for run, scores in runs.items() if run.steps == STEPS.value}
    for fraction in FRACTIONS:
        print(
            f"\n{100 * fraction:g} % of the images, in percent; 95 % intervals over data seeds:\n"
        )
        print("| row | test | minus kd | validation | minus kd | training | runs |")
        print("|---|---|---|---|---|---|---|")
        for row in ROWS:
            own, kd = (
                {(r.data_seed, r.seed): scores for r, scores in runs.items() if r[:2] == key}
                for key in ((fraction, row), (fraction, "kd"))
            )
            if not own:
                continue
            cells = []
            for number, split_name in enumerate(SPLITS):
                values = {pair: 100 * scores[number] for pair, scores in own.items()}
                cells.append(f"{estimate(row, list(own), values).mean:.2f}")
                if split_name != "train" and row != "kd":
                    values = {p: values[p] - 100 * kd[p][number] for p in values if p in kd}
                    difference = estimate(row, list(own), values)
                    low, high = difference.interval or (math.nan, math.nan)
                    cells.append(f"{difference.mean:+.2f} ({low:+.2f} to {high:+.2f})")
                elif split_name != "train":
                    cells.append("")
            print(f"| {row} | {' | '.join(cells)} | {len(own)} |")


def read(path: pathlib.Path) -> dict[Run, tuple[float, ...]]:
    """Returns the accuracies of the runs in the order of `SPLITS`."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            Run(
                float(line["fraction"]), line["row"], *(int(line[name]) for name in Run._fields[2:])
            ): tuple(float(line[name]) for name in SPLITS)
            for line in csv.DictReader(file)
        }


if __name__ == "__main__":
    app.run(main)
