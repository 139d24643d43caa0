"""The teacher's answers on a training's virtual samples, recorded once and replayed.

Every virtual sample is a pure function of (data_seed, step, replica), so one recording serves any
number of students, initial weights, temperatures and loss weights.
"""

import json
import os
import pathlib
import shutil
import struct
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import safetensors
import tensorflow as tf

from stkd_keras.checks import check_folder
from stkd_keras.distribution import is_multi_worker
from stkd_keras.errors import InputError, differences
from stkd_keras.evaluation import compiled
from stkd_keras.labels import label_rows
from stkd_keras.mixing import virtual_samples
from stkd_keras.teacher import FrozenTeacher
from stkd_keras.whole_files import claim

# The name in the file, which is one of safetensors'.
_DTYPES = {"float16": "F16", "float32": "F32"}
_TENSOR, _SETTINGS = "logits", "stkd_keras"
# A header that says it's longer isn't one of ours.
_LONGEST_HEADER = 1_000_000


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
    """Refuses a file that is no recording, or where none can be made, before a teacher is got.

    Raises:
        InputError: likewise.
    """
    path = pathlib.Path(path)
    for each in (path, _unfinished(path)):
        if each.is_dir():
            raise InputError(f"{each} is a folder, expected a recording's file; name another")
    if path.exists():
        RecordedTeacher(path)
    check_folder(f"the recording {path}", path.parent)


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
    """Returns what a pipeline's batches follow from.

    Raises:
        InputError: where the data set isn't one that `stkd_keras.data.pipeline` returned.
    """
    source = getattr(dataset, "source", None)
    if not hasattr(source, "starting_at"):
        raise InputError(
            f"a {type(dataset).__name__} was given whose batches can't be made again; replay needs "
            "what stkd_keras.data.pipeline returns, as it is, without map, take and the like"
        )
    return source


class _Samples:
    """The virtual samples of a training, for as many replicas as the strategy has."""

    def __init__(self, mixing, mixing_steps: int | None, data_seed: int, num_classes: int):
        self._strategy = tf.distribute.get_strategy()

        def mix(images, labels, step):
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            rows = label_rows(labels, num_classes)
            return virtual_samples(
                mixing, mixing_steps, data_seed, tf.cast(images, tf.float32), rows, None, step,
                replica,
            )[0]  # fmt: skip

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


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.unfinished")


def _name_of(predict: Callable, teacher: str | None) -> str:
    if teacher is not None and not isinstance(teacher, str):
        raise InputError(
            "teacher and predict are both given; expected one of them, or a name for what predict "
            "asks as teacher"
        )
    return teacher or f"{predict.__module__}.{getattr(predict, '__qualname__', 'predict')}"


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


def _check_equal(path: pathlib.Path, recorded: dict, given: dict) -> None:
    if differs := differences(recorded, given):
        raise InputError(
            f"{path} was recorded for something else: {differs}; record to another file"
        )


def _header(settings: dict, shape: tuple[int, int, int], dtype: str) -> bytes:
    """The beginning of a safetensors file with one tensor."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    content = {
        "__metadata__": {_SETTINGS: json.dumps(settings)},
        _TENSOR: {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]},
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse_header(path: pathlib.Path) -> tuple[dict, tuple[int, ...], str]:
    """Reads the header of a recording, finished or not: settings, shape and dtype."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            content = json.loads(file.read(min(length, _LONGEST_HEADER)))
        tensor = content[_TENSOR]
        names = {name: dtype for dtype, name in _DTYPES.items()}
        settings = dict(json.loads(content["__metadata__"][_SETTINGS]))
        return settings, tuple(tensor["shape"]), names[tensor["dtype"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise InputError(f"{path} isn't a recording of stkd_keras.record_teacher") from error


def _read_header(path: pathlib.Path) -> tuple[dict, tuple[int, int, int], str, int]:
    """Reads a whole recording's settings, shape, dtype, and where the numbers begin."""
    if not path.is_file():
        is_begun = _unfinished(path).exists()
        state = "it isn't finished: record again to go on" if is_begun else "check it"
        raise InputError(f"no file {path}; expected one of stkd_keras.record_teacher, {state}")
    settings, shape, dtype = _parse_header(path)
    try:
        with safetensors.safe_open(path, "numpy") as file:  # Sees whether the file is whole.
            file.metadata()
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is broken ({error}); remove it and record again") from error
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"{path} holds logits of shape {shape}, expected (steps, batch, classes)")
    steps, batch_size, classes = shape
    numbers = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return settings, (steps, batch_size, classes), dtype, path.stat().st_size - numbers
