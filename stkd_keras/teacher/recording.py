"""Records a teacher's logits."""

import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError
from stkd_keras.evaluation.scores import compiled, verbosity
from stkd_keras.files.locks import claim
from stkd_keras.files.write_errors import check_folder
from stkd_keras.labels import as_soft_labels
from stkd_keras.mixing import mix_batch
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.teacher.recorded import RecordedTeacher, mixing_settings, pipeline_source
from stkd_keras.teacher.recording_file import (
    SAFETENSORS_DTYPES,
    check_equal,
    make_header,
    parse_header,
    unfinished_path,
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
    """Records a teacher's logits for the virtual samples of the first training steps.

    An interrupted recording resumes, and a complete one isn't changed. Under a
    `tf.distribute.Strategy`, the recording is for its number of replicas.

    Args:
        path: the file, in safetensors format with one tensor (steps, batch size, classes). Until it
            is complete it is called `path` + ".unfinished".
        teacher: a keras.Model, a FrozenTeacher, or a list of them. With `predict`, a name for the
            teacher, or None for the function's name.
        dataset: a dataset from `stkd_keras.data.pipeline` that starts at step 0.
        mixing: the distiller's `mixing`; None for no mixing.
        data_seed: the distiller's `data_seed`.
        steps: integer, number of batches to record.
        mixing_steps: the distiller's `mixing_steps`.
        dtype: "float16", or "float32" for twice the size.
        predict: a function from pixels, float32 array (B, H, W, channels) in [0, 255], to logits
            (B, C), for a teacher that isn't a Keras model: ONNX Runtime, PyTorch, a service.
        verbose: whether to print the size and show progress.

    Returns:
        The recording.

    Raises:
        InputError: if an argument is out of range, if the file can't be written, or if it holds
            fewer steps or was recorded with other settings; the message names them.

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
    if dtype not in SAFETENSORS_DTYPES:
        raise InputError(f"dtype is {dtype!r}, but must be one of {', '.join(SAFETENSORS_DTYPES)}")
    if predict is None and not isinstance(teacher, FrozenTeacher):
        teacher = FrozenTeacher(teacher)
    settings = {
        **source.settings(),
        **mixing_settings(mixing, mixing_steps, data_seed),
        "teacher": _name_of(predict, teacher) if predict else teacher.fingerprint(),
    }
    if not path.exists():
        predict = predict or compiled(teacher, source.dataset.image_shape)
        mix = functools.partial(mix_batch, mixing, mixing_steps, data_seed)
        shape = (int(steps), dataset.element_spec[0].shape[0], source.dataset.num_classes)
        _Recorder(path, settings, shape, dtype).record(
            functools.partial(_logits_from, source, mix, predict), verbose
        )
    recorded = RecordedTeacher(path)
    recorded.check(settings)
    recorded.check_steps(steps)
    return recorded


def check_recording(path: str | os.PathLike) -> None:
    """Raises an InputError if the path is neither a recording nor a place for a new one."""
    path = pathlib.Path(path)
    for each in (path, unfinished_path(path)):
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
    """Raises an InputError if the file exists but was recorded for another training."""
    if path is None or not os.path.exists(path):
        return
    recorded = RecordedTeacher(path)
    recorded.check_distiller(mixing, mixing_steps, data_seed)
    recorded.check_steps(steps)
    recorded.attach(dataset)


def _logits_from(source, mix: Callable, predict: Callable, step: int) -> Iterator[np.ndarray]:
    """Yields the logits (B, C) of all replicas for each step, starting at a given one."""
    strategy = tf.distribute.get_strategy()

    def mix_replica(images, labels, step):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        labels = as_soft_labels(labels, source.dataset.num_classes)
        return mix(tf.cast(images, tf.float32), labels, None, step, replica)[0]

    @tf.function(reduce_retracing=True)
    def mix_all(batch, step):
        return strategy.run(mix_replica, args=(*batch, step))

    for batch in strategy.experimental_distribute_dataset(source.starting_at(step)):
        mixed = mix_all(batch, tf.constant(step, tf.int64))
        parts = strategy.experimental_local_results(mixed)
        yield np.concatenate([np.asarray(predict(part.numpy())) for part in parts])
        step += 1


class _Recorder:
    """Writes a new recording or resumes an unfinished one."""

    def __init__(self, path: pathlib.Path, settings: dict, shape: tuple[int, int, int], dtype: str):
        self._path, self._settings, self._shape, self._dtype = path, settings, shape, dtype
        self._unfinished = unfinished_path(path)
        self._header = make_header(settings, shape, dtype)
        self._step_bytes = shape[1] * shape[2] * np.dtype(dtype).itemsize

    def record(self, logits_from: Callable[[int], Iterator[np.ndarray]], verbose: bool) -> None:
        """Writes the logits that `logits_from` yields, starting at the first missing step."""
        try:
            self._unfinished.parent.mkdir(parents=True, exist_ok=True)
            self._check_free_space()
            with self._unfinished.open("a+b") as file:
                claim(file, self._path)
                self._write(file, logits_from, verbose)
            os.replace(self._unfinished, self._path)
        except OSError as error:
            raise InputError(
                f"can't write {self._unfinished}: {error.strerror}; free some space to resume, or "
                "record to another place"
            ) from error

    def _check_free_space(self) -> None:
        size = self._shape[0] * self._step_bytes
        written = self._unfinished.stat().st_size if self._unfinished.exists() else 0
        free = shutil.disk_usage(self._unfinished.parent).free
        if free < size - written:
            raise InputError(
                f"{self._path} needs {size / 1e6:,.1f} MB, but its disk has {free / 1e6:,.1f} MB "
                "free; free some space, or record to another disk"
            )

    def _write(self, file, logits_from: Callable, verbose: bool) -> None:
        steps, batch_size, _ = self._shape
        done = self._steps_done(file)
        if verbose:
            print(
                f"recording the teacher's logits for {steps:,} steps of {batch_size} images, "
                f"{steps * self._step_bytes / 1e6:,.1f} MB: {self._path}"
                + (f", from step {done:,} on" if done else "")
            )
        # In a log, every update is a line.
        seconds = 0.5 if verbosity() == 1 else 30.0
        progress = keras.utils.Progbar(
            steps, interval=seconds, unit_name="step", verbose=int(verbose)
        )
        # The file is in append mode: every write goes to its end.
        if not done:
            file.truncate(0)
            file.write(self._header)
            file.flush()
        file.truncate(len(self._header) + done * self._step_bytes)
        logits = logits_from(done)
        for step in range(done, steps):
            file.write(self._checked(next(logits)).tobytes())
            progress.update(step + 1)
        file.flush()
        os.fsync(file.fileno())

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        if logits.shape != self._shape[1:]:
            raise InputError(
                f"the teacher returned logits of shape {logits.shape}, expected {self._shape[1:]}: "
                "for each image, one for each class of the data"
            )
        with np.errstate(over="ignore"):
            converted = logits.astype(self._dtype)
        if not np.isfinite(converted).all():
            raise InputError(
                f"the teacher returned a logit of {np.abs(logits).max():g}, which {self._dtype} "
                'can\'t hold; record with dtype="float32" if it is finite'
            )
        return converted

    def _steps_done(self, file) -> int:
        """Returns the number of complete steps in the unfinished file."""
        file.seek(0)
        start = file.read(len(self._header))
        if start != self._header[: len(start)]:
            before, shape, dtype = parse_header(self._unfinished)
            now = {**self._settings, "steps": self._shape[0], "dtype": self._dtype}
            check_equal(self._unfinished, {**before, "steps": shape[0], "dtype": dtype}, now)
            raise InputError(f"{self._unfinished} isn't the start of this recording; remove it")
        size = self._unfinished.stat().st_size
        return max(0, size - len(self._header)) // self._step_bytes


def _name_of(predict: Callable, teacher: str | None) -> str:
    if teacher is not None and not isinstance(teacher, str):
        raise InputError(
            "teacher and predict are both given; pass one of them, or a name for predict as teacher"
        )
    return teacher or f"{predict.__module__}.{getattr(predict, '__qualname__', 'predict')}"
