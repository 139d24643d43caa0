"""What a run looks like in TensorBoard: virtual samples, and what is answered on them."""

import functools
import io
import math

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from stkd_keras.distillation.distiller import SimilarityTransferDistiller
from stkd_keras.teacher.frozen import FrozenTeacher

NUM_SAMPLES = 8
SAMPLES_A_ROW = 4
NUM_CLASSES_SHOWN = 5
NAME_LENGTH = 12


class VirtualSamplePanel(keras.callbacks.Callback):
    """Writes an image every few epochs: eight virtual samples with their labels and answers.

    Beside each sample stand its mixed label and the five classes that the teacher and the
    student find likeliest.

    Args:
        log_dir: the directory of the TensorBoard callback.
        dataset: training batches of (images, labels), at least eight images each.
        class_names: names of the classes.
        freq: epochs from one image to the next.
    """

    def __init__(
        self, log_dir, dataset: tf.data.Dataset, class_names: tuple[str, ...], freq: int = 1
    ):
        super().__init__()
        self._freq = freq
        self._log_dir = str(log_dir)
        self._dataset = dataset
        self._class_names = class_names

    def on_train_begin(self, logs=None):
        """Opens the event file."""
        self._writer = tf.summary.create_file_writer(f"{self._log_dir}/train")
        self._images, self._labels = next(iter(self._dataset))
        self._draw = tf.function(functools.partial(virtual_samples, self.model))

    def on_epoch_end(self, epoch, logs=None):
        """Writes the panel of this epoch, if it is its turn."""
        if (epoch + 1) % self._freq:
            return
        images, answers = self._draw(self._images, self._labels, tf.constant(self.model.step))
        figure = draw_panel(images.numpy(), answers, self._class_names)
        with self._writer.as_default():
            tf.summary.image("virtual_samples", _to_image(figure)[None], step=epoch)

    def on_train_end(self, logs=None):
        """Closes the event file."""
        self._writer.close()


def virtual_samples(distiller: SimilarityTransferDistiller, images, labels, step):
    """Makes eight virtual samples, and has teacher and student answer them.

    Args:
        distiller: student, teacher (if any) and mixing (if any).
        images: float32 tensor (B, H, W, channels), pixels in [0, 255], B >= 8.
        labels: integer tensor (B,).
        step: integer, the step whose mixtures are made.

    Returns:
        The samples (8, H, W, channels), and the distributions (8, C) by the name of what gives
        them: "mixed label", "teacher", "student".
    """
    rows = tf.one_hot(labels, distiller.num_classes)
    images, rows, _ = distiller.virtual_samples(images, rows, None, step)
    images, rows = images[:NUM_SAMPLES], rows[:NUM_SAMPLES]
    answers = {"mixed label": rows}
    if isinstance(distiller.teacher, FrozenTeacher):  # A recorded one answered other samples.
        answers["teacher"] = tf.nn.softmax(distiller.teacher(images))
    answers["student"] = tf.nn.softmax(distiller.student_logits(images))
    return images, answers


def draw_panel(images, answers, class_names: tuple[str, ...]) -> Figure:
    """Draws samples, each above the five likeliest classes of each distribution.

    Args:
        images: array (N, H, W, channels), pixels in [0, 255].
        answers: arrays (N, C) by name, as `virtual_samples` gives them.
        class_names: names of the classes.

    Returns:
        The figure.
    """
    rows = math.ceil(len(images) / SAMPLES_A_ROW)
    figure = Figure(figsize=(1.1 * SAMPLES_A_ROW * len(answers), 3.3 * rows))
    figure.subplots_adjust(left=0.02, right=0.98, top=0.98, bottom=0.18, hspace=0.6)
    axes = figure.subplots(rows, SAMPLES_A_ROW, squeeze=False).flat
    for i, axis in enumerate(axes):
        axis.axis("off")
        if i < len(images):
            axis.imshow(np.squeeze(np.uint8(images[i])), cmap="gray", vmin=0, vmax=255)
            table = _table({k: np.asarray(v[i]) for k, v in answers.items()}, class_names)
            axis.text(
                0.5, -0.05, table, transform=axis.transAxes, va="top", ha="center",
                family="monospace", fontsize=7,
            )  # fmt: skip
    return figure


def _table(answers: dict[str, np.ndarray], class_names: tuple[str, ...]) -> str:
    """Columns of "0.62 cat", likeliest first, under the names of the distributions."""
    columns = []
    for title, probabilities in answers.items():
        likeliest = np.argsort(-probabilities)[:NUM_CLASSES_SHOWN]
        cells = [
            f"{probabilities[c]:.2f} {class_names[c][:NAME_LENGTH]}" if probabilities[c] > 0 else ""
            for c in likeliest
        ]
        width = max(map(len, [title, *cells]))
        columns.append([cell.ljust(width) for cell in [title, *cells]])
    return "\n".join("  ".join(row) for row in zip(*columns, strict=True))


def _to_image(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return tf.io.decode_png(buffer.getvalue(), channels=4).numpy()
