"""A `fit` that can resume from a backup, even within an epoch."""

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
from stkd_keras.evaluation.scores import verbosity
from stkd_keras.files.atomic import write_atomically
from stkd_keras.training import checkpoints
from stkd_keras.training.checkpoints import Backup, Progress
from stkd_keras.training.execution import choose_steps_per_execution
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.signals import DeferredSignals, Interrupted, deferred_signals

# Workers share signals only every few steps, because each check is an all-reduce.
STEPS_BETWEEN_SIGNAL_CHECKS = 10
# State of Keras's callbacks that lasts across epochs.
CALLBACK_STATE = ("wait", "stopped_epoch", "best", "best_epoch", "cooldown_counter")


class Training(NamedTuple):
    """The arguments of a training by `fit_resumably`, whose distiller is compiled."""

    distiller: keras.Model
    batches: Callable[[int], Any]  # Takes the first step.
    validation: Any
    epochs: int
    steps: int  # Per epoch.
    validation_freq: int
    backup_steps: int  # Between two backups within an epoch.
    chooses_steps_per_execution: bool = False


def fit_resumably(
    training: Training,
    run: RunDirectory,
    loggers: Callable[[bool], list],
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains from the newest backup or from the start, and writes backups."""
    with deferred_signals() as signals:
        backup = _restore(training, run)
        saver = _BackupCallback(training, run, callbacks, backup, signals)
        if backup is not None:
            print(f"resuming after {saver.place()}")
        if training.chooses_steps_per_execution and not saver.is_done:
            choose_steps_per_execution(training.distiller, training.batches(saver.step))
        while True:
            _fit_remaining_steps(training, saver, [*loggers(backup is not None), *callbacks, saver])
            if saver.is_done:
                break
            backup = _restore(training, run)
            saver = _BackupCallback(training, run, callbacks, backup, signals)
        if signals.number:
            raise Interrupted(signals.number, saver.place())


def _fit_remaining_steps(training: Training, saver: "_BackupCallback", callbacks: list) -> None:
    """Trains the rest of an interrupted epoch, or all remaining epochs."""
    distiller, progress = training.distiller, saver.progress
    rest = training.steps - progress.steps
    if progress.stopped or progress.epoch == training.epochs or not rest:
        _end_without_steps(training, progress, callbacks)
        return
    distiller.fit(
        training.batches(saver.step),
        epochs=training.epochs,
        steps_per_epoch=rest,
        initial_epoch=progress.epoch,
        verbose=verbosity(),
        shuffle=False,  # The pipeline shuffles.
        validation_data=training.validation,
        validation_freq=training.validation_freq,
        callbacks=callbacks,
    )


class _BackupCallback(keras.callbacks.Callback):
    """Writes backups. Must be the last callback, to see the state of all others."""

    def __init__(
        self,
        training: Training,
        run: RunDirectory,
        callbacks: Sequence[keras.callbacks.Callback],
        backup: Backup | None,
        signals: DeferredSignals,
    ):
        super().__init__()
        self._training, self._run, self._signals = training, run, signals
        self._settings = run.settings
        self._callbacks, self._backup = callbacks, backup
        self.progress = backup.progress if backup else Progress()
        self._epoch = self.progress.epoch
        self._first = self._steps = self.progress.steps
        self._backed_up = self.step
        self._sums: list[np.ndarray] | None = None
        self._weights: list[np.ndarray] | None = None  # If averages are in their place.
        self.is_done = self.progress.stopped or self._epoch >= training.epochs

    def place(self) -> str:
        """Returns a text with the run's path and progress."""
        steps = f" and {self._steps} steps of the next" if self._steps else ""
        where = f"epoch {self._epoch} of {self._training.epochs}{steps} (step {self.step})"
        return f"{where} of {self._run.path}"

    def on_train_begin(self, logs=None):
        """Restores the callbacks' state, or writes the first backup."""
        if self._backup is None:
            self._write()
            return
        for number, (callback, values) in enumerate(
            zip(self._callbacks, self.progress.callbacks, strict=False)
        ):
            for name, value in values.items():
                setattr(callback, name, value)
            if weights := self._backup.arrays(f"callback-{number}"):
                callback.best_weights = weights

    def on_epoch_begin(self, epoch, logs=None):
        """Restores the metrics of an interrupted epoch, which Keras has just reset."""
        self._epoch = epoch
        if not self._steps:
            return
        self._sums = self._backup.arrays("metrics")
        for variable, value in zip(self.model.metrics_variables, self._sums, strict=True):
            variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        """Checks the loss, writes a backup if one is due, and handles signals."""
        # Several steps at once may have had fewer left than Keras counts.
        self._steps = min(self._first + batch + 1, self._training.steps)
        self._check_loss(logs or {})
        self._sums = None
        is_last = self._steps == self._training.steps
        if is_last:
            self._check_weights()  # Before the loggers log the epoch.
            # Validation resets the metrics, and a signal may interrupt it.
            self._sums = checkpoints.metrics_of(self.model)
        self._stop_if_signaled(self.step)
        if not is_last and self.step - self._backed_up >= self._training.backup_steps:
            self._write()

    def on_test_begin(self, logs=None):
        """Puts the averages in place of the weights, until the epoch ends."""
        optimizer = self.model.optimizer
        if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            weights = self.model.trainable_weights
            # Exact, unlike the additions of Keras's SwapEMAWeights.
            self._weights = [np.asarray(weight) for weight in weights]
            optimizer.finalize_variable_values(weights)

    def on_test_batch_end(self, batch, logs=None):
        """Handles signals during validation."""
        self._stop_if_signaled(batch)

    def on_epoch_end(self, epoch, logs=None):
        """Writes a backup after the epoch."""
        self._sums, self._epoch, self._steps = [], epoch + 1, 0
        part, self._first = self._first, 0
        stopped = self.model.stop_training
        self._write(stopped)
        if self._is_signaled(0):
            raise Interrupted(self._signals.number, self.place())
        self.is_done = stopped or self._epoch == self._training.epochs
        # Stop after an interrupted epoch: `fit` would use its remaining steps for all epochs.
        self.model.stop_training = stopped or part > 0

    @property
    def step(self) -> int:
        """The number of steps done."""
        return self._epoch * self._training.steps + self._steps

    def _stop_if_signaled(self, count: int) -> None:
        if self._is_signaled(count):
            self._write()
            raise Interrupted(self._signals.number, self.place())

    def _is_signaled(self, count: int) -> bool:
        strategy = self.model.distribute_strategy
        if not is_multi_worker(strategy):
            return bool(self._signals.number)
        # All workers must stop after the same step, because each step needs all of them.
        if count % STEPS_BETWEEN_SIGNAL_CHECKS:
            return False
        signaled = mean_over_workers(self._signals.number, strategy) > 0
        if signaled and not self._signals.number:
            self._signals.number = signal.SIGTERM
        return signaled

    def _check_loss(self, logs: dict[str, float]) -> None:
        losses = {name: value for name, value in logs.items() if name.endswith("loss")}
        if not all(map(math.isfinite, losses.values())):
            raise self._not_finite("the loss", losses)

    def _check_weights(self) -> None:
        if not checkpoints.has_finite_weights(self.model):
            raise self._not_finite("a weight", {})

    def _not_finite(self, what: str, losses: dict[str, float]) -> InputError:
        terms = "".join(f"{name} {value:g}, " for name, value in losses.items())
        rate = float(np.asarray(self.model.optimizer.learning_rate))
        newest = checkpoints.newest_step(self._run.backup)
        return InputError(
            f"{what} stopped being finite at step {self.step}, in epoch {self._epoch + 1} of "
            f"{self._training.epochs} ({terms}learning rate {rate:g}); the last checkpoint "
            f"is of step {newest}; start over with a lower learning rate"
        )

    def _write(self, stopped: bool = False) -> None:
        if self._weights is not None:
            for variable, value in zip(self.model.trainable_weights, self._weights, strict=True):
                variable.assign(value)
            self._weights = None
        average_batch_statistics(self.model)
        self._check_weights()
        progress = Progress(
            epoch=self._epoch,
            steps=self._steps,
            stopped=stopped,
            history=_content(self._run.history),
            callbacks=[
                {name: value for name, value in vars(callback).items() if name in CALLBACK_STATE}
                for callback in self._callbacks
            ],
            settings=self._settings,
            averages=checkpoints.averages_of(self.model),
        )
        groups = {
            f"callback-{n}": callback.best_weights
            for n, callback in enumerate(self._callbacks)
            if getattr(callback, "best_weights", None)
        }
        sums = self._sums if self._sums is not None else checkpoints.metrics_of(self.model)
        checkpoints.write_backup(
            self._run.backup,
            self.model,
            progress,
            {"metrics": sums, **groups},
            is_chief(self.model.distribute_strategy),
        )
        self._backed_up = self.step


def _restore(training: Training, run: RunDirectory) -> Backup | None:
    """Restores the compiled distiller and history.csv from the newest backup, if any."""
    distiller = training.distiller
    backup = checkpoints.newest_backup(run.backup, run.settings)
    progress = backup.progress if backup else Progress()
    with distiller.distribute_strategy.scope():
        distiller.optimizer.build(distiller.trainable_variables)
        if backup is not None:
            backup.restore(distiller)
        if progress.steps:
            checkpoints.build_metrics(distiller)
    if is_chief(distiller.distribute_strategy):
        _restore_history(run.history, progress.history)
    return backup


def _end_without_steps(training: Training, progress: Progress, callbacks: list) -> None:
    """Does the work of `fit` after the last step, because `fit` can't run without steps."""
    distiller = training.distiller
    listed = keras.callbacks.CallbackList(callbacks, model=distiller, epochs=training.epochs)
    distiller.stop_training = False
    listed.on_train_begin()
    if progress.steps:
        distiller.reset_metrics()
        listed.on_epoch_begin(progress.epoch)
        logs = dict(distiller.get_metrics_result())
        is_due = (progress.epoch + 1) % training.validation_freq == 0
        if training.validation is not None and is_due:
            scores = distiller.evaluate(
                training.validation, verbose=0, callbacks=listed, return_dict=True
            )
            logs |= {f"val_{name}": value for name, value in scores.items()}
        listed.on_epoch_end(progress.epoch, logs)
    distiller.optimizer.finalize_variable_values(distiller.trainable_weights)
    listed.on_train_end()


def _restore_history(history: pathlib.Path, content: str) -> None:
    # A killed process may have written an epoch's line but not its backup, and a power failure may
    # have lost lines.
    if not content:
        history.unlink(missing_ok=True)
    elif content != _content(history):
        write_atomically(history, content.encode())


def _content(history: pathlib.Path) -> str:
    return history.read_bytes().decode(errors="replace") if history.is_file() else ""
