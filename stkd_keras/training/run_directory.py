"""The directory of a run: what is in it, whole or not at all, and how a run goes on."""

import os
import pathlib
import shutil
from typing import Any

import keras

from stkd_keras.errors import InputError, differences
from stkd_keras.files.atomic import (
    atomic_path,
    is_unfinished,
    remove_unfinished,
    write_model,
)
from stkd_keras.files.json_files import read_json, to_json
from stkd_keras.files.locks import check_lock, lock
from stkd_keras.files.write_errors import check_folder, unwritable
from stkd_keras.training.checkpoints import newest_backup

_ARTEFACTS = ("metrics.json", "model_card.md", "history.csv", "tensorboard", "export")


class RunDirectory:
    """One training's directory.

    `config.json`, `history.csv` (an epoch a row), `tensorboard/`, `backup/` (to resume), the
    model, `model_card.md` and, at the very end, `metrics.json`: a run that has it is complete.

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
        self.model_card = self.path / "model_card.md"
        self.history = self.path / "history.csv"
        self.backup = self.path / "backup"
        self.tensorboard = self.path / "tensorboard"

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended well."""
        return self.metrics.is_file() and self.model.is_file()

    @property
    def settings(self) -> dict[str, Any]:
        """What the run's result depends on, as config.json has it."""
        try:
            return read_json(self.config).get("settings", {})
        except InputError as error:
            raise InputError(f"{error}; {self._anew}") from error

    def check(self, settings: dict[str, Any], overwrite: bool = False) -> None:
        """Sees, without changing anything, whether a run may write here.

        Args:
            settings: what the run's result depends on, or the part of it that is known.
            overwrite: whether what is there may go.

        Raises:
            InputError: where the directory holds a complete run, the beginning of another run,
                or something that isn't a run, or where another process writes to it.
        """
        check_folder(f"{self._flag}={self.path}", self.path)
        if not self.path.exists():
            return
        if not self._is_run():
            raise InputError(
                f"{self.path} exists and isn't a run's directory; name another {self._flag}"
            )
        check_lock(self._lock, self.path)
        if overwrite:
            return
        if self.is_complete:
            raise InputError(
                f"{self.path} holds a complete run; choose another --run_dir, or replace it with "
                "--overwrite"
            )
        self._check_parts()
        if self.config.is_file() and (differs := differences(self.settings, settings)):
            raise InputError(
                f"{self.path} holds the beginning of another run ({differs}); choose another "
                "--run_dir, or start anew with --overwrite"
            )

    def start(self, config: dict[str, Any], overwrite: bool = False) -> None:
        """Makes the directory, this process's until it ends, and writes config.json.

        Args:
            config: its content; "settings" in it is what the run's result depends on.
            overwrite: whether the run that is there is removed.

        Raises:
            InputError: as `check`, or where the directory can't be written to.
        """
        try:
            self.backup.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        lock(self._lock, self.path)
        # Another process may have been here since it was seen first.
        self.check(config.get("settings", {}), overwrite)
        remove_unfinished(self.path)
        remove_unfinished(self.backup)
        goes_on = not overwrite or self._is_of_same_command(config.get("settings", {}))
        with atomic_path(self.config) as beside:
            # Before anything is removed: there may be no room for it.
            beside.write_bytes(to_json({**config, "overwrite": overwrite}))
            if not goes_on:
                self._remove_run()

    def save_model(self, model: keras.Model) -> None:
        """Writes the model, whole or not at all."""
        write_model(self.model, model)

    @property
    def _anew(self) -> str:
        return f"remove {self.path} to start anew"

    @property
    def _lock(self) -> pathlib.Path:
        return self.backup / "lock"

    def _is_run(self) -> bool:
        """Whether nothing else is there: others write a config.json too."""
        if not self.path.is_dir():
            return False
        is_ours = self.config.is_file() and (self.backup.is_dir() or self.is_complete)
        # A run that was killed before it had written its configuration left its first folder.
        names = {path.name for path in self.path.iterdir() if not is_unfinished(path)}
        return is_ours or names <= {"backup"}

    def _check_parts(self) -> None:
        """Refuses what can't be gone on with, before anything is trained."""
        for file in (self.config, self.metrics, self.model_card, self.history, self.model):
            if file.is_dir():
                raise InputError(f"{file} is a folder, but a run writes a file; {self._anew}")
        for folder in (self.backup, self.tensorboard):
            if os.path.lexists(folder) and not folder.is_dir():
                raise InputError(f"{folder} is no folder, but a run makes one; {self._anew}")
        if self.config.is_file():
            newest_backup(self.backup, self.settings, warns=False)

    def _is_of_same_command(self, settings: dict[str, Any]) -> bool:
        """Whether a command that had --overwrite, too, has begun what is there."""
        try:
            self.check(settings)
            return read_json(self.config).get("overwrite") is True
        except InputError:
            return False

    def _remove_run(self) -> None:
        """Removes all but the lock and config.json, without which it would be no run's folder."""
        names = (*_ARTEFACTS, self.model.name)
        for path in (*(self.path / name for name in names), *self.backup.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self._lock:
                path.unlink(missing_ok=True)
