"""Reads what a run's directory says about the run. The files may come from others."""

import collections
import csv
import dataclasses
import io
import math
import os
import pathlib
from typing import Any

import tensorflow as tf

from stkd_keras import recipes
from stkd_keras.errors import InputError, is_number, is_positive, one_line
from stkd_keras.files.json_files import read_json
from stkd_keras.files.untrusted import read_text
from stkd_keras.mixing import REMOVED, CutMix, Mixup
from stkd_keras.training.model_card import teacher_name
from stkd_keras.training.run_directory import RunDirectory

_CONFIG = {
    "command": list | None, "settings": dict, "versions": dict | None, "git_commit": str | None,
    "data": dict | None, "flags": dict | None, "teachers": list | None,
}  # fmt: skip
_EXPORT = {"student": dict, "formats": dict, "machine": str | None, "images": int | None}
_EXPORT_NUMBERS = (
    "accuracy", "bytes", "latency_ms", "images_per_second", "agreement", "largest_difference",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What the report shows about a run."""

    command: tuple[str, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    git_commit: str | None = None
    teacher: str | None = None
    image_counts: dict[str, int] = dataclasses.field(default_factory=dict)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    export: dict[str, Any] | None = None
    mixing: Mixup | CutMix | None = None


def read_run_files(
    folder: str | os.PathLike | None, exported: str | os.PathLike | None = None
) -> RunFiles:
    """Reads a run's directory, and the folder with export.json (default: its `export/`)."""
    if folder is None:
        return RunFiles(export=_read_export(exported) if exported else None)
    run = RunDirectory(folder)
    config = read_json(run.config)
    for key, kind in _CONFIG.items():
        _expect(run.config, key, config.get(key), kind)
    for word in config.get("command") or []:
        _expect(run.config, "command", word, str)
    for each in config.get("teachers") or []:
        _expect(run.config, "teachers", each, dict)
        _expect(run.config, "teachers", each.get("source"), str)
    counts = (config.get("data") or {}).get("images", {})
    _expect(run.config, "images", counts, dict)
    settings = config["settings"]
    return RunFiles(
        command=tuple(config.get("command") or ()),
        settings=settings,
        versions={str(k): str(v) for k, v in (config.get("versions") or {}).items()},
        git_commit=config.get("git_commit"),
        teacher=teacher_name({key: value for key, value in config.items() if value is not None}),
        image_counts={str(k): count for k, count in counts.items() if isinstance(count, int)},
        history=_read_history(run.history) if run.history.is_file() else {},
        seconds=_training_seconds(run.tensorboard / "train"),
        export=_read_export(exported or run.path / "export"),
        mixing=_make_mixing(run.config, settings),
    )


def printable(text: str) -> str:
    """Replaces characters that control a terminal or the direction of a line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _expect(file: pathlib.Path, key: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        raise _unexpected(file, key, value)


def _unexpected(file: pathlib.Path, key: str, value: Any) -> InputError:
    return InputError(
        f"{file} has {one_line(key)} {one_line(repr(value))}, which this project doesn't write: "
        "correct the file, or write it again"
    )


def _make_mixing(file: pathlib.Path, settings: dict[str, Any]) -> Mixup | CutMix | None:
    temperature, seed = settings.get("temperature", 1.0), settings.get("data_seed", 0)
    if isinstance(temperature, bool) or not is_positive(temperature):
        raise _unexpected(file, "temperature", temperature)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise _unexpected(file, "data_seed", seed)
    if settings.get("mixing", "none") not in recipes.MIXINGS:
        raise _unexpected(file, "mixing", settings["mixing"])
    if not isinstance(count := settings.get("num_images", 2), int) or not 2 <= count <= 64:
        raise _unexpected(file, "num_images", count)
    # A run of commit 1f4727a may have mixed in a way that no longer exists.
    if any(settings.get(f"mixing_{name}", value) != value for name, value in REMOVED.items()):
        return None
    try:
        return recipes.make_mixing({**recipes.method_settings("ce"), **settings})
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{file} has settings of the mixing that train.py doesn't write ({one_line(error)}): "
            "correct them"
        ) from error


def _read_export(folder: str | os.PathLike) -> dict[str, Any] | None:
    file = pathlib.Path(folder) / "export.json"
    if not file.is_file():
        return None
    content = read_json(file)
    for key, kind in _EXPORT.items():
        _expect(file, key, content.get(key), kind)
    for name, entry in {"student": content["student"], **content["formats"]}.items():
        _expect(file, name, entry, dict)
        for key in _EXPORT_NUMBERS:
            if entry.get(key) is not None and not is_number(entry[key]):
                raise _unexpected(file, f"{name} {key}", entry[key])
        for key in ("file", "runtime"):
            _expect(file, key, entry.get(key), str | None)
    return content


def _read_history(file: pathlib.Path) -> dict[str, list[float]]:
    try:
        names, *rows = list(csv.reader(io.StringIO(read_text(file)))) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{file} can't be read ({one_line(error)}); expected one line per epoch, as a run "
            "writes it"
        ) from error
    return {
        printable(name): [_as_number(row[column] if column < len(row) else "") for row in rows]
        for column, name in enumerate(names)
    }


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # Keras writes NA for epochs without validation.
        return math.nan


def _training_seconds(events: pathlib.Path) -> float | None:
    """Adds up the time spans of TensorBoard's event files: an interrupted run has several."""
    spans = []
    for file in events.glob("events.out.tfevents.*"):
        try:
            records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
            first = next(records)
            *_, last = collections.deque(records, maxlen=1) or [first]
            spans.append(tuple(tf.compat.v1.Event.FromString(e).wall_time for e in (first, last)))
        except Exception:  # The duration is optional, and broken files raise many exceptions.
            return None
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):  # Spans of curves and images overlap.
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total if 0 < total < math.inf else None
