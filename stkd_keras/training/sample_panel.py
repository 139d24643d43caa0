"""TensorBoard images of virtual samples with teacher and student predictions."""

import functools

import keras
import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stkd_keras.distillation.distiller import SimilarityTransferDistiller
from stkd_keras.teacher.frozen import FrozenTeacher

NUM_SAMPLES = 8
SAMPLES_PER_ROW = 4
NUM_CLASSES_SHOWN = 5
NAME_LENGTH = 12


class SamplePanel(keras.callbacks.Callback):
    """Logs an image of eight virtual samples and their top classes every `freq` epochs."""

    def __init__(
        self, log_dir, dataset: tf.data.Dataset, class_names: tuple[str, ...], freq: int = 1
    ):
        super().__init__()
        self._freq = freq
        self._log_dir = str(log_dir)
        self._dataset = dataset
        self._class_names = class_names

    def on_train_begin(self, logs=None):
        self._writer = tf.summary.create_file_writer(f"{self._log_dir}/train")
        self._images, self._labels = next(iter(self._dataset))
        self._predict = tf.function(functools.partial(predict_samples, self.model))

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self._freq:
            return
        step = tf.constant(self.model.step)
        images, probabilities = self._predict(self._images, self._labels, step)
        canvas = FigureCanvasAgg(draw_panel(images.numpy(), probabilities, self._class_names))
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())
        with self._writer.as_default():
            tf.summary.image("virtual_samples", pixels[None], step=epoch)

    def on_train_end(self, logs=None):
        self._writer.close()


def predict_samples(distiller: SimilarityTransferDistiller, images, labels, step):
    """Mixes images (B, H, W, channels) and labels (B,) as training does; predicts the first 8."""
    soft_labels = tf.one_hot(labels, distiller.num_classes)
    images, soft_labels, _ = distiller.virtual_samples(images, soft_labels, None, step)
    images = images[:NUM_SAMPLES]
    probabilities = {"mixed label": soft_labels[:NUM_SAMPLES]}
    if isinstance(distiller.teacher, FrozenTeacher):  # A recording lacks these images.
        probabilities["teacher"] = tf.nn.softmax(distiller.teacher(images))
    probabilities["student"] = tf.nn.softmax(distiller.student_logits(images))
    return images, probabilities


def draw_panel(images, probabilities, class_names: tuple[str, ...]) -> Figure:
    """Draws the result of `predict_samples`: each sample above its top five classes."""
    rows = NUM_SAMPLES // SAMPLES_PER_ROW
    figure = Figure((1.1 * SAMPLES_PER_ROW * len(probabilities), 3.3 * rows), dpi=80)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.98, bottom=0.18, hspace=0.6)
    for i, axis in enumerate(figure.subplots(rows, SAMPLES_PER_ROW).flat):
        axis.axis("off")
        axis.imshow(np.squeeze(np.uint8(images[i])), cmap="gray", vmin=0, vmax=255)
        table = _table({k: np.asarray(v[i]) for k, v in probabilities.items()}, class_names)
        axis.text(
            0.5, -0.05, table, transform=axis.transAxes, va="top", ha="center",
            family="monospace", fontsize=7,
        )  # fmt: skip
    return figure


def _table(probabilities: dict[str, np.ndarray], class_names: tuple[str, ...]) -> str:
    """Formats columns such as "0.62 cat", most probable class first."""
    columns = []
    for title, column in probabilities.items():
        likeliest = np.argsort(-column)[:NUM_CLASSES_SHOWN]
        cells = [
            f"{column[c]:.2f} {class_names[c][:NAME_LENGTH]}" if column[c] > 0 else ""
            for c in likeliest
        ]
        width = max(map(len, [title, *cells]))
        columns.append([cell.ljust(width) for cell in [title, *cells]])
    return "\n".join("  ".join(row) for row in zip(*columns, strict=True))
