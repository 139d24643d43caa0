"""`fit` that goes on where it was: within an epoch, after a signal."""

import math
import pathlib
import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from stkd_keras.distribution.replicas import average_batch_statistics
from stkd_keras.distribution.workers import is_chief, is_multi_worker, mean_over_workers
from stkd_keras.errors import InputError
from stkd_keras.files.atomic import write_atomically
from stkd_keras.training import checkpoints as backups
from stkd_keras.training.checkpoints import Backup
from stkd_keras.training.signals import DeferredSignals, Interrupted, deferred_signals

# Workers ask each other so seldom, for it takes a message, whether one of them got a signal.
STEPS_BETWEEN_QUESTIONS = 10
# What callbacks remember from one epoch to the next.
CALLBACK_STATE: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: (
        "wait", "stopped_epoch", "best", "best_epoch", "best_weights"
    ),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}  # fmt: skip


class Training(NamedTuple):
    """What `fit_resumably` trains, and on what.

    Attributes:
        distiller: the distiller.
        compile: compiles it, given the steps of an epoch that are done already.
        batches: gives the training batches from a step on.
        validation: batches to evaluate, or None.
        epochs: passes over the training images.
        steps: batches of an epoch.
        validation_freq: epochs from one evaluation to the next.
    """

    distiller: keras.Model
    compile: Callable[[int], None]
    batches: Callable[[int], Any]
    validation: Any
    epochs: int
    steps: int
    validation_freq: int = 1


class Place(NamedTuple):
    """Where backups are, and what they shall hold beside the distiller.

    Attributes:
        folder: the backups.
        settings: those of the run.
        history: the file of CSVLogger, of which a backup holds a copy.
        every: steps between two backups within an epoch.
    """

    folder: pathlib.Path
    settings: dict[str, Any]
    history: pathlib.Path
    every: int


def fit_resumably(
    training: Training,
    place: Place,
    loggers: Callable[[bool], list],
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains from the newest backup on, or from the start, and backs up on the way.

    SIGTERM and SIGINT end it after the step that is being done, with a backup.

    Args:
        training: what to train.
        place: where the backups are.
        loggers: gives the callbacks that write the run's own artefacts, by whether they go on
            with what is there.
        callbacks: the user's. What Keras's own remember is backed up, too.

    Raises:
        InputError: where the loss stops being finite, or a backup can't be used or written.
        Interrupted: after a signal.
    """
    is_first = True
    with deferred_signals() as signals:
        while True:
            state, backup = _restored(training, place)
            saver = _Saver(training, place, callbacks, backup, state, signals)
            if backup is not None and is_first:
                print(f"resuming after {saver.where()}")
            is_first = False
            try:
                _fit_a_part(training, state, [*loggers(backup is not None), *callbacks, saver])
            except _NotFiniteError as error:
                raise InputError(f"{error}; {_advice(place)}") from error
            if saver.is_done:
                break
        if signals.number:
            raise Interrupted(signals.number, saver.place())


def largest_divisor(most: int, *numbers: int) -> int:
    """Returns the largest number, up to `most`, that divides all the numbers."""
    common = math.gcd(*numbers)
    return max(n for n in range(1, min(most, common) + 1) if common % n == 0)


class _NotFiniteError(Exception):
    """The loss or a weight isn't a number. The message says where, and what the terms were."""


class _Saver(keras.callbacks.Callback):
    """Writes the backups. It comes last, when the other callbacks have done their part.

    Args:
        training: what is trained.
        place: where the backups are.
        callbacks: those whose state is kept.
        backup: what this part of the training goes on from, or None.
        state: of that backup.
        signals: what signals have come.
    """

    def __init__(
        self,
        training: Training,
        place: Place,
        callbacks: Sequence[keras.callbacks.Callback],
        backup: Backup | None,
        state: dict[str, Any],
        signals: DeferredSignals,
    ):
        super().__init__()
        self._training, self._place, self._signals = training, place, signals
        self._callbacks, self._backup, self._state = callbacks, backup, state
        self._first = self._steps = state["steps"]
        self._epoch = state["epoch"]
        self._backed_up = self._total
        self._sums: list[np.ndarray] | None = None
        self.is_done = state["stopped"] or self._epoch >= training.epochs

    def where(self) -> str:
        """Says how far the training is."""
        steps = f" and {self._steps} steps of the next" if self._steps else ""
        return f"epoch {self._epoch} of {self._training.epochs}{steps} (step {self._total})"

    def place(self) -> str:
        """Says how far which training is."""
        return f"{self.where()} of {self._place.folder.parent}"

    def on_train_begin(self, logs=None):
        """Brings the callbacks to where they were; backs up what there was at the very start."""
        if self._backup is None:
            self._write()
            return
        for number, (callback, values) in enumerate(
            zip(self._callbacks, self._state["callbacks"], strict=False)
        ):
            for name, value in values.items():
                setattr(callback, name, value)
            if weights := self._backup.arrays(f"callback-{number}"):
                callback.best_weights = weights

    def on_epoch_begin(self, epoch, logs=None):
        """Brings the epoch's metrics to where they were, after Keras has reset them."""
        self._epoch = epoch
        if not self._steps:
            return
        self._sums = self._backup.metrics
        for variable, value in zip(self.model.metrics_variables, self._sums, strict=True):
            variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the loss, backs up when it is time, and sees whether a signal came."""
        self._steps = self._first + batch + 1
        self._check_finite(logs or {})
        self._sums = None
        is_last = self._steps == self._training.steps
        if is_last:
            self._check_weights()  # Before the epoch is logged.
            # The validation, which may be interrupted, begins with new sums.
            self._sums = backups.metrics_of(self.model)
        if self._asked_to_stop(self._total):
            self._stop()
        if not is_last and self._total - self._backed_up >= self._place.every:
            self._write()

    def on_test_batch_end(self, batch, logs=None):
        """Sees whether a signal came."""
        if self._asked_to_stop(batch):
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        """Backs up the end of the epoch."""
        self._sums, self._epoch, self._steps = [], epoch + 1, 0
        part, self._first = self._first, 0
        stopped = self.model.stop_training
        self._state = {**self._state, "stopped": stopped}
        self._write()
        if self._asked_to_stop(0):
            raise Interrupted(self._signals.number, self.place())
        self.is_done = stopped or self._epoch == self._training.epochs
        # The rest of an epoch was a shorter one: Keras would go on with such.
        self.model.stop_training = stopped or part > 0

    @property
    def _total(self) -> int:
        return self._epoch * self._training.steps + self._steps

    def _stop(self) -> None:
        self._write()
        raise Interrupted(self._signals.number, self.place())

    def _asked_to_stop(self, count: int) -> bool:
        strategy = self.model.distribute_strategy
        if not is_multi_worker(strategy):
            return bool(self._signals.number)
        # All have to stop after the same step: what they are asked for, one alone can't answer.
        if count % STEPS_BETWEEN_QUESTIONS:
            return False
        asked = mean_over_workers(self._signals.number, strategy) > 0
        if asked and not self._signals.number:
            self._signals.number = signal.SIGTERM
        return asked

    def _check_finite(self, logs: dict[str, float]) -> None:
        if all(math.isfinite(value) for name, value in logs.items() if _is_loss(name)):
            return
        raise self._not_finite(logs)

    def _check_weights(self) -> None:
        if not backups.has_finite_weights(self.model):
            raise self._not_finite({}, "a weight")

    def _not_finite(self, logs: dict[str, float], what: str = "the loss") -> _NotFiniteError:
        terms = ", ".join(f"{name} {value:g}" for name, value in logs.items() if _is_loss(name))
        rate = float(np.asarray(self.model.optimizer.learning_rate))
        return _NotFiniteError(
            f"{what} stopped being finite at step {self._total}, in epoch {self._epoch + 1} of "
            f"{self._training.epochs} ({terms and f'{terms}; '}the learning rate was {rate:g})"
        )

    def _write(self) -> None:
        average_batch_statistics(self.model)
        self._check_weights()
        state = {
            **self._state,
            "epoch": self._epoch,
            "steps": self._steps,
            "settings": self._place.settings,
            "history": _content(self._place.history),
            "callbacks": [_scalars(callback) for callback in self._callbacks],
        }
        sums = self._sums if self._sums is not None else backups.metrics_of(self.model)
        arrays = {
            f"callback-{n}": callback.best_weights
            for n, callback in enumerate(self._callbacks)
            if getattr(callback, "best_weights", None)
        }
        backups.write_backup(
            self._place.folder,
            self.model,
            state,
            sums,
            arrays,
            is_chief(self.model.distribute_strategy),
        )
        self._backed_up = self._total


def _restored(training: Training, place: Place) -> tuple[dict[str, Any], Backup | None]:
    """Compiles the distiller, and brings it and the history to where the newest backup was."""
    distiller = training.distiller
    backup = backups.newest_backup(place.folder, place.settings)
    state = {**backups.AT_START, **(backup.state if backup else {})}
    with distiller.distribute_strategy.scope():
        training.compile(state["steps"])
        distiller.optimizer.build(distiller.trainable_variables)
        if backup is not None:
            backup.restore(distiller)
        if state["steps"]:
            backups.build_metrics(distiller)
    if is_chief(distiller.distribute_strategy):
        _bring_back(place.history, state["history"])
    return state, backup


def _fit_a_part(training: Training, state: dict[str, Any], callbacks: list) -> None:
    """Trains the rest of a broken epoch, or all the epochs that are left."""
    distiller, epoch = training.distiller, state["epoch"]
    rest = training.steps - state["steps"]
    if state["stopped"] or epoch == training.epochs or not rest:
        _end_without_steps(training, state, callbacks)
        return
    distiller.fit(
        training.batches(epoch * training.steps + state["steps"]),
        epochs=training.epochs,
        steps_per_epoch=rest,
        initial_epoch=epoch,
        shuffle=False,  # The pipeline does it.
        validation_data=training.validation,
        validation_freq=training.validation_freq,
        callbacks=callbacks,
    )


def _end_without_steps(training: Training, state: dict[str, Any], callbacks: list) -> None:
    """Does what `fit` does after its last step: it can't be called for no step at all."""
    distiller = training.distiller
    listed = keras.callbacks.CallbackList(callbacks, model=distiller, epochs=training.epochs)
    distiller.stop_training = False
    listed.on_train_begin()
    if state["steps"]:
        distiller.reset_metrics()
        listed.on_epoch_begin(state["epoch"])
        logs = dict(distiller.get_metrics_result())
        is_time = (state["epoch"] + 1) % training.validation_freq == 0
        if training.validation is not None and is_time:
            scores = distiller.evaluate(
                training.validation, verbose=0, callbacks=listed, return_dict=True
            )
            logs |= {f"val_{name}": value for name, value in scores.items()}
        listed.on_epoch_end(state["epoch"], logs)
    distiller.optimizer.finalize_variable_values(distiller.trainable_weights)
    listed.on_train_end()


def _advice(place: Place) -> str:
    last = backups.newest_backup(place.folder, place.settings)
    if last is None:
        return "there is no backup from before it"
    return f"the last good backup is {last.path}: start anew with a lower learning rate"


def _bring_back(history: pathlib.Path, content: str) -> None:
    # A run that broke between an epoch's row and its backup does that epoch again; after a loss
    # of power the row may be gone.
    if not content:
        history.unlink(missing_ok=True)
    elif content != _content(history):
        write_atomically(history, content.encode())


def _content(history: pathlib.Path) -> str:
    return history.read_bytes().decode(errors="replace") if history.is_file() else ""


def _is_loss(name: str) -> bool:
    return name.endswith("loss")


def _scalars(callback: keras.callbacks.Callback) -> dict[str, float | int | None]:
    """What a callback remembers, beside arrays."""
    names = next((n for kind, n in CALLBACK_STATE.items() if isinstance(callback, kind)), ())
    values = {name: getattr(callback, name, None) for name in names if name != "best_weights"}
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in values.items()
    }
