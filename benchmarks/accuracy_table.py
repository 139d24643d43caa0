"""Reads a table of runs from its YAML file.

Each row of a table is trained with train.py's flags, once per data seed and seed. The format is
described in benchmarks/tables/README.md.
"""

import copy
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import yaml
from absl import flags

from models.teachers.sources import TeacherSource
from stkd_keras import recipes
from stkd_keras.cli.app import command_flags
from stkd_keras.cli.train_flags import GROUPS
from stkd_keras.errors import InputError, one_line, unknown_name
from stkd_keras.files.untrusted import read_text

_KEYS = (
    *("title", "gpu_hours", "flags", "data_seeds", "seeds", "measure", "split"),
    *("pairs", "rows", "differences"),
)
MEASURES = ("accuracy", "top5_accuracy", "nll", "ece", "calibrated_nll", "calibrated_ece")
SPLITS = ("test", "validation")
# Set by the runner itself.
_RUNNERS_FLAGS = ("data_seed", "seed", "run_dir", "replay", "overwrite", "dry_run")
# Flags that don't change a run's result.
ASIDE = frozenset(
    {"data_dir", "teacher_dir", "run_dir", "replay", "overwrite", "dry_run", "memory_limit"}
    | {"backup_steps", "validation_freq", "steps_per_execution"}
)
# Flags that don't change the teacher's logits. Those of mixing are handled separately.
_STUDENTS_OWN = frozenset(
    {"seed", "student", "student_weights", "student_normalization", "mixed_precision"}
    | {"method", "method_weight", "pretraining_epochs", "student_features", "teacher_features"}
    | {"temperature", "soft_weight", "label_weight", "soft_target"}
    | {"optimizer", "learning_rate", "weight_decay", "backbone_learning_rate"}
    | {"freeze_epochs", "freeze_batch_norm", "clip_norm", "ema", "label_smoothing"}
    | {"deterministic"}
    | {"run_dir", "replay", "overwrite", "dry_run"}
    | {"backup_steps", "validation_freq", "steps_per_execution"}
)
# Flags that don't change how long a run takes.
_WITHOUT_COST = frozenset(
    {"seed", "data_seed", "run_dir", "replay", "overwrite", "dry_run", "backup_steps"}
    | {"temperature", "label_weight", "method_weight", "mixup_alpha"}
    | {"learning_rate", "weight_decay", "backbone_learning_rate", "label_smoothing"}
)
_MIXING = (
    *("mixing", "mixup_alpha", "mixup_probability", "num_images", "mixing_epochs"),
    "mixing_per_batch",
)
# Flags that train.py had until the commit below. Rows with them can be reported, but not trained.
REMOVED_FLAGS = ("clean_soft_weight", "mixing_partners", "mixing_labels")
COMMIT_WITH_REMOVED_FLAGS = "1f4727a"
# Names are used in paths.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*")

# Takes the place of `pairs` in a table that has none.
_NO_PAIR: list[dict[str, Any]] = [{"name": ""}]


def _flags_of_train() -> flags.FlagValues:
    own = flags.FlagValues()
    for flag in itertools.chain(*command_flags(GROUPS).values()):
        own[flag.name] = flag
    return own


_FLAGS = _flags_of_train()


def hide_flags_of_train() -> None:
    """Removes train.py's flags from this process, for a command that has its own flags."""
    flags.FLAGS.remove_flag_values(_FLAGS)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of train.py.

    Attributes:
        row: the name of its row.
        data_seed: train.py's flag of this name.
        seed: train.py's flag of this name.
        given: the flags from the table, and the seeds, as on a command line.
        flags: the parsed values of all flags of train.py, and of the removed ones.
    """

    row: str
    data_seed: int
    seed: int
    given: dict[str, str]
    flags: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return f"{self.row}-d{self.data_seed}-s{self.seed}"

    @property
    def pair(self) -> tuple[int, int]:
        """The seeds by which the runs of two rows are paired."""
        return self.data_seed, self.seed

    @property
    def removed_flags(self) -> list[str]:
        """The flags that this version of train.py no longer has."""
        return [name for name in REMOVED_FLAGS if name in self.given]


@dataclasses.dataclass(frozen=True)
class Table:
    """The contents of a table's file.

    Attributes:
        path: the file.
        title: the title.
        measure: the score from metrics.json that is compared.
        split: the split that is scored.
        rows: the runs of each row, by the row's name.
        differences: pairs of rows' names; the second is subtracted from the first.
    """

    path: pathlib.Path
    title: str
    measure: str
    split: str
    rows: dict[str, list[Run]]
    differences: list[tuple[str, str]]

    @property
    def runs(self) -> list[Run]:
        """All runs in the order of the rows."""
        return [run for runs in self.rows.values() for run in runs]

    @property
    def is_in_percent(self) -> bool:
        """Whether the measure is shown in percent."""
        return self.measure.endswith("accuracy")


def read_table(path: pathlib.Path) -> Table:
    """Reads a table's file.

    Raises:
        InputError: if it isn't a valid table.
    """
    try:
        return _table(path, _load(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def recording_key(flags: dict[str, Any]) -> dict[str, Any] | None:
    """Returns everything that the teacher's logits depend on in a run.

    Runs with equal keys can share one recording. None if a run can't use a recording.
    """
    method = _method_settings(flags)
    if flags["distribute"] == "multi_worker" or not recipes.can_replay(flags["method"], method):
        return None
    own = (*_STUDENTS_OWN, *_MIXING)
    # With this soft target, the teacher's logits of the unmixed images are mixed.
    unmixed = method["mixing"] == "none" or method["soft_target"] == "mixed"
    mixing = None if unmixed else {name: method[name] for name in _MIXING}
    return {**{name: v for name, v in flags.items() if name not in own}, "mixing": mixing}


def cost_key(flags: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that the duration of a run depends on."""
    return {name: value for name, value in flags.items() if name not in _WITHOUT_COST}


def teacher_key(flags: dict[str, Any]) -> tuple | None:
    """Returns everything that the teacher's training depends on, or None if there is none."""
    if not recipes.needs_teacher(flags["method"], _method_settings(flags)):
        return None
    # Without the flag, the teacher is one of the zoo.
    sources = (flags["teacher"] or "").split(",")
    if not any(TeacherSource(s, flags["teacher_weights"]).has_to_be_trained() for s in sources):
        return None
    names = (
        "dataset data_dir image_size flip augment teacher teacher_weights teacher_dir "
        "teacher_epochs validation_fraction data_seed"
    )
    return tuple(flags[name] for name in names.split())


def _method_settings(flags: dict[str, Any]) -> dict[str, Any]:
    explicit = {name: flags[name] for name in recipes.SETTINGS}
    return recipes.method_settings(flags["method"], **explicit)


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys; PyYAML would keep the last one."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise InputError(
                    f"{one_line(name)!r} appears twice (line {node.start_mark.line + 1})"
                )
        return super().construct_mapping(node, deep)


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = yaml.load(read_text(path), _Loader)
    except InputError:  # Also a ValueError.
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"it can't be read as YAML: {one_line(error)}") from error
    return content


def _table(path: pathlib.Path, content: Any) -> Table:
    _check_keys("the table", content, _KEYS, needed=("title", "rows"))
    _text("title", content["title"])
    hours = content.get("gpu_hours", 0)
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not hours >= 0:
        raise InputError(f"gpu_hours is {hours!r}, expected a number of hours")
    measure, split = content.get("measure", "accuracy"), content.get("split", "test")
    for what, value, choices in (("measure", measure, MEASURES), ("split", split, SPLITS)):
        if value not in choices:
            raise unknown_name(what, str(value), choices)
    rows = _rows(content)
    differences = [
        (_joined(pair["name"], a), _joined(pair["name"], b))
        for pair in content.get("pairs", _NO_PAIR)
        for a, b in _differences(content)
        if not {a, b} & set(pair.get("without", []))
    ]
    for a, b in differences:
        if not {run.pair for run in rows[a]} & {run.pair for run in rows[b]}:
            raise InputError(f"the rows {a} and {b} have no seeds in common, so can't be compared")
    return Table(path, content["title"], measure, split, rows, differences)


def _rows(content: dict[str, Any]) -> dict[str, list[Run]]:
    """Returns the runs by row. If there are pairs, each pair has every row."""
    seeds = {name: content.get(name, [0]) for name in ("data_seeds", "seeds")}
    rows = {}
    names = _names("rows", content, more=("seeds", "data_seeds"))
    if "pairs" in content:
        _names("pairs", content, more=("without",))
    for pair in content.get("pairs", _NO_PAIR):
        without = _known(f"without of {pair['name']}", pair.get("without", []), names)
        for row in content["rows"]:
            if row["name"] in without:
                continue
            name = _joined(pair["name"], row["name"])
            if name in rows:
                raise InputError(f"two rows are called {name}")
            given = [each.get("flags", {}) for each in (content, pair, row)]
            texts = {k: v for each in given for k, v in _texts(each).items()}
            own = {key: _seeds(name, key, row.get(key, seeds[key])) for key in seeds}
            rows[name] = [
                _run(name, data_seed, seed, texts)
                for data_seed in own["data_seeds"]
                for seed in own["seeds"]
            ]
    return rows


def _names(key: str, content: dict[str, Any], more: Iterable[str] = ()) -> list[str]:
    """Returns the names in a list of objects, after checking the objects' keys."""
    entries = content[key]
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{key} is {one_line(entries)!r}, expected a list of at least one")
    names: list[str] = []
    for number, entry in enumerate(entries, start=1):
        _check_keys(f"number {number} of {key}", entry, ("name", "flags", *more), ("name",))
        name = _text(f"the name of number {number} of {key}", entry["name"])
        if not _NAME.fullmatch(name):
            raise InputError(
                f"the name {name!r} in {key} must be a folder name: letters, digits and, after the "
                "first character, any of _.,=+-"
            )
        if name in names:
            raise InputError(f"two of {key} are called {name}")
        names.append(name)
    return names


def _differences(content: dict[str, Any]) -> list[tuple[str, str]]:
    entries = content.get("differences", [])
    if "differences" in content and (not isinstance(entries, list) or not entries):
        raise InputError(f"differences is {one_line(entries)!r}, expected a list of pairs of rows")
    for entry in entries:
        are_names = isinstance(entry, list) and all(isinstance(name, str) for name in entry)
        if not are_names or len(set(entry)) != 2 or len(entry) != 2:
            raise InputError(f"{one_line(entry)!r} in differences doesn't name two rows")
    names = [row["name"] for row in content["rows"]]
    return [(a, b) for a, b in (_known("differences", entry, names) for entry in entries)]


def _known(what: str, names: Any, rows: list[str]) -> list[str]:
    """Returns a list of names if all of them are rows."""
    if not isinstance(names, list):
        raise InputError(f"{what} is {one_line(names)!r}, expected a list of rows")
    for name in names:
        if name not in rows:
            raise unknown_name(f"row in {what}", str(name), rows)
    return names


def _joined(pair: str, row: str) -> str:
    return f"{pair}-{row}" if pair else row


def _check_keys(what: str, entry: Any, known: Iterable[str], needed: Iterable[str] = ()) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{what} is {one_line(entry)!r}, expected keys and values")
    for name in entry:
        if name not in known:
            raise unknown_name(f"key in {what}", str(name), known)
    for name in needed:
        if name not in entry:
            raise InputError(f"{what} has no {name}")


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{what} is {one_line(value)!r}, expected text (in quotes if necessary)")
    return value


def _seeds(row: str, key: str, seeds: Any) -> list[int]:
    are_numbers = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not are_numbers or not seeds or len(set(seeds)) != len(seeds):
        raise InputError(
            f"{key} of {row} is {one_line(seeds)!r}, expected a list of different integers"
        )
    return seeds


def _texts(given: Any) -> dict[str, str]:
    """Returns flags as they are written on a command line."""
    _check_keys("flags", given, [*_FLAGS, *REMOVED_FLAGS])
    for name, value in given.items():
        if name in _RUNNERS_FLAGS:
            raise InputError(f"accuracy.py sets the flag {name} itself; leave it out")
        if not isinstance(value, str | int | float):
            raise InputError(f"the flag {name} is {one_line(value)!r}, expected one value")
    return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in given.items()}


def _run(row: str, data_seed: int, seed: int, texts: dict[str, str]) -> Run:
    given = {**texts, "data_seed": str(data_seed), "seed": str(seed)}
    removed = {name: yaml.safe_load(given.get(name, "null")) for name in REMOVED_FLAGS}
    parsed = copy.deepcopy(_FLAGS)
    arguments = [f"--{name}={value}" for name, value in given.items() if name not in removed]
    try:
        parsed(["train.py", *arguments])
        values = {name: parsed[name].value for name in parsed} | removed
        _method_settings(values)
    except (flags.Error, InputError) as error:
        raise InputError(f"row {row}: {one_line(error)}") from error
    return Run(row, data_seed, seed, given, values)
