"""The directory of a run: what is in it, whole or not at all, and how a run goes on."""

import csv
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any

import h5py
import keras

from stkd_keras.checks import check_folder
from stkd_keras.errors import InputError, one_line

_ARTEFACTS = ("config.json", "history.csv", "metrics.json", "backup", "tensorboard")

MOST_EPOCHS = 99_999
"""As many as a backup's name has room for."""

_BACKUP = re.compile(r"epoch-\d{5}\.weights\.h5")
_ANEW = "remove what is broken, or start anew with --overwrite"


class RunDirectory:
    """One training's directory.

    `config.json`, `history.csv` (an epoch a row), `tensorboard/`, `backup/` (to resume), the
    model and, at the very end, `metrics.json`: a run that has it is complete.

    Args:
        path: the directory; it is made when the run starts.
        model_name: the model's file within it.
        flag: what a user names it, or the folder it is in, with.
    """

    def __init__(self, path, model_name: str = "student.keras", flag: str = "--run_dir"):
        self._flag = flag
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
        check_folder(f"{self._flag}={self.path}", self.path)
        if not self.path.exists():
            return
        if not self._is_run():
            raise InputError(
                f"{self.path} exists and isn't a run's directory; name another {self._flag}"
            )
        if overwrite:
            return
        if self.is_complete:
            raise InputError(
                f"{self.path} holds a complete run; choose another --run_dir, or replace it with "
                "--overwrite"
            )
        self._check_parts()
        before = _settings_in(self.config) if self.config.is_file() else settings
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
        try:
            distiller.load_weights(backup)
        except Exception as error:  # Which kind depends on what in the file is broken.
            raise InputError(_broken(backup, error)) from error
        if writes:
            self._trim_history(self.epochs_done)
        return self.epochs_done

    def save_model(self, model: keras.Model) -> None:
        """Writes the model, whole or not at all."""
        temporary = self.path / f"tmp-{os.getpid()}.keras"
        model.save(temporary)
        os.replace(temporary, self.model)

    def _last_backup(self) -> pathlib.Path | None:
        backups = self.backup.glob("epoch-*.weights.h5")
        return max((b for b in backups if _BACKUP.fullmatch(b.name)), default=None)

    def _is_run(self) -> bool:
        """Whether nothing else is there: others write a config.json too."""
        if not self.path.is_dir():
            return False
        is_ours = self.config.is_file() and (self.backup.is_dir() or self.is_complete)
        return is_ours or not any(self.path.iterdir())

    def _check_parts(self) -> None:
        """Refuses what can't be gone on with, before anything is trained."""
        for file in (self.config, self.metrics, self.history, self.model):
            if file.is_dir():
                raise InputError(f"{file} is a folder, but a run writes a file; {_ANEW}")
        for folder in (self.backup, self.tensorboard):
            if os.path.lexists(folder) and not folder.is_dir():
                raise InputError(f"{folder} is no folder, but a run makes one; {_ANEW}")
        backup = self._last_backup()
        if backup is None:
            return
        if not self.history.is_file():
            raise InputError(f"{self.history} is missing beside {backup.name}; {_ANEW}")
        try:
            h5py.File(backup).close()
        except OSError as error:
            raise InputError(_broken(backup, error)) from error

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


def _settings_in(config: pathlib.Path) -> dict[str, Any]:
    try:
        settings = read_json(config).get("settings", {})
        if not isinstance(settings, dict):
            raise InputError(f"{config} has the settings {one_line(settings)}")
    except InputError as error:
        raise InputError(f"{error}; {_ANEW}") from error
    return settings


def _broken(backup: pathlib.Path, error: Exception) -> str:
    return f"{backup} is broken ({one_line(error)}); {_ANEW}"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        InputError: where it doesn't.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, but a run writes an object")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
