"""What a run's directory says of the run, all of it checked: it may come from others."""

import csv
import dataclasses
import io
import math
import os
import pathlib
import types
from typing import Any

import tensorflow as tf

from stkd_keras import recipes
from stkd_keras.errors import InputError, is_number, is_positive, one_line
from stkd_keras.files.json_files import read_json
from stkd_keras.files.untrusted import read_text
from stkd_keras.mixing import REMOVED, CutMix, Mixup
from stkd_keras.report.text import printable
from stkd_keras.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What the report shows of a run beside its models.

    Attributes:
        command: the words of the command, or none.
        settings: what the result depends on, by name.
        versions: of Python and packages, by name.
        git_commit: the commit of the code, or None.
        data: the data set as config.json describes it, or none.
        history: of each column of history.csv the values by epoch, NaN where there is none.
        seconds: how long it trained, pauses left out, or None where that isn't known.
        export: the content of export/export.json, or None.
    """

    command: tuple[str, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    git_commit: str | None = None
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    export: dict[str, Any] | None = None

    @property
    def mixing(self) -> Mixup | CutMix | None:
        """What mixed the images, or None.

        Raises:
            InputError: where a setting isn't one.
        """
        defaults = recipes.method_settings("ce")
        # A run of commit 1f4727a may have mixed in a way that no longer exists.
        if any(self.settings.get(f"mixing_{n}", value) != value for n, value in REMOVED.items()):
            return None
        try:
            return recipes.make_mixing({**defaults, **self.settings})
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"config.json has settings of the mixing that train.py doesn't write "
                f"({one_line(error)}): correct them"
            ) from error


def read_run(
    folder: str | os.PathLike | None, exported: str | os.PathLike | None = None
) -> RunFiles:
    """Reads a run's directory; None gives what is said of a model without one.

    Args:
        folder: the directory.
        exported: the folder with export.json (default: `export/` in the directory).

    Raises:
        InputError: where a file has something that a run doesn't write.
    """
    if folder is None:
        return RunFiles(export=_exported(exported) if exported else None)
    run = RunDirectory(folder)
    config = read_json(run.config)
    for key, kind in _CONFIG.items():
        _expect(run.config, config, key, kind)
    settings = config.get("settings", {})
    _check_settings(run.config, settings)
    data = config.get("data") or {}
    for key, kind in {"classes": list, "images": dict, "version": str, "name": str}.items():
        _expect(run.config, data, key, kind | None)
    for word in config.get("command") or []:
        _expect(run.config, {"command": word}, "command", str)
    return RunFiles(
        command=tuple(config.get("command") or ()),
        settings=settings,
        versions={str(k): str(v) for k, v in (config.get("versions") or {}).items()},
        git_commit=config.get("git_commit"),
        data=data,
        history=_read_history(run.history) if run.history.is_file() else {},
        seconds=_seconds(run.tensorboard / "train"),
        export=_exported(exported or run.path / "export"),
    )


def read_export(file: pathlib.Path) -> dict[str, Any] | None:
    """Reads what `evaluate.py --export` measured; None where there is no such file.

    Raises:
        InputError: where it isn't as written there.
    """
    if not file.is_file():
        return None
    content = read_json(file)
    kinds = {"student": dict, "formats": dict, "machine": str | None, "images": int | None}
    for key, kind in kinds.items():
        _expect(file, content, key, kind)
    entries = {"student": content["student"], **content["formats"]}
    for name, entry in entries.items():
        _expect(file, {name: entry}, name, dict)
        for key in _EXPORT_NUMBERS:
            if entry.get(key) is not None and not is_number(entry[key]):
                raise _unexpected(file, f"{name} {key}", entry[key])
        for key in ("file", "runtime"):
            _expect(file, entry, key, str | None)
    return content


def _exported(folder: str | os.PathLike) -> dict[str, Any] | None:
    return read_export(pathlib.Path(folder) / "export.json")


_CONFIG: dict[str, type | types.UnionType] = {
    "command": list | None,
    "settings": dict,
    "versions": dict | None,
    "git_commit": str | None,
    "data": dict | None,
}
_EXPORT_NUMBERS = (
    "accuracy", "bytes", "latency_ms", "images_per_second", "agreement", "largest_difference",
)  # fmt: skip


def _expect(file: pathlib.Path, content: dict, key: str, kind: type | types.UnionType) -> None:
    if not isinstance(content.get(key), kind):
        raise _unexpected(file, key, content.get(key))


def _unexpected(file: pathlib.Path, key: str, value: Any) -> InputError:
    return InputError(
        f"{file} has {one_line(key)} {one_line(repr(value))}, which this project doesn't write: "
        "correct it, or write it again"
    )


def _check_settings(file: pathlib.Path, settings: dict[str, Any]) -> None:
    temperature, seed = settings.get("temperature", 1.0), settings.get("data_seed", 0)
    if isinstance(temperature, bool) or not is_positive(temperature):
        raise _unexpected(file, "temperature", temperature)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise _unexpected(file, "data_seed", seed)
    most = 64
    if settings.get("mixing", "none") not in recipes.MIXINGS:
        raise _unexpected(file, "mixing", settings["mixing"])
    if not isinstance(images := settings.get("num_images", 2), int) or not 2 <= images <= most:
        raise _unexpected(file, "num_images", images)


def _read_history(file: pathlib.Path) -> dict[str, list[float]]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(file))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{file} can't be read ({one_line(error)}); expected an epoch a row, as a run writes it"
        ) from error
    names, rows = (rows[0], rows[1:]) if rows else ([], [])
    return {
        printable(name): [_as_number(row[column] if column < len(row) else "") for row in rows]
        for column, name in enumerate(names)
    }


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # Keras writes NA for what wasn't looked at in an epoch.
        return math.nan


def _seconds(events: pathlib.Path) -> float | None:
    """The time in which TensorBoard's files were written: an interrupted run has several."""
    spans = []
    for file in events.glob("events.out.tfevents.*"):
        first = last = None
        try:
            for record in tf.data.TFRecordDataset(str(file)):
                first, last = record if first is None else first, record
            if first is not None and last is not None:
                spans.append((_wall_time(first), _wall_time(last)))
        except Exception:  # Which kind depends on what in the file is broken; it is only a hint.
            return None
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):  # Curves and pictures are written at the same time.
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total if 0 < total < math.inf else None


def _wall_time(record: tf.Tensor) -> float:
    return tf.compat.v1.Event.FromString(record.numpy()).wall_time
