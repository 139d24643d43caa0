"""A teacher whose logits were recorded.

Every virtual sample is a pure function of (data_seed, step, replica), so one recording works for
any number of students, initial weights, temperatures and loss weights.
"""

import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.data.sources.threads import weak_method
from stkd_keras.distribution.workers import is_multi_worker
from stkd_keras.errors import InputError
from stkd_keras.teacher.recording_file import check_equal, read_header


class RecordedTeacher:
    """A teacher that reads its logits from a file of `record_teacher`.

    Pass it to the distiller as `teacher`, and the training data through `attach`. The file is
    memory-mapped, so only the logits of the current batch are read.

    Args:
        path: the file.

    Raises:
        InputError: if the file is missing, unfinished, or not a recording.
    """

    # Read by code that also takes a FrozenTeacher.
    input_shape = None
    supports_jit = True

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.settings, shape, dtype, offset = read_header(self.path)
        self.steps, self.batch_size, self.num_classes = shape
        self._logits = np.memmap(self.path, dtype, "r", offset, shape)

    def attach(self, train_ds: tf.data.Dataset) -> tf.data.Dataset:
        """Adds the recorded logits to the batches of a pipeline.

        Args:
            train_ds: a dataset from `stkd_keras.data.pipeline` with the arguments used for the
                recording. `start_step` may be later.

        Returns:
            Dataset of (images, targets) with as many batches as were recorded. `targets` is a
            dict of "labels" (B,), "teacher_logits" (B, C), float32, and "step" (B,), the number
            of the batch.

        Raises:
            InputError: if the dataset isn't such a pipeline, or was made with other arguments.
        """
        source = pipeline_source(train_ds)
        self.check(source.settings())
        steps = tf.data.Dataset.range(source.start_step, self.steps)

        def join(batch, step):
            images, labels = batch
            logits = tf.numpy_function(weak_method(self._read), [step], tf.float32)
            logits = tf.ensure_shape(logits, (self.batch_size, self.num_classes))
            number = tf.fill((self.batch_size,), step)
            return images, {"labels": labels, "teacher_logits": logits, "step": number}

        joined = tf.data.Dataset.zip(train_ds, steps).map(join)
        attached = joined.prefetch(tf.data.AUTOTUNE).with_options(train_ds.options())
        attached.first_step = source.start_step
        return attached

    def check(self, settings: dict[str, Any]) -> None:
        """Raises an InputError that names the settings that differ from the recorded ones."""
        check_equal(self.path, self.settings, settings)

    def check_steps(self, steps: int) -> None:
        """Raises an InputError if fewer steps were recorded."""
        if self.steps < steps:
            raise InputError(
                f"{self.path} has {self.steps} steps, but {steps} are needed; record to another "
                "file"
            )

    def check_distiller(self, mixing, mixing_steps: int | None, data_seed: int) -> None:
        """Raises an InputError if these settings of a distiller differ from the recorded ones."""
        self.check(mixing_settings(mixing, mixing_steps, data_seed))

    def get_config(self) -> dict:
        return {"recording": str(self.path.absolute())}

    def _read(self, step: np.ndarray) -> np.ndarray:
        return self._logits[step].astype(np.float32)


def pipeline_source(dataset: tf.data.Dataset):
    """Returns the source from which a pipeline's batches can be recreated."""
    source = getattr(dataset, "source", None)
    if not hasattr(source, "starting_at"):
        raise InputError(
            f"the batches of a {type(dataset).__name__} can't be recreated; pass the dataset from "
            "stkd_keras.data.pipeline without map, take and the like"
        )
    return source


def mixing_settings(mixing, mixing_steps: int | None, data_seed: int) -> dict[str, Any]:
    """Returns the settings, other than the pipeline's, that decide the virtual samples."""
    strategy = tf.distribute.get_strategy()
    if is_multi_worker(strategy):
        raise InputError(
            "a recording works with the replicas of one process only; use the teacher itself with "
            "several workers"
        )
    return {
        "mixing": keras.saving.serialize_keras_object(mixing),
        "mixing_steps": mixing_steps,
        "data_seed": int(data_seed),
        "num_replicas": strategy.num_replicas_in_sync,
    }
