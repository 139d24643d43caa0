"""TensorBoard logs of a run, except the virtual samples of sample_panel.py."""

import pathlib
from typing import Any

import keras
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from stkd_keras.training.settings import is_sha256

# The first two steps are slow: they trace the graph, and TensorFlow picks kernels.
FIRST_PROFILED_STEP = 3


class RunTensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard, flushed at the end of each epoch, before its backup."""

    def __init__(self, log_dir, histogram_freq: int = 0, profile_steps: int = 0):
        last = FIRST_PROFILED_STEP + profile_steps - 1
        super().__init__(
            log_dir,
            write_graph=False,
            histogram_freq=histogram_freq,
            profile_batch=(FIRST_PROFILED_STEP, last) if profile_steps else 0,
        )

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        for writer in self._writers.values():
            writer.flush()


def write_description(log_dir: pathlib.Path, description: dict[str, Any]) -> None:
    """Logs the description of the data for TensorBoard's Text tab."""
    lines = [f"| {key} | {value} |" for key, value in description.items()]
    with tf.summary.create_file_writer(str(log_dir / "train")).as_default():
        tf.summary.text("dataset", "\n".join(["| | |", "|---|---|", *lines]), step=0)


def write_result(
    log_dir: pathlib.Path, name: str, settings: dict[str, Any], metrics: dict[str, dict[str, float]]
) -> None:
    """Logs settings and the metrics of `evaluate` for TensorBoard's HParams tab."""
    # Leaves out hashes and types that HParams doesn't support.
    shown = {
        key: float(value) if type(value) is int else value
        for key, value in settings.items()
        if isinstance(value, bool | int | float | str) and not is_sha256(value)
    }
    scores = {**metrics["test"], **metrics.get("fidelity", {})}
    with tf.summary.create_file_writer(str(log_dir / "test")).as_default():
        hparams.hparams(shown, trial_id=name)
        for score, value in scores.items():
            tf.summary.scalar(f"test_{score}", value, step=0)
