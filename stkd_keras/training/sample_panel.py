"""Virtual samples in TensorBoard, with the predictions of teacher and student."""

import functools

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.distillation.distiller import SimilarityTransferDistiller
from stkd_keras.teacher.frozen import FrozenTeacher

NUM_SAMPLES = 8
NUM_CLASSES_SHOWN = 5


class SamplePanel(keras.callbacks.Callback):
    """Logs eight virtual samples, and a table of their top classes, every `freq` epochs."""

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
        with self._writer.as_default():
            tf.summary.image(
                "virtual_samples", tf.cast(images, tf.uint8), step=epoch, max_outputs=NUM_SAMPLES
            )
            table = format_samples(probabilities, self._class_names)
            tf.summary.text("virtual_samples/classes", table, step=epoch)

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


def format_samples(probabilities: dict[str, tf.Tensor], class_names: tuple[str, ...]) -> str:
    """Formats the predictions as a Markdown table, with cells such as "0.62 cat, 0.30 dog"."""
    rows = [["sample", *probabilities], ["---"] * (1 + len(probabilities))]
    for number in range(NUM_SAMPLES):
        columns = (each[number].numpy() for each in probabilities.values())
        rows.append([str(number + 1), *(_top_classes(each, class_names) for each in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _top_classes(probabilities: np.ndarray, class_names: tuple[str, ...]) -> str:
    top = np.argsort(-probabilities)[:NUM_CLASSES_SHOWN]
    return ", ".join(f"{probabilities[c]:.2f} {class_names[c]}" for c in top if probabilities[c])
