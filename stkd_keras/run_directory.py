"""The directory of a run: what is in it, whole or not at all, and how a run goes on."""

import csv
import json
import math
import os
import pathlib
import shutil
from typing import Any

import keras

from stkd_keras.errors import InputError
from stkd_keras.untrusted import check_hdf5, read_text

_ARTEFACTS = ("config.json", "history.csv", "metrics.json", "backup", "tensorboard")


class RunDirectory:
    """One training's directory.

    `config.json`, `history.csv` (an epoch a row), `tensorboard/`, `backup/` (to resume), the
    model and, at the very end, `metrics.json`: a run that has it is complete.

    Args:
        path: the directory; it is made when the run starts.
        model_name: the model's file within it.
    """

    def __init__(self, path, model_name: str = "student.keras"):
        self.path = pathlib.Path(path)
        self.model = self.path / model_name
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.json"
        self.history = self.path / "history.csv"
        self.backup = self.path / "backup"
        self.tensorboard = self.path / "tensorboard"

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended well."""
        return self.metrics.is_file() and self.model.is_file()

    @property
    def epochs_done(self) -> int:
        """The number of epochs that the last backup comes after."""
        backup = self._last_backup()
        return int(backup.name.split("-")[1].split(".")[0]) if backup else 0

    def check(self, settings: dict[str, Any], overwrite: bool = False) -> None:
        """Sees, without changing anything, whether a run may write here.

        Args:
            settings: what the run's result depends on.
            overwrite: whether what is there may go.

        Raises:
            InputError: where the directory holds a complete run, the beginning of another run,
                or something that isn't a run.
        """
        if not self.path.exists() or overwrite:
            if self.path.exists() and not self._is_run():
                raise InputError(f"--run_dir={self.path} isn't a run's directory; name another")
            return
        if not self._is_run():
            raise InputError(
                f"--run_dir={self.path} exists and isn't a run's directory; name another"
            )
        if self.is_complete:
            raise InputError(
                f"{self.path} holds a complete run; choose another --run_dir, or replace it with "
                "--overwrite"
            )
        before = read_json(self.config).get("settings", {}) if self.config.is_file() else settings
        differs = [k for k in settings if before.get(k) != settings[k]]
        if differs:
            changes = ", ".join(f"{k} was {before.get(k)} and is {settings[k]}" for k in differs)
            raise InputError(
                f"{self.path} holds the beginning of another run ({changes}); choose another "
                "--run_dir, or start anew with --overwrite"
            )

    def start(self, config: dict[str, Any], overwrite: bool = False) -> None:
        """Makes the directory and writes config.json; `overwrite` removes the run in it."""
        if overwrite:
            for name in (*_ARTEFACTS, self.model.name):
                path = self.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.backup.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)

    def restore(self, distiller: keras.Model, writes: bool = True) -> int:
        """Loads the last backup into a compiled distiller.

        Args:
            distiller: the distiller.
            writes: whether the history is this process's to trim.

        Returns:
            The number of epochs that are done.
        """
        backup = self._last_backup()
        if backup is None:
            if writes:
                self.history.unlink(missing_ok=True)
            return 0
        distiller.optimizer.build(distiller.trainable_variables)
        check_hdf5(backup)
        distiller.load_weights(backup)
        if writes:
            self._trim_history(self.epochs_done)
        return self.epochs_done

    def save_model(self, model: keras.Model) -> None:
        """Writes the model, whole or not at all."""
        temporary = self.path / f"tmp-{os.getpid()}.keras"
        model.save(temporary)
        os.replace(temporary, self.model)

    def _last_backup(self) -> pathlib.Path | None:
        return max(self.backup.glob("epoch-*.weights.h5"), default=None)

    def _is_run(self) -> bool:
        return self.path.is_dir() and (self.config.is_file() or not any(self.path.iterdir()))

    def _trim_history(self, epochs: int) -> None:
        # A run that broke between an epoch's row and its backup does that epoch again.
        with self.history.open(newline="") as file:
            rows = list(csv.reader(file))[: 1 + epochs]
        temporary = self.history.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        os.replace(temporary, self.history)


class Backup(keras.callbacks.Callback):
    """Keeps, after each epoch, all that the run needs to go on: never the teacher.

    Args:
        run: the run's directory.
    """

    def __init__(self, run: RunDirectory):
        super().__init__()
        self._run = run

    def on_epoch_end(self, epoch, logs=None):
        """Writes the new backup beside the old one, then removes the old one."""
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            return
        folder = self._run.backup
        temporary = folder / "tmp.weights.h5"
        self.model.save_weights(temporary)
        newest = folder / f"epoch-{epoch + 1:05d}.weights.h5"
        os.replace(temporary, newest)
        for other in folder.glob("epoch-*.weights.h5"):
            if other != newest:
                other.unlink()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        InputError: where it doesn't.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, but a run writes an object")
    if not isinstance(content.get("settings", {}), dict):
        raise InputError(f"{path} holds settings that aren't an object, as a run writes them")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
