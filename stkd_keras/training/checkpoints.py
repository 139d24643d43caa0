"""Training checkpoints: `.npz` files, in which every array has a checksum."""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.errors import InputError, differences, one_line
from stkd_keras.files.atomic import atomic_path


@dataclasses.dataclass(frozen=True)
class Progress:
    """The state of a training apart from its variables."""

    epoch: int = 0  # Complete epochs.
    steps: int = 0  # Steps done of the next epoch.
    stopped: bool = False  # By a callback.
    history: str = ""  # The content of history.csv.
    callbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # Attributes by name.
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # Of the run.
    averages: dict[str, str] = dataclasses.field(default_factory=dict)  # From `averages_of`.


class Backup:
    """A backup file, which raises an InputError if it is damaged."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                if any(member.compress_type for member in file.zip.infolist()):
                    raise ValueError("it is compressed")  # Small files could be huge arrays.
                self._values = {name: file[name] for name in file.files}
            progress = json.loads(self._values.pop("progress").item())
            if progress.pop("arrays") != len(self._values):  # Zip has no checksum of its index.
                raise ValueError("arrays are missing")
            self.progress = Progress(**progress)
        except Exception as error:  # The type depends on the damaged byte.
            raise InputError(f"{path} isn't a complete checkpoint ({one_line(error)})") from error

    def restore(self, distiller: keras.Model) -> None:
        """Restores all variables of a compiled distiller, whose optimizer must be built."""
        found = {name for name in self._values if name.startswith(("model/", "opt"))}
        self._assign(_variables(distiller), found)
        distiller.step.assign(self._values["step"])

    def restore_student(self, student: keras.Model) -> None:
        """Restores only the student, whose variables are the distiller's first ones.

        Uses the averages of its weights, if there are any.
        """
        variables = _named("model", student.variables)
        self._assign(variables, set(variables), self.progress.averages)

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self._values["step"])

    def _assign(
        self,
        variables: dict[str, keras.Variable],
        names: set[str],
        replaced: dict[str, str] | None = None,
    ) -> None:
        expected = {name: tuple(v.shape) for name, v in variables.items()}
        found = {name: self._values[name].shape for name in names if name in self._values}
        if expected != found:
            first = min(n for n in {*expected, *found} if expected.get(n) != found.get(n))
            path = variables[first].path if first in variables else first
            raise InputError(
                f"{self.path} is a checkpoint of another model or optimizer: {path} has the shape "
                f"{found.get(first)}, expected {expected.get(first)}; remove "
                f"{self.path.parent.parent} to start over"
            )
        for name, variable in variables.items():
            value = self._values[(replaced or {}).get(name, name)]
            # NumPy reads bfloat16 and other extension types as raw bytes.
            is_raw = value.dtype.kind == "V"
            dtype = tf.as_dtype(variable.dtype).as_numpy_dtype
            variable.assign(value.view(dtype) if is_raw else value)

    def arrays(self, group: str) -> list[np.ndarray]:
        """Returns the arrays that `write_backup` stored as a group."""
        names = sorted(name for name in self._values if name.startswith(f"{group}/"))
        return [self._values[name] for name in names]


def write_backup(
    folder: pathlib.Path,
    distiller: keras.Model,
    progress: Progress,
    groups: dict[str, list[np.ndarray]],
    writes: bool = True,
) -> None:
    """Writes a backup with additional groups of arrays; keeps only the backup before it.

    All workers have to call it, since reading variables can take all of them; one `writes`.
    """
    values = {name: np.asarray(v) for name, v in _variables(distiller).items()}
    if not writes:
        return
    for group, arrays in groups.items():
        values |= {f"{group}/{n:05d}": array for n, array in enumerate(arrays)}
    values["step"] = np.asarray(distiller.step, np.int64)
    state = {**dataclasses.asdict(progress), "arrays": len(values)}
    values["progress"] = np.asarray(json.dumps(state, default=float))
    path = folder / f"step-{int(values['step']):010d}.npz"
    with atomic_path(path) as temporary:
        np.savez(temporary, **values)  # type: ignore[arg-type]
    others = _files(folder) - {path}
    # The previous one is a reserve. Later ones are damaged, since the run resumed before them.
    for other in others - {max((o for o in others if o < path), default=path)}:
        other.unlink(missing_ok=True)


def newest_backup(folder: pathlib.Path, settings: dict[str, Any]) -> Backup | None:
    """Returns the newest undamaged backup, which must have these settings, if there is any."""
    damaged: list[InputError] = []
    for path in sorted(_files(folder), reverse=True):
        try:
            backup = Backup(path)
        except InputError as error:
            damaged.append(error)
            continue
        before = backup.progress.settings
        if differs := differences(before, {**dict.fromkeys(before), **settings}):
            raise InputError(f"{path} is a checkpoint of another run ({differs}); remove it")
        for reason in damaged:
            print(f"warning: {reason}; using {path.name}", file=sys.stderr)
        return backup
    if damaged:
        raise InputError(
            f"{damaged[0]}, and there is no other; remove {folder.parent} to start over"
        )
    if old := sorted(folder.glob("step-*.safetensors")):
        raise InputError(
            f"{old[-1]} is a checkpoint of an older version of stkd_keras; remove {folder.parent} "
            "to start over"
        )
    return None


def newest_step(folder: pathlib.Path) -> int:
    """Returns the step of the newest backup, damaged or not, or 0."""
    return max((int(path.stem.removeprefix("step-")) for path in _files(folder)), default=0)


def metrics_of(distiller: keras.Model) -> list[np.ndarray]:
    """Returns the values of the metrics' variables. All workers must call it."""
    return [np.asarray(variable) for variable in distiller.metrics_variables]


def averages_of(distiller: keras.Model) -> dict[str, str]:
    """Returns the names of the optimizer's averages in a backup, by the names of the weights."""
    optimizer = getattr(distiller.optimizer, "inner_optimizer", distiller.optimizer)
    if not optimizer.use_ema or not np.asarray(optimizer.iterations):
        return {}
    names = {id(variable): name for name, variable in _variables(distiller).items()}
    averages = optimizer._model_variables_moving_average
    pairs = zip(distiller.trainable_variables, averages, strict=True)
    return {names[id(weight)]: names[id(average)] for weight, average in pairs}


def build_metrics(distiller: keras.Model) -> None:
    """Creates the variables of the compiled metrics, as Keras does in the first step."""

    def update():
        labels = tf.one_hot([0], distiller.num_classes)
        distiller.compute_metrics(None, labels, labels)

    tf.function(lambda: distiller.distribute_strategy.run(update))()
    distiller.reset_metrics()


def variables(distiller: keras.Model) -> list[keras.Variable]:
    """Returns all variables that training changes, except the metrics."""
    return [*_variables(distiller).values(), distiller.step]


def has_finite_weights(distiller: keras.Model) -> bool:
    """Whether all weights are finite; an update can break them even if the loss is finite."""
    return all(
        bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(v))))
        for v in distiller.weights
        if keras.backend.is_float_dtype(v.dtype)
    )


def _files(folder: pathlib.Path) -> set[pathlib.Path]:
    return set(folder.glob(f"step-{10 * '[0-9]'}.npz"))


def _variables(distiller: keras.Model) -> dict[str, keras.Variable]:
    """Returns all variables that training changes, except the step and the metrics."""
    # Includes the seeds of random layers, unlike `save_weights`.
    optimizer = _named("optimizer", distiller.optimizer.variables)
    return {**_named("model", distiller.variables), **optimizer}


def _named(group: str, variables: list[keras.Variable]) -> dict[str, keras.Variable]:
    # Not by path: paths depend on the models created before in the process ("adam_w_8").
    return {f"{group}/{n:05d}": variable for n, variable in enumerate(variables)}
