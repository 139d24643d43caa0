"""What a run goes on from: all that its training has changed, in one file with a checksum."""

import hashlib
import json
import pathlib
import re
import sys
from typing import Any

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

from stkd_keras.errors import InputError, differences, one_line
from stkd_keras.files.atomic import write_atomically

_NAME = re.compile(r"step-\d{10}\.safetensors")
_STATE, _CHECKSUM = "stkd_keras.state", "stkd_keras.sha256"
_GROUPS = ("model/", "optimizer/")
# Where a run is that has no backup yet. Every backup says all of it, in these types.
AT_START: dict[str, Any] = {
    "epoch": 0, "steps": 0, "history": "", "stopped": False, "callbacks": [],
}  # fmt: skip
_TYPES = {name: type(value) for name, value in AT_START.items()}
_UNREADABLE = (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError)


class Backup:
    """One file: the values of a distiller's variables, and what else its run has to know.

    Args:
        path: the file.

    Raises:
        InputError: if it isn't whole, or isn't a backup.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            content = path.read_bytes()
            with safetensors.safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
            self._values = safetensors.numpy.load(content)
            self.state: dict[str, Any] = json.loads(metadata[_STATE])
        except _UNREADABLE as error:
            raise InputError(f"{path} isn't a whole backup ({one_line(error)})") from error
        if metadata.get(_CHECKSUM) != _checksum(self._values, metadata[_STATE]):
            raise InputError(f"{path} isn't a whole backup (its checksum is another)")
        if {name: type(self.state.get(name)) for name in AT_START} != _TYPES:
            raise InputError(f"{path} doesn't say where its run was, as a backup does")

    def check(self, settings: dict[str, Any]) -> None:
        """Sees whether it is of the run with these settings.

        Raises:
            InputError: otherwise, with what differs.
        """
        before = self.state.get("settings", {})
        if differs := differences(before, {**dict.fromkeys(before), **settings}):
            raise InputError(f"{self.path} is a backup of another run ({differs}); remove it")

    def restore(self, distiller: keras.Model) -> None:
        """Gives a compiled distiller, with its optimizer built, the weights and all other state.

        Raises:
            InputError: where it was of another model or optimizer.
        """
        variables = _variables(distiller)
        wanted = {name: tuple(v.shape) for name, v in variables.items()}
        there = {n: v.shape for n, v in self._values.items() if n.startswith(_GROUPS)}
        if wanted != there:
            first = min(n for n in {*wanted, *there} if wanted.get(n) != there.get(n))
            path = variables[first].path if first in variables else first
            raise InputError(
                f"{self.path} is a backup of another model or optimizer: {path} is "
                f"{there.get(first)} there and {wanted.get(first)} here; remove "
                f"{self.path.parent.parent} to start anew"
            )
        for name, variable in variables.items():
            variable.assign(_as_dtype(self._values[name], variable.dtype))
        distiller.step.assign(self._values["step"])

    @property
    def metrics(self) -> list[np.ndarray]:
        """The running sums of the epoch's metrics, in the order of `metrics_variables`."""
        return self.arrays("metrics")

    def arrays(self, group: str) -> list[np.ndarray]:
        """The arrays that were given to `write_backup` under a name."""
        names = sorted(name for name in self._values if name.startswith(f"{group}/"))
        return [self._values[name] for name in names]


def write_backup(
    folder: pathlib.Path,
    distiller: keras.Model,
    state: dict[str, Any],
    metrics: list[np.ndarray],
    arrays: dict[str, list[np.ndarray]],
    writes: bool = True,
) -> None:
    """Writes a backup, and removes all but this one and the one before.

    Of several workers all have to call it.

    Args:
        folder: the run's backups.
        distiller: a compiled distiller.
        state: what else the run has to know: anything that JSON can hold.
        metrics: the values of `metrics_variables`.
        arrays: further arrays, by a name for each list of them.
        writes: whether this process is the one to write.

    Raises:
        InputError: where the file can't be written. Those before are kept then.
    """
    values = {name: _stored(v) for name, v in _variables(distiller).items()}
    if not writes:
        return
    values["step"] = np.asarray(distiller.step, np.int64)
    for group, members in {"metrics": metrics, **arrays}.items():
        values |= {f"{group}/{n:05d}": _stored(member) for n, member in enumerate(members)}
    text = json.dumps(state)
    metadata = {_STATE: text, _CHECKSUM: _checksum(values, text)}
    path = folder / f"step-{int(values['step']):010d}.safetensors"
    write_atomically(path, safetensors.numpy.save(values, metadata))
    others = _files(folder) - {path}
    # The one before is a reserve. Later ones are broken: this run went on from before them.
    for other in others - {max((o for o in others if o < path), default=path)}:
        other.unlink(missing_ok=True)


def newest_backup(
    folder: pathlib.Path, settings: dict[str, Any], warns: bool = True
) -> Backup | None:
    """Returns the newest backup that is whole, or None where there is none at all.

    Args:
        folder: the run's backups.
        settings: those of the run.
        warns: whether those that aren't whole are named on the standard error.

    Raises:
        InputError: where there are backups but none is whole, or the newest that is whole is of
            another run.
    """
    broken: list[InputError] = []
    for path in sorted(_files(folder), reverse=True):
        try:
            backup = Backup(path)
        except InputError as error:
            broken.append(error)
            continue
        backup.check(settings)
        for why in broken if warns else ():
            print(f"warning: {why}; going on from {path.name}", file=sys.stderr)
        return backup
    if broken:
        raise InputError(
            f"{broken[0]}, and there is no other; remove {folder.parent} to start anew"
        )
    return None


def newest_step(folder: pathlib.Path) -> int:
    """Returns the step of the newest backup, whole or not; 0 where there is none."""
    return max((int(path.stem.removeprefix("step-")) for path in _files(folder)), default=0)


def metrics_of(distiller: keras.Model) -> list[np.ndarray]:
    """Returns the values of the metrics' variables; of several workers all have to call it."""
    return [np.asarray(variable) for variable in distiller.metrics_variables]


def build_metrics(distiller: keras.Model) -> None:
    """Makes the variables of the compiled metrics, which Keras makes with the first batch."""

    def update():
        row = tf.one_hot([0], distiller.num_classes)
        distiller.compute_metrics(None, row, row)

    tf.function(lambda: distiller.distribute_strategy.run(update))()
    distiller.reset_metrics()


def has_finite_weights(distiller: keras.Model) -> bool:
    """Whether all weights are numbers; an update may have spoilt them after a finite loss."""
    return all(
        bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(v))))
        for v in distiller.weights
        if keras.backend.is_float_dtype(v.dtype)
    )


def _files(folder: pathlib.Path) -> set[pathlib.Path]:
    """The backups in a folder, whole or not."""
    paths = folder.glob("step-*")
    return {path for path in paths if _NAME.fullmatch(path.name) and path.is_file()}


def _variables(distiller: keras.Model) -> dict[str, keras.Variable]:
    """All that training changes, beside step and metrics, under names that sort in its order."""
    # `variables` has the state of random layers too, which `save_weights` leaves out.
    groups = {"model": distiller.variables, "optimizer": distiller.optimizer.variables}
    # Not under their paths, in which Keras counts the models that a process has made.
    return {
        f"{group}/{n:05d}": variable
        for group, variables in groups.items()
        for n, variable in enumerate(variables)
    }


def _stored(value) -> np.ndarray:
    """An array of a dtype that every reader of the file's format knows."""
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    return array if array.dtype.kind in "fiub" else array.view(f"u{array.dtype.itemsize}")


def _as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    wanted = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    return array if array.dtype == wanted else array.view(wanted)


def _checksum(values: dict[str, np.ndarray], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name, value in sorted(values.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
