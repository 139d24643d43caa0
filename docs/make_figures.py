"""Draws the figures of docs/method.md with images of CIFAR-10 and a trained teacher.

    python docs/make_figures.py --data_dir=$DATA_DIR --teacher_weights=$WEIGHTS

This takes half a minute on two cores.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import numpy as np
import tensorflow as tf
from absl import flags
from matplotlib.figure import Figure

import models
import stkd_keras
from stkd_keras import data
from stkd_keras.cli import app
from stkd_keras.evaluation.scores import compiled, predict_logits

DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of TensorFlow Datasets with CIFAR-10")
TEACHER_WEIGHTS = flags.DEFINE_string(
    "teacher_weights", None, "weights of a resnet56 that uses ImageNet's normalization"
)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "docs/images", "folder for the figures")

# The two classes that are mixed.
PAIR = ("horse", "automobile")
TEMPERATURE = 4.0
# In inches; narrow, so that the text is readable on a phone.
WIDTH = 4.8
LABEL, TEACHER, OTHER = "#8a8a8a", "#1f6fb4", "#c9501c"


def main() -> None:
    """Runs the command."""
    dataset = data.load("cifar10", DATA_DIR.value)
    teacher = stkd_keras.FrozenTeacher(
        models.load_for(dataset, "resnet56", TEACHER_WEIGHTS.value, "imagenet")
    )
    images, labels, _ = next(iter(data.evaluation_pipeline(dataset.test, 256)))
    names = dataset.class_names
    classes = [names.index(name) for name in PAIR]
    pair = tf.stack([first_of(c, images, labels, teacher) for c in classes])
    save("mixing_two", draw_path(pair, teacher, names, classes))
    save("temperature", draw_temperatures(tf.reduce_mean(pair, axis=0), teacher, names))
    save("alpha", draw_alphas())
    save("kinds_of_mixtures", draw_kinds(images, tf.one_hot(labels, 10), teacher, names))
    save("similarities", draw_similarities(teacher, dataset))


def first_of(number: int, images, labels, teacher):
    """Returns the first image of a class that the teacher classifies correctly."""
    right = (labels == number) & (tf.argmax(teacher(images), axis=1) == number)
    return images[int(tf.argmax(right))]


def draw_path(pair, teacher, names, classes) -> Figure:
    """Draws mixtures from one image to another, and the teacher's predictions."""
    shares = np.linspace(0, 1, 41, dtype="float32")
    mixtures = shares[:, None, None, None] * pair[0] + (1 - shares)[:, None, None, None] * pair[1]
    predictions = tf.nn.softmax(teacher(mixtures)).numpy()
    one, two = classes
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 5, height_ratios=[1, 2.6])
    for column, share in enumerate(range(0, 41, 10)):
        axis = figure.add_subplot(grid[0, column])
        show(axis, mixtures[share], f"l = {shares[share]:.2f}")
    axis = figure.add_subplot(grid[1, :])
    axis.plot(shares, shares, color=LABEL, ls="--", label=f"mixed label: {names[one]}")
    axis.plot(shares, predictions[:, one], color=TEACHER, label=f"teacher: {names[one]}")
    axis.plot(shares, predictions[:, two], color=OTHER, label=f"teacher: {names[two]}")
    rest = 1 - predictions[:, one] - predictions[:, two]
    axis.plot(shares, rest, color="black", ls=":", label="teacher: all others")
    axis.set(xlabel=f"l, the share of the {names[one]}", ylabel="probability", xlim=(0, 1))
    figure.legend(
        *axis.get_legend_handles_labels(), fontsize=9, ncols=2, loc="outside lower center"
    )
    return figure


def draw_temperatures(mixture, teacher, names) -> Figure:
    """Draws the teacher's prediction on one mixture at four temperatures."""
    logits = teacher(mixture[None])
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots(2, 2, sharey=True)
    for axis, temperature in zip(axes.flat, (1, 2, 4, 8), strict=True):
        bars(axis, tf.nn.softmax(logits / temperature).numpy()[0], names, TEACHER)
        axis.set_title(f"T = {temperature}", fontsize=10)
    return figure


def draw_alphas() -> Figure:
    """Draws the distribution of a pair's mixing weight, from 100,000 draws of Mixup."""
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, alpha in zip(axes, (0.2, 1.0, 4.0), strict=True):
        _, weights = stkd_keras.Mixup(alpha=alpha).draw(100_000, seed=(0, 0))
        axis.hist(weights.numpy()[:, 0], bins=25, range=(0, 1), density=True, color=TEACHER)
        axis.set_title(f"alpha = {alpha:g}", fontsize=10)
        axis.set(xlabel="l", xticks=[0, 0.5, 1], ylim=(0, 4))
    axes[0].set_ylabel("density")
    return figure


def draw_kinds(images, labels, teacher, names) -> Figure:
    """Draws a mixture of each kind with its label and the teacher's prediction."""
    kinds = {
        "two images": stkd_keras.Mixup(),
        "three images": stkd_keras.Mixup(num_images=3),
        "four images": stkd_keras.Mixup(num_images=4),
        "CutMix": stkd_keras.CutMix(),
    }
    figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    grid = figure.add_gridspec(len(kinds), 3)
    for row, (name, mixing) in enumerate(kinds.items()):
        mixtures, mixed_labels, _ = mixing(images, labels, seed=(3, 14))
        # The most evenly mixed one.
        number = int(tf.argmin(tf.reduce_max(mixed_labels, axis=1)))
        prediction = tf.nn.softmax(teacher(mixtures[number : number + 1]) / TEMPERATURE).numpy()[0]
        first, second, third = (figure.add_subplot(grid[row, column]) for column in range(3))
        show(first, mixtures[number], name)
        bars(second, mixed_labels.numpy()[number], names, LABEL)
        bars(third, prediction, names, TEACHER)
        third.set_yticklabels([])
        second.set_title("mixed label" if row == 0 else "", fontsize=10)
        third.set_title("teacher, T = 4" if row == 0 else "", fontsize=10)
    return figure


def draw_similarities(teacher, dataset) -> Figure:
    """Draws the teacher's mean soft prediction for the images of each class."""
    batches = data.evaluation_pipeline(dataset.test, 500).take(4)
    logits, labels = predict_logits(compiled(teacher, dataset.image_shape), batches, verbose=False)
    predictions = tf.nn.softmax(logits / TEMPERATURE).numpy()
    means = np.stack([predictions[labels == c].mean(axis=0) for c in range(dataset.num_classes)])
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axis = figure.subplots()
    off_diagonal = np.where(np.eye(len(means)), np.nan, 100 * means)
    axis.imshow(off_diagonal, cmap="Blues", vmin=0)
    for row, column in np.ndindex(means.shape):
        value = 100 * means[row, column]
        dark = row != column and value > 0.6 * np.nanmax(off_diagonal)
        axis.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
            color="white" if dark else "black",
        )  # fmt: skip
    ticks = range(len(means))
    axis.set_xticks(ticks, dataset.class_names, rotation=90)
    axis.set_yticks(ticks, dataset.class_names)
    axis.set(xlabel="mean probability, %, at T = 4", ylabel="images of")
    return figure


def show(axis, image, title: str) -> None:
    """Draws an image with pixels in [0, 255]."""
    axis.imshow(np.uint8(np.asarray(image)))
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def bars(axis, probabilities, names, color: str) -> None:
    """Draws a distribution over classes."""
    axis.barh(range(len(names)), probabilities, color=color)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    # First class at the top.
    axis.set(xlim=(0, 1), xticks=[0, 0.5, 1], ylim=(len(names) - 0.5, -0.5))


def save(name: str, figure: Figure) -> None:
    """Writes a figure."""
    path = pathlib.Path(OUTPUT_DIR.value) / f"{name}.png"
    figure.savefig(path, dpi=150)
    print(path)


if __name__ == "__main__":
    app.run(main, __doc__)
