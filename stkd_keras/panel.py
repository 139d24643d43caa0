"""What a run looks like in TensorBoard: virtual samples, and what is answered on them."""

import io

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from stkd_keras.distiller import SimilarityTransferDistiller
from stkd_keras.teacher import FrozenTeacher

NUM_SAMPLES = 8
NUM_CLASSES_SHOWN = 5


class VirtualSamplePanel(keras.callbacks.Callback):
    """Writes one image an epoch: eight virtual samples with their labels and answers.

    Beside each sample stand its mixed label and the five classes that the teacher and the
    student find likeliest.

    Args:
        log_dir: the directory of the TensorBoard callback.
        dataset: training batches of (images, labels), at least eight images each.
        class_names: names of the classes.
    """

    def __init__(self, log_dir, dataset: tf.data.Dataset, class_names: tuple[str, ...]):
        super().__init__()
        self._log_dir = str(log_dir)
        self._dataset = dataset
        self._class_names = class_names

    def on_train_begin(self, logs=None):
        """Opens the event file."""
        self._writer = tf.summary.create_file_writer(f"{self._log_dir}/train")
        self._images, self._labels = next(iter(self._dataset))

    def on_epoch_end(self, epoch, logs=None):
        """Writes the panel of this epoch."""
        figure = draw_panel(
            self.model, self._images, self._labels, self._class_names, step=self.model.step
        )
        with self._writer.as_default():
            tf.summary.image("virtual_samples", _to_image(figure)[None], step=epoch)

    def on_train_end(self, logs=None):
        """Closes the event file."""
        self._writer.close()


def draw_panel(
    distiller: SimilarityTransferDistiller, images, labels, class_names, step
) -> Figure:
    """Draws virtual samples with their mixed labels, and what teacher and student answer.

    Args:
        distiller: student, teacher (if any) and mixing (if any).
        images: float32 tensor (B, H, W, channels), pixels in [0, 255], B >= 8.
        labels: integer tensor (B,).
        class_names: names of the classes.
        step: integer, the step whose mixtures are drawn.

    Returns:
        A figure with one row for each of eight samples.
    """
    rows = tf.one_hot(labels, distiller.num_classes)
    if distiller.mixing is not None:
        seed = distiller.mixing_seed(step)
        images, rows, _ = distiller.mixing(images, rows, None, seed=seed)
    images, rows = images[:NUM_SAMPLES], rows[:NUM_SAMPLES]
    columns = {"mixed label": rows.numpy()}
    if distiller.teacher is not None:
        columns["teacher"] = tf.nn.softmax(distiller.teacher(images)).numpy()
    student = FrozenTeacher(distiller.student)
    columns["student"] = tf.nn.softmax(student(images)).numpy()

    figure = Figure(figsize=(2 + 3 * len(columns), 1.3 * NUM_SAMPLES), layout="constrained")
    axes = figure.subplots(
        NUM_SAMPLES, 1 + len(columns), width_ratios=[1.3] + [2] * len(columns), squeeze=False
    )
    for i in range(NUM_SAMPLES):
        axes[i, 0].imshow(np.squeeze(np.uint8(images[i])), cmap="gray", vmin=0, vmax=255)
        axes[i, 0].axis("off")
        for axis, answers in zip(axes[i, 1:], columns.values(), strict=True):
            _draw_likeliest(axis, answers[i], class_names)
    for axis, title in zip(axes[0, 1:], columns, strict=True):
        axis.set_title(title)
    return figure


def _draw_likeliest(axis, probabilities, class_names) -> None:
    likeliest = np.argsort(-probabilities)[:NUM_CLASSES_SHOWN]
    likeliest = likeliest[probabilities[likeliest] > 0][::-1]
    bars = axis.barh([class_names[c] for c in likeliest], probabilities[likeliest])
    axis.bar_label(bars, [f"{probabilities[c]:.2f}" for c in likeliest], padding=2, fontsize=7)
    axis.set_xlim(0, 1.2)
    axis.set_xticks([])
    axis.tick_params(axis="y", labelsize=7, length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _to_image(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return tf.io.decode_png(buffer.getvalue(), channels=4).numpy()
