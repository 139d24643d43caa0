"""Reads the files of a run directory, which may be untrusted."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from stkd_keras import recipes
from stkd_keras.errors import InputError, explain_errors, is_number, is_positive
from stkd_keras.files.json_files import read_json
from stkd_keras.files.untrusted import read_text
from stkd_keras.mixing import REMOVED, CutMix, Mixup
from stkd_keras.training.model_card import teacher_name
from stkd_keras.training.run_directory import RunDirectory

_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "temperature": is_positive,
    "data_seed": lambda seed: isinstance(seed, int) and 0 <= seed < 2**63,
    "mixing": lambda mixing: mixing in recipes.MIXINGS,
    "num_images": lambda count: isinstance(count, int) and 2 <= count <= 64,
}
_EXPORT_NUMBERS = (
    "accuracy", "bytes", "latency_ms", "images_per_second", "agreement", "largest_difference",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The information about a run in a report."""

    command: tuple[str, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    git_commit: str = ""
    teacher: str | None = None
    image_counts: dict[str, int] = dataclasses.field(default_factory=dict)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    export: dict[str, Any] | None = None
    mixing: Mixup | CutMix | None = None
    calibration: float | None = None


def read_run_files(
    folder: str | os.PathLike | None, exported: str | os.PathLike | None = None
) -> RunFiles:
    """Reads a run directory and the folder with export.json (default: its `export/`)."""
    if folder is None:
        return RunFiles(export=_read_export(exported) if exported else None)
    run = RunDirectory(folder)
    config = {key: value for key, value in read_json(run.config).items() if value is not None}
    history = _read_history(run.history) if run.history.is_file() else {}
    export = _read_export(exported or run.path / "export")
    with _explained(run.config):
        counts = config.get("data", {}).get("images", {})
        return RunFiles(
            command=tuple(map(shlex.quote, config.get("command", ()))),
            settings=config["settings"],
            versions={str(k): str(v) for k, v in config.get("versions", {}).items()},
            git_commit=str(config.get("git_commit", "")),
            teacher=teacher_name(config),
            image_counts={str(name): int(count) for name, count in counts.items()},
            history=history,
            seconds=_training_seconds(run.tensorboard / "train"),
            export=export,
            mixing=_make_mixing(config["settings"]),
            calibration=run.calibration_temperature,
        )


def printable(text: str) -> str:
    """Replaces control characters, including those for text direction."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _explained(file: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Explains errors on unexpected content."""
    problem = f"{file} has content that this project doesn't write"
    return explain_errors(problem, "correct the file, or write it again")


def _make_mixing(settings: dict[str, Any]) -> Mixup | CutMix | None:
    """Checks the settings that the report uses, and returns the mixing."""
    settings = {**recipes.method_settings("ce"), "temperature": 1.0, "data_seed": 0, **settings}
    for name, is_valid in _SETTINGS.items():
        if not is_valid(settings[name]):
            raise ValueError(f"{name} is {settings[name]!r}")
    # Runs of commit 1f4727a may use mixing options that were removed.
    if any(settings.get(f"mixing_{name}", value) != value for name, value in REMOVED.items()):
        return None
    try:
        return recipes.make_mixing(settings)
    except InputError as error:  # It doesn't name the file.
        raise ValueError(str(error)) from error


def _read_export(folder: str | os.PathLike) -> dict[str, Any] | None:
    file = pathlib.Path(folder) / "export.json"
    if not file.is_file():
        return None
    content = read_json(file)
    with _explained(file):
        for entry in (content, content["student"], *content["formats"].values()):
            for key in ("images", *_EXPORT_NUMBERS):
                if entry.get(key) is not None and not is_number(entry[key]):
                    raise ValueError(f"{key} is {entry[key]!r}")
    return content


def _read_history(file: pathlib.Path) -> dict[str, list[float]]:
    with explain_errors(f"{file} can't be read", "expected one line per epoch, as a run writes it"):
        # Keras writes NA for epochs without validation, which becomes NaN.
        rows = np.genfromtxt(
            io.StringIO(read_text(file)),
            delimiter=",",
            names=True,
            ndmin=1,
            deletechars="",
            replace_space=" ",
        )
    return {printable(name): rows[name].tolist() for name in rows.dtype.names or ()}


def _training_seconds(events: pathlib.Path) -> float | None:
    """Sums the time spans of TensorBoard's event files; resumed runs have several."""
    spans = []
    for file in events.glob("events.out.tfevents.*"):
        try:
            times = [event.wall_time for event in LegacyEventFileLoader(str(file)).Load()]
            spans.append((times[0], times[-1]))
        except Exception:  # Broken files raise many exceptions, and the duration is optional.
            return None
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):  # The spans of scalars and images overlap.
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total if 0 < total < math.inf else None
