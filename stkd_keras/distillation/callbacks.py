"""Callbacks that make Keras's own do what their users mean."""

import keras

from stkd_keras.distribution.replicas import average_batch_statistics


class SaveTheStudent(keras.callbacks.Callback):
    """Has every ModelCheckpoint write the student, a plain Keras model.

    It goes before the others: where there are several replicas, their batch statistics are
    averaged before any other callback sees the end of the epoch.

    Args:
        callbacks: the callbacks of this `fit`.
    """

    def __init__(self, callbacks):
        super().__init__()
        self._checkpoints = [c for c in callbacks if isinstance(c, keras.callbacks.ModelCheckpoint)]

    def on_train_begin(self, logs=None):
        """Points the checkpoints at the student."""
        for checkpoint in self._checkpoints:
            checkpoint.set_model(_Student(self.model))

    def on_epoch_end(self, epoch, logs=None):
        """Averages batch statistics."""
        average_batch_statistics(self.model)

    def on_train_end(self, logs=None):
        """Averages batch statistics."""
        average_batch_statistics(self.model)


class _Student:
    """What ModelCheckpoint takes for the model: the distiller, of which the student is saved."""

    def __init__(self, distiller):
        self._distiller = distiller

    def __getattr__(self, name):
        return getattr(self._distiller, name)

    def save(self, *args, **kwargs):
        average_batch_statistics(self._distiller)
        self._distiller.student.save(*args, **kwargs)

    def save_weights(self, *args, **kwargs):
        average_batch_statistics(self._distiller)
        self._distiller.student.save_weights(*args, **kwargs)
