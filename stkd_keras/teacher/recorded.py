"""The teacher's answers on a training's virtual samples, recorded once and replayed.

Every virtual sample is a pure function of (data_seed, step, replica), so one recording serves any
number of students, initial weights, temperatures and loss weights.
"""

import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.distribution.workers import is_multi_worker
from stkd_keras.errors import InputError
from stkd_keras.teacher.recording_file import _check_equal, _read_header


class RecordedTeacher:
    """A teacher whose answers are there already, in a file of `record_teacher`.

    It is passed to the distiller as `teacher`, and the training data through `attach`. The file is
    mapped into memory: only what a batch needs is read.

    Args:
        path: the file.

    Raises:
        InputError: where it is missing, unfinished, or isn't such a file.
    """

    # For it is passed where a FrozenTeacher may be.
    input_shape = None
    supports_jit = True

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.settings, shape, dtype, offset = _read_header(self.path)
        self.steps, self.batch_size, self.num_classes = shape
        self._logits = np.memmap(self.path, dtype, "r", offset, shape)

    def attach(self, train_ds: tf.data.Dataset) -> tf.data.Dataset:
        """Adds the answers to the batches of a pipeline.

        Args:
            train_ds: what `stkd_keras.data.pipeline` gives, as it was when recorded, also from a
                later step on (`start_step`).

        Returns:
            Data set of (images, targets), as many batches as are recorded. `targets` is a dict of
            "labels" (B,), "teacher_logits" (B, C), float32, and "step" (B,), the batch's number.

        Raises:
            InputError: where it isn't such a pipeline, or another one.
        """
        source = pipeline_source(train_ds)
        self.check(source.settings())
        steps = tf.data.Dataset.range(source.start_step, self.steps)

        def join(batch, step):
            images, labels = batch
            logits = tf.numpy_function(self._answers, [step], tf.float32)
            logits = tf.ensure_shape(logits, (self.batch_size, self.num_classes))
            logits = tf.ensure_shape(
                logits[: tf.shape(images)[0]], (images.shape[0], self.num_classes)
            )
            number = tf.fill(tf.shape(labels), step)
            return images, {"labels": labels, "teacher_logits": logits, "step": number}

        joined = tf.data.Dataset.zip(train_ds, steps).map(join)
        attached = joined.prefetch(tf.data.AUTOTUNE).with_options(train_ds.options())
        attached.first_step, attached.batch_size = source.start_step, source.batch_size
        return attached

    def check(self, settings: dict[str, Any]) -> None:
        """Refuses settings that the recording wasn't made with.

        Args:
            settings: by name, those that there are to compare.

        Raises:
            InputError: names each that differs, with both values.
        """
        _check_equal(self.path, self.settings, settings)

    def check_steps(self, steps: int) -> None:
        """Refuses a training of more steps than were recorded.

        Raises:
            InputError: likewise.
        """
        if self.steps < steps:
            raise InputError(
                f"{self.path} holds {self.steps} steps, but {steps} are needed; record to another "
                "file"
            )

    def check_distiller(self, mixing, mixing_steps: int | None, data_seed: int) -> None:
        """Refuses the settings of a distiller that the recording wasn't made with.

        Raises:
            InputError: likewise.
        """
        self.check(_mixing_settings(mixing, mixing_steps, data_seed))

    def get_config(self) -> dict:
        """Returns where it is."""
        return {"recording": str(self.path.absolute())}

    def _answers(self, step: np.ndarray) -> np.ndarray:
        return self._logits[step].astype(np.float32)


def pipeline_source(dataset: tf.data.Dataset):
    """Returns what a pipeline's batches follow from."""
    source = getattr(dataset, "source", None)
    if not hasattr(source, "starting_at"):
        raise InputError(
            f"a {type(dataset).__name__} was given whose batches can't be made again; replay needs "
            "what stkd_keras.data.pipeline returns, as it is, without map, take and the like"
        )
    return source


def _mixing_settings(mixing, mixing_steps: int | None, data_seed: int) -> dict[str, Any]:
    """What the samples depend on beside the pipeline."""
    if is_multi_worker(tf.distribute.get_strategy()):
        raise InputError(
            "a recording is for the replicas of one process; take the teacher itself with several "
            "workers"
        )
    return {
        "mixing": keras.saving.serialize_keras_object(mixing),
        "mixing_steps": mixing_steps,
        "data_seed": int(data_seed),
        "num_replicas": tf.distribute.get_strategy().num_replicas_in_sync,
    }
