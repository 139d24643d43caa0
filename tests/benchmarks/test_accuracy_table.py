"""Tests of reading tables, and of which runs share recordings, teachers and timings."""

import json
import pathlib

import pytest
from accuracy_table import cost_key, read_table, recording_key, teacher_key

from stkd_keras import InputError

TABLES = pathlib.Path(__file__).parents[2] / "benchmarks" / "tables"
FLAGS = {"dataset": "digits", "student": "resnet8", "epochs": 20}


def table(folder, **content):
    """Writes a table and reads it. JSON is valid YAML."""
    path = folder / "table.yaml"
    path.write_text(json.dumps({"title": "Digits", **content}))
    return read_table(path)


def run_of(folder, **flags):
    """Returns the only run of a table with these flags."""
    rows = [{"name": "a", "flags": {**FLAGS, **flags}}]
    return table(folder, rows=rows).runs[0]


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_tables_are_valid(path):
    rows = read_table(path).rows
    assert len(rows) >= 2
    has_removed_flags = any(run.removed_flags for runs in rows.values() for run in runs)
    assert has_removed_flags == ("commit 1f4727a" in path.read_text())


def test_runs_share_a_recording_if_they_need_the_same_teacher_logits(tmp_path):
    shared = {
        "kd": [
            {"method": "kd"},
            {"method": "kd", "temperature": 8, "learning_rate": 0.2, "student": "resnet14"},
            {"method": "dist"},
            {"method": "stkd", "soft_target": "mixed"},
        ],
        "stkd": [{"method": "stkd"}, {"method": "kd", "mixing": "mixup", "soft_weight": 0.5}],
        "none": [{"method": "ce"}, {"method": "crd"}],
        "longer": [{"method": "kd", "epochs": 21}],
        "augmented": [{"method": "kd", "augment": "cutout"}],
        "teacher": [{"method": "kd", "teacher": "resnet20"}],
        "three": [{"method": "stkd", "num_images": 3}],
    }
    keys = []
    for name, runs in shared.items():
        own = [recording_key(run_of(tmp_path, **flags).flags) for flags in runs]
        assert all(key == own[0] for key in own)
        assert (own[0] is None) == (name == "none")
        keys.append(own[0])
    assert all(keys.count(key) == 1 for key in keys)


def test_runs_share_a_timing_or_a_teacher(tmp_path):
    kd = run_of(tmp_path, method="kd").flags
    assert cost_key(kd) == cost_key(run_of(tmp_path, method="kd", temperature=8).flags)
    assert cost_key(kd) != cost_key(run_of(tmp_path, method="kd", student="resnet14").flags)
    assert teacher_key(kd) == teacher_key(run_of(tmp_path, method="stkd").flags)
    assert teacher_key(kd) != teacher_key(run_of(tmp_path, method="kd", teacher="resnet20").flags)
    assert teacher_key(run_of(tmp_path, method="ce").flags) is None
    assert teacher_key(run_of(tmp_path, method="kd", teacher="t.keras").flags) is None
    assert teacher_key(run_of(tmp_path, method="kd", teacher_weights="t.keras").flags) is None
    assert teacher_key(run_of(tmp_path, method="kd", teacher_weights="imagenet").flags) is not None


def test_every_pair_has_every_row(tmp_path):
    pairs = [{"name": f"from{n}", "flags": {"teacher": f"resnet{n}"}} for n in (8, 20)]
    pairs[1]["without"] = ["fsp"]
    rows = [{"name": name, "flags": {"method": name}} for name in ("kd", "stkd", "fsp")]
    found = table(tmp_path, pairs=pairs, rows=rows, differences=[["stkd", "kd"], ["stkd", "fsp"]])
    assert list(found.rows) == ["from8-kd", "from8-stkd", "from8-fsp", "from20-kd", "from20-stkd"]
    assert found.differences == [
        ("from8-stkd", "from8-kd"), ("from8-stkd", "from8-fsp"), ("from20-stkd", "from20-kd"),
    ]  # fmt: skip
    assert found.rows["from20-kd"][0].given["teacher"] == "resnet20"


ROWS = [{"name": "a", "flags": {"method": "kd"}}, {"name": "b"}]
BAD_TABLES = {
    "no YAML": ("title: [", "can't be read as YAML"),
    "not UTF-8": (b"title: \xff", "can't be read as YAML"),
    "a list": ([1], "the table is '[1]', expected keys and values"),
    "nothing": ("", "the table is 'None'"),
    "a key twice": ("title: a\ntitle: b\nrows: []", "'title' appears twice (line 1)"),
    "no title": ({"rows": ROWS}, "has no title"),
    "no rows": ({"title": "a"}, "has no rows"),
    "an unknown key": (
        {"title": "a", "rows": ROWS, "seed": [1]},
        "unknown key in the table 'seed'",
    ),
    "an unknown key of a row": (
        {"title": "a", "rows": [{"name": "a", "flag": {}}]},
        "unknown key in number 1 of rows 'flag'; the nearest known: flags",
    ),
    "an unknown flag": (
        {"title": "a", "rows": ROWS, "flags": {"epoch": 1}},
        "unknown key in flags 'epoch'; the nearest known: epochs",
    ),
    "a flag's bad value": (
        {"title": "a", "rows": ROWS, "flags": {"epochs": "many"}},
        "row a: flag --epochs=many",
    ),
    "an unknown method": (
        {"title": "a", "rows": [{"name": "a", "flags": {"method": "stdk"}}]},
        "flag --method=stdk",
    ),
    "settings that contradict each other": (
        {"title": "a", "rows": [{"name": "a", "flags": {"method": "ce", "method_weight": 2}}]},
        "row a: method_weight is 2.0",
    ),
    "a flag of the runner": (
        {"title": "a", "rows": ROWS, "flags": {"run_dir": "x"}},
        "accuracy.py sets the flag run_dir itself",
    ),
    "a list for a flag": ({"title": "a", "rows": ROWS, "flags": {"epochs": [1]}}, "one value"),
    "no rows in it": ({"title": "a", "rows": []}, "rows is '[]', expected a list"),
    "no seeds": ({"title": "a", "rows": ROWS, "seeds": []}, "seeds of a is '[]'"),
    "a seed twice": ({"title": "a", "rows": ROWS, "seeds": [1, 1]}, "different integers"),
    "a negative seed": ({"title": "a", "rows": ROWS, "seeds": [-1]}, "flag --seed=-1"),
    "a name twice": ({"title": "a", "rows": [ROWS[0], ROWS[0]]}, "two of rows are called a"),
    "a name with a slash": ({"title": "a", "rows": [{"name": "a/../b"}]}, "must be a folder name"),
    "a name that isn't text": ({"title": "a", "rows": [{"name": 1}]}, "expected text"),
    "an unknown row": (
        {"title": "a", "rows": ROWS, "differences": [["a", "c"]]},
        "unknown row in differences 'c'",
    ),
    "a pair without an unknown row": (
        {"title": "a", "rows": ROWS, "pairs": [{"name": "p", "without": ["c"]}]},
        "unknown row in without of p 'c'; the nearest known: a, b",
    ),
    "no pairs": ({"title": "a", "rows": ROWS, "pairs": []}, "pairs is '[]', expected a list"),
    "a difference of one": (
        {"title": "a", "rows": ROWS, "differences": [["a", "a"]]},
        "doesn't name two rows",
    ),
    "rows without common seeds": (
        {"title": "a", "rows": [ROWS[0], {"name": "b", "seeds": [1]}], "differences": [["a", "b"]]},
        "the rows a and b have no seeds in common",
    ),
    "an unknown measure": (
        {"title": "a", "rows": ROWS, "measure": "acuracy"},
        "unknown measure 'acuracy'; the nearest known: accuracy",
    ),
    "hours that are no number": ({"title": "a", "rows": ROWS, "gpu_hours": "long"}, "gpu_hours is"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line(name, tmp_path):
    content, message = BAD_TABLES[name]
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    (tmp_path / "table.yaml").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_table(tmp_path / "table.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_table(tmp_path / "table.yaml")
