"""Records a teacher's logits."""

import os
import pathlib
import shutil
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError
from stkd_keras.evaluation.scores import compiled
from stkd_keras.files.locks import claim
from stkd_keras.files.write_errors import check_folder
from stkd_keras.labels import as_soft_labels
from stkd_keras.mixing import mix_batch
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.teacher.recorded import RecordedTeacher, _mixing_settings, pipeline_source
from stkd_keras.teacher.recording_file import (
    _DTYPES,
    _check_equal,
    _header,
    _parse_header,
    _unfinished,
)


def record_teacher(
    path: str | os.PathLike,
    teacher,
    dataset: tf.data.Dataset,
    mixing,
    data_seed: int,
    steps: int,
    *,
    mixing_steps: int | None = None,
    dtype: str = "float16",
    predict: Callable[[np.ndarray], np.ndarray] | None = None,
    verbose: bool = True,
) -> "RecordedTeacher":
    """Writes what a teacher answers on the virtual samples of a training's first steps.

    A recording that was interrupted goes on; of one that is there already nothing is done. Under a
    `tf.distribute.Strategy` it is for as many replicas as that has.

    Args:
        path: the file. It is a safetensors file with one tensor, (steps, batch size, classes); the
            rows that a smaller batch lacks are zeros. It is `path` with ".unfinished" behind
            it until it is whole.
        teacher: a keras.Model, a FrozenTeacher, or a list of them; with `predict` a name for what
            that asks, or None for the function's own.
        dataset: what `stkd_keras.data.pipeline` gives, from its first step on.
        mixing: as of the distiller; None for no mixing.
        data_seed: as of the distiller.
        steps: integer, batches to record.
        mixing_steps: as of the distiller.
        dtype: "float16" or, for twice the size, "float32".
        predict: a function from pixels, float32 array (B, H, W, channels) in [0, 255], to logits
            (B, C), in place of a Keras teacher: ONNX Runtime, PyTorch, a service.
        verbose: whether to print the size and show progress.

    Returns:
        The recording.

    Raises:
        InputError: where an argument is outside its range, the file holds another recording
            (names what differs) or fewer steps, or can't be written.

    Example:

    ```python
    batches = stkd_keras.data.pipeline(digits, "train", batch_size=64, data_seed=0)
    mixing = stkd_keras.Mixup(alpha=1.0)
    recorded = stkd_keras.record_teacher("teacher.replay", teacher, batches, mixing, 0, steps=1000)
    distiller = stkd_keras.SimilarityTransferDistiller(student, recorded, mixing=mixing)
    distiller.compile("sgd")
    distiller.fit(recorded.attach(batches), steps_per_epoch=100, epochs=10)
    ```
    """
    path, source = pathlib.Path(path), pipeline_source(dataset)
    if steps != int(steps) or steps < 1:
        raise InputError(f"steps is {steps}, but must be an integer of at least 1")
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype!r}, but must be one of {', '.join(_DTYPES)}")
    if predict is None and not isinstance(teacher, FrozenTeacher):
        teacher = FrozenTeacher(teacher)
    settings = {
        **source.settings(),
        **_mixing_settings(mixing, mixing_steps, data_seed),
        "teacher": _name_of(predict, teacher) if predict else teacher.fingerprint(),
    }
    shape = (int(steps), source.batch_size, source.dataset.num_classes)
    if not path.exists():
        samples = _Samples(mixing, mixing_steps, data_seed, shape[2])
        ask = predict or compiled(teacher, source.dataset.image_shape)
        _Recorder(path, settings, shape, dtype).record(
            lambda done: samples.answers(source.starting_at(done), done, ask), verbose
        )
    recorded = RecordedTeacher(path)
    recorded.check(settings)
    recorded.check_steps(steps)
    return recorded


def check_recording(path: str | os.PathLike) -> None:
    """Refuses a file that is no recording, or where none can be made, before a teacher is got."""
    path = pathlib.Path(path)
    for each in (path, _unfinished(path)):
        if each.is_dir():
            raise InputError(f"{each} is a folder, expected a recording's file; name another")
    if path.exists():
        RecordedTeacher(path)
    check_folder(f"the recording {path}", path.parent)


def check_existing_recording(
    path: str | os.PathLike | None,
    dataset: tf.data.Dataset,
    steps: int,
    mixing,
    mixing_steps: int | None,
    data_seed: int,
) -> None:
    """Raises an InputError if the file exists and is the recording of another training."""
    if path is None or not os.path.exists(path):
        return
    recorded = RecordedTeacher(path)
    recorded.check_distiller(mixing, mixing_steps, data_seed)
    recorded.check_steps(steps)
    recorded.attach(dataset)


class _Samples:
    """The virtual samples of a training, for as many replicas as the strategy has."""

    def __init__(self, mixing, mixing_steps: int | None, data_seed: int, num_classes: int):
        self._strategy = tf.distribute.get_strategy()

        def mix(images, labels, step):
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            labels = as_soft_labels(labels, num_classes)
            images = tf.cast(images, tf.float32)
            return mix_batch(mixing, mixing_steps, data_seed, images, labels, None, step, replica)[
                0
            ]

        self._mix = tf.function(
            lambda batch, step: self._strategy.run(mix, args=(*batch, step)), reduce_retracing=True
        )

    def answers(self, batches: tf.data.Dataset, step: int, ask: Callable):
        """Yields the logits of batch after batch, (B, C), the first of which has this number."""
        for batch in self._strategy.experimental_distribute_dataset(batches):
            mixed = self._mix(batch, tf.constant(step, tf.int64))
            parts = self._strategy.experimental_local_results(mixed)
            yield np.concatenate([np.asarray(ask(part.numpy())) for part in parts if len(part)])
            step += 1


class _Recorder:
    """Writes a recording, or goes on with an unfinished one."""

    def __init__(self, path: pathlib.Path, settings: dict, shape: tuple[int, int, int], dtype: str):
        self._path, self._shape, self._dtype = path, shape, dtype
        self._unfinished = _unfinished(path)
        self._header = _header(settings, shape, dtype)
        self._settings = settings
        self._step_bytes = shape[1] * shape[2] * np.dtype(dtype).itemsize

    def record(self, answers_from: Callable, verbose: bool) -> None:
        """Writes the answers; `answers_from` yields those of each step from a number on."""
        try:
            self._unfinished.parent.mkdir(parents=True, exist_ok=True)
            self._check_room()
            with self._unfinished.open("a+b") as file:
                claim(file, self._path)
                done = self._steps_done(file)
                if verbose:
                    self._announce(done)
                progress = keras.utils.Progbar(
                    self._shape[0], unit_name="step", verbose=int(verbose)
                )
                self._write(file, answers_from(done), done, progress)
            os.replace(self._unfinished, self._path)
        except OSError as error:
            raise InputError(
                f"can't write {self._unfinished}: {error.strerror}; make room or record to another "
                "place: the same call goes on"
            ) from error

    def _check_room(self) -> None:
        size = self._shape[0] * self._step_bytes
        there = self._unfinished.stat().st_size if self._unfinished.exists() else 0
        free = shutil.disk_usage(self._unfinished.parent).free
        if free < size - there:
            raise InputError(
                f"{self._path} needs {size / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are free on "
                "its disk; make room, or record to another one"
            )

    def _announce(self, done: int) -> None:
        steps, batch_size, _ = self._shape
        print(
            f"recording the teacher's answers to {steps:,} steps of {batch_size} images, "
            f"{steps * self._step_bytes / 1e6:,.1f} MB: {self._path}"
            + (f", from step {done:,} on" if done else "")
        )

    def _write(self, file, answers, done: int, progress) -> None:
        # What is written goes to the end, wherever that is.
        if not done:
            file.truncate(0)
            file.write(self._header)
            file.flush()
        file.truncate(len(self._header) + done * self._step_bytes)
        for step in range(done, self._shape[0]):
            file.write(self._padded(next(answers)).tobytes())
            progress.update(step + 1)
        file.flush()
        os.fsync(file.fileno())

    def _padded(self, logits: np.ndarray) -> np.ndarray:
        _, batch_size, classes = self._shape
        if logits.ndim != 2 or logits.shape[1] != classes or len(logits) > batch_size:
            raise InputError(
                f"the teacher gave logits of shape {logits.shape}, expected (B, {classes}): one "
                "number for each class of the data"
            )
        rows = np.zeros((batch_size, classes), self._dtype)
        with np.errstate(over="ignore"):
            rows[: len(logits)] = logits
        if not np.isfinite(rows).all():
            raise InputError(
                f"the teacher gave a logit of {np.abs(logits).max():g}, which {self._dtype} can't "
                'hold; record with dtype="float32", if it is a number at all'
            )
        return rows

    def _steps_done(self, file) -> int:
        """The whole steps of an unfinished recording."""
        file.seek(0)
        beginning = file.read(len(self._header))
        if beginning != self._header[: len(beginning)]:
            before, shape, dtype = _parse_header(self._unfinished)
            now = {**self._settings, "steps": self._shape[0], "dtype": self._dtype}
            _check_equal(self._unfinished, {**before, "steps": shape[0], "dtype": dtype}, now)
            raise InputError(f"{self._unfinished} is no beginning of this recording; remove it")
        size = self._unfinished.stat().st_size
        return max(0, size - len(self._header)) // self._step_bytes


def _name_of(predict: Callable, teacher: str | None) -> str:
    if teacher is not None and not isinstance(teacher, str):
        raise InputError(
            "teacher and predict are both given; expected one of them, or a name for what predict "
            "asks as teacher"
        )
    return teacher or f"{predict.__module__}.{getattr(predict, '__qualname__', 'predict')}"
