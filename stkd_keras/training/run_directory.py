"""The directory of a run."""

import hashlib
import pathlib
import shutil
from typing import Any

import keras

from stkd_keras.errors import InputError, differences, is_positive, one_line
from stkd_keras.files.atomic import atomic_path, is_unfinished, remove_unfinished, write_model
from stkd_keras.files.json_files import read_json, to_json, write_json
from stkd_keras.files.locks import check_lock, lock
from stkd_keras.files.write_errors import check_folder, unwritable

__all__ = ["RunDirectory", "read_json", "write_json", "write_model"]

_RECORDINGS = "teacher-*.replay*"
_ARTIFACTS = ("metrics.json", "model_card.md", "history.csv", "tensorboard", "export")


class RunDirectory:
    """The files of one training run.

    These are `config.json`, `history.csv` (a line per epoch), `tensorboard/`, `backup/` (the
    checkpoints, and the model before training), the model, `model_card.md`, and `metrics.json`,
    which is written last.

    Args:
        path: the directory. `start` creates it.
        model_name: name of the model file.
        flag: the flag that sets the directory or its parent, for messages.
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
        self.initial_model = self.backup / "initial.keras"
        self._lock = self.backup / "lock"

    @property
    def is_complete(self) -> bool:
        """Whether the run finished."""
        return self.metrics.is_file() and self.model.is_file()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in config.json, which determine the run's result."""
        try:
            return read_json(self.config).get("settings", {})
        except InputError as error:
            raise InputError(f"{error}; remove {self.path} to start over") from error

    @property
    def calibration_temperature(self) -> float | None:
        """The temperature in metrics.json; None if the run has none, or is unfinished."""
        if not self.metrics.is_file():
            return None
        calibration = read_json(self.metrics).get("calibration", {})
        temperature = calibration.get("temperature") if isinstance(calibration, dict) else 0
        if temperature is not None and not is_positive(temperature):
            raise InputError(
                f"{self.metrics} has the calibration {one_line(calibration)}, expected a positive "
                "temperature: correct the file, or remove this entry"
            )
        return temperature

    def recording(self, settings: dict[str, Any]) -> pathlib.Path:
        """Returns the file for a recording of the teacher that only this run uses."""
        digest = hashlib.sha256(to_json(settings)).hexdigest()[:8]
        return self.backup / f"teacher-{digest}.replay"

    def remove_recordings(self) -> None:
        """Removes the recordings, finished or not, that only this run uses."""
        for path in self.backup.glob(_RECORDINGS):
            path.unlink()

    def check(self, settings: dict[str, Any], overwrite: bool = False) -> None:
        """Checks that a run with these settings may write here, without changing anything.

        Args:
            settings: the settings that determine the run's result, or those known so far.
            overwrite: whether an existing run may be replaced.

        Raises:
            InputError: if the directory holds a complete run, an unfinished run with other
                settings, or something else, or if another process writes to it.
        """
        check_folder(f"{self._flag}={self.path}", self.path)
        if not self.path.exists():
            return
        if not self._is_run():
            raise InputError(
                f"{self.path} exists, but isn't a run directory; choose another {self._flag}"
            )
        check_lock(self._lock, self.path)
        if overwrite:
            return
        if self.is_complete:
            raise InputError(
                f"{self.path} has a complete run; choose another --run_dir, or replace it with "
                "--overwrite"
            )
        if self.config.is_file() and (differs := differences(self.settings, settings)):
            raise InputError(
                f"{self.path} has an unfinished run with other settings ({differs}); choose "
                "another --run_dir, or start over with --overwrite"
            )

    def start(self, config: dict[str, Any], overwrite: bool = False) -> None:
        """Creates the directory, locks it until this process ends, and writes config.json.

        Args:
            config: the content of config.json; its "settings" are those of `check`.
            overwrite: whether to remove an existing run.

        Raises:
            InputError: as in `check`, or if the directory can't be written.
        """
        try:
            self.backup.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        lock(self._lock, self.path)
        # Another process may have written here since the first check.
        self.check(config.get("settings", {}), overwrite)
        remove_unfinished(self.path)
        remove_unfinished(self.backup)
        with atomic_path(self.config) as temporary:
            # Written before anything is removed, in case the disk is full.
            temporary.write_bytes(to_json(config))
            if overwrite:
                self._remove_run()

    def save_model(self, model: keras.Model) -> None:
        """Writes the model atomically."""
        write_model(self.model, model)

    def save_initial_model(self, model: keras.Model) -> None:
        """Writes the model that checkpoints are the weights of, unless it exists."""
        if not self.initial_model.is_file():
            write_model(self.initial_model, model)

    def _is_run(self) -> bool:
        """Whether this is a run directory; a config.json alone may be another program's."""
        if not self.path.is_dir():
            return False
        is_ours = self.config.is_file() and (self.backup.is_dir() or self.is_complete)
        # A run killed before it wrote config.json leaves only its backup folder.
        names = {path.name for path in self.path.iterdir() if not is_unfinished(path)}
        return is_ours or names <= {"backup"}

    def _remove_run(self) -> None:
        """Removes all files but the lock and config.json, which identify a run directory.

        Keeps the recordings: one of them was just made, and `experiment.complete` removes them.
        """
        names = (*_ARTIFACTS, self.model.name)
        for path in (*(self.path / name for name in names), *self.backup.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self._lock and not path.match(_RECORDINGS):
                path.unlink(missing_ok=True)
