"""Callbacks that `fit` adds."""

import math

import keras

from stkd_keras.distribution.replicas import average_batch_statistics


def with_own_callbacks(callbacks) -> list[keras.callbacks.Callback]:
    """Returns the callbacks given to `fit`, after those that it adds."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = keras.tree.flatten(callbacks or [])
    return [EndEpochExactly(), SaveTheStudent(callbacks), *callbacks]


class EndEpochExactly(keras.callbacks.Callback):
    """Tells the model how many steps of the epoch are left, which several at once may exceed."""

    def on_train_begin(self, logs=None):
        self._iterator = self.model.epoch_iterator

    def on_train_batch_begin(self, batch, logs=None):
        steps = self.params["steps"]
        self.model.steps_left = steps and steps - batch

    def on_train_batch_end(self, batch, logs=None):
        # Keras counts steps that weren't left, too, and would begin finite data anew before all of
        # it was used. A recording's logits would then no longer belong to the images.
        missing = self.model.steps_per_execution - (self.model.steps_left or math.inf)
        if missing > 0:
            self._iterator()._steps_seen -= missing

    def on_train_end(self, logs=None):
        self.model.steps_left = None


class SaveTheStudent(keras.callbacks.Callback):
    """Makes every ModelCheckpoint save the student, a plain Keras model.

    It must run before the other callbacks, because it averages the batch statistics of the replicas
    at the end of each epoch.
    """

    def __init__(self, callbacks):
        super().__init__()
        self._checkpoints = [c for c in callbacks if isinstance(c, keras.callbacks.ModelCheckpoint)]

    def on_train_begin(self, logs=None):
        for checkpoint in self._checkpoints:
            checkpoint.set_model(_Student(self.model))

    def on_epoch_end(self, epoch, logs=None):
        average_batch_statistics(self.model)

    def on_train_end(self, logs=None):
        average_batch_statistics(self.model)


class _Student:
    """A distiller whose `save` methods save the student."""

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
