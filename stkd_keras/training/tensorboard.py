"""What a run writes for TensorBoard; the picture of its virtual samples is in panel.py."""

import ctypes
import gc
import pathlib
import re
from typing import Any

import keras
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

# The first two are slow: they trace the step and let TensorFlow choose its kernels.
FIRST_PROFILED_STEP = 3


class RunTensorBoard(keras.callbacks.TensorBoard):
    """TensorBoard, whose files hold what an epoch has logged before its backup is written.

    Args:
        log_dir: the directory of the event files.
        histogram_freq: epochs from one set of histograms of the weights to the next; 0 for none.
        profile_steps: how many steps of this process are profiled, from the third on; 0 for none.
    """

    def __init__(self, log_dir, histogram_freq: int = 0, profile_steps: int = 0):
        last = FIRST_PROFILED_STEP + profile_steps - 1
        super().__init__(
            log_dir,
            write_graph=False,
            histogram_freq=histogram_freq,
            profile_batch=(FIRST_PROFILED_STEP, last) if profile_steps else 0,
        )

    def on_epoch_end(self, epoch, logs=None):
        """Logs the epoch."""
        super().on_epoch_end(epoch, logs)
        for writer in self._writers.values():
            writer.flush()


def write_result(
    log_dir: pathlib.Path, name: str, settings: dict[str, Any], metrics: dict[str, dict[str, float]]
) -> None:
    """Writes settings and scores, by which TensorBoard's HParams sorts the runs of a sweep.

    Args:
        log_dir: the directory of the run's event files; it goes into `test/` there.
        name: the run's.
        settings: values by name; those that HParams has no column for, as None, are left out, and
            fingerprints, which would fill it.
        metrics: what `stkd_keras.experiment.evaluate` returned.
    """
    shown = {key: value for key, value in settings.items() if isinstance(value, bool | float | str)}
    shown = {key: value for key, value in shown.items() if not _is_fingerprint(value)}
    shown |= {key: float(value) for key, value in settings.items() if type(value) is int}
    scores = {**metrics["test"], **metrics.get("fidelity", {})}
    with tf.summary.create_file_writer(str(log_dir / "test")).as_default():
        hparams.hparams(shown, trial_id=name)
        for score, value in scores.items():
            tf.summary.scalar(f"test_{score}", value, step=0)


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


class ReturnFreedMemory(keras.callbacks.Callback):
    """Gives memory that isn't used any more back to the operating system every few epochs.

    Figures are cycles, of megabytes each, which Python looks for the less often the more there is
    beside them: a process would grow by some percent over its first dozens of epochs.

    Args:
        freq: epochs from one time to the next.
    """

    def __init__(self, freq: int = 1):
        super().__init__()
        self._freq = freq
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def on_epoch_end(self, epoch, logs=None):
        """Gives it back, if it is its turn."""
        if (epoch + 1) % self._freq:
            return
        gc.collect()
        if self._trim is not None:  # Of glibc.
            self._trim(0)
