"""Times training on a GPU: ours, Keras's own distiller, and PyTorch.

    python benchmarks/gpu.py --json=gpu.json

prints a Markdown table and ratios, and writes them as JSON after each part; an existing file keeps
the results of other parts. A part is a process: "steps" and "torch" each time their contenders in
turns; "replicas" splits the GPU in two and compares one replica with two; "epoch" runs train.py. It
takes about six minutes on an H100. Without a GPU it runs on the CPU; try it with small models:

    python benchmarks/gpu.py --teacher=resnet8 --student=resnet8 --batch_size=8 --chunk=2 --rounds=2
"""

import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
from absl import flags

from stkd_keras.cli import app
from stkd_keras.errors import InputError
from stkd_keras.files.json_files import read_json, write_json

PARTS = {
    "steps": "gpu_steps.py", "torch": "gpu_torch.py", "replicas": "gpu_steps.py",
    "epoch": "gpu_epoch.py",
}  # fmt: skip
ONLY = flags.DEFINE_multi_enum("only", list(PARTS), list(PARTS), "the parts to run")
CONTENDERS = flags.DEFINE_multi_string("contender", [], "a contender to time (default: all)")
TEACHER = flags.DEFINE_string("teacher", "resnet56", "teacher")
STUDENT = flags.DEFINE_string("student", "resnet20", "student")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "batch size", lower_bound=2)
CLASSES = flags.DEFINE_integer("classes", 100, "number of classes", lower_bound=2)
EXECUTION = flags.DEFINE_integer(
    "steps_per_execution", 50, "of the contenders with many steps", lower_bound=1
)
CHUNK = flags.DEFINE_integer("chunk", 50, "steps of a contender in each round", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "timed rounds", lower_bound=1)
LIMIT = flags.DEFINE_integer("limit", 240, "seconds for each part", lower_bound=1)
DATASET = flags.DEFINE_string("dataset", "digits", "data set of train.py")
DATA_DIR = flags.DEFINE_string("data_dir", None, "its folder")
JSON = flags.DEFINE_string("json", None, "file to write all results to")

RATIOS = (
    ("ours", "Keras as written"),
    ("ours, many steps", "Keras as written"),
    ("ours by replay", "Keras as written"),
    ("ours by replay, many steps", "Keras as written"),
    ("ours", "PyTorch eager"),
    ("ours, many steps", "PyTorch eager"),
    ("ours, many steps", "PyTorch compiled"),
    ("ours, bfloat16, many steps", "PyTorch compiled, bfloat16"),
    ("ours", "ours, XLA off"),
    ("two replicas", "one replica"),
)
EPOCH, FASTEST = "an epoch of train.py", "ours, many steps"


def main() -> None:
    """Runs the benchmark."""
    settings = {
        flag.name: flag.value
        for flag in (
            TEACHER, STUDENT, BATCH_SIZE, CLASSES, EXECUTION, CHUNK, ROUNDS, LIMIT, CONTENDERS,
            DATASET, DATA_DIR,
        )
    }  # fmt: skip
    result = stored() or {"rows": {}}
    result["settings"] = settings
    rows = result["rows"]
    for part in ONLY.value:
        result.setdefault("errors", {})[part] = error = run_part(part, settings, rows, result)
        if error:
            print(f"{part}: {error}", file=sys.stderr)
        result["ratios"] = ratios(rows)
        if JSON.value is not None:
            write_json(pathlib.Path(JSON.value), result)
    print_results(result)


def stored() -> dict[str, Any]:
    """Returns the content of the file given by --json, whose other parts are kept."""
    file = pathlib.Path(JSON.value or "")
    result = read_json(file) if file.is_file() else {}
    for flag in (TEACHER, STUDENT, BATCH_SIZE, CLASSES) if result else ():
        if result["settings"][flag.name] != flag.value:
            raise InputError(
                f"{file} has results for --{flag.name}={result['settings'][flag.name]}, not "
                f"{flag.value}: choose another file"
            )
    return result


def run_part(part: str, settings: dict, rows: dict, result: dict) -> str | None:
    """Runs a part's process and collects what it reports; returns what went wrong, if anything."""
    environment = dict(os.environ)
    if part == "torch":  # PyTorch finds its own CUDA libraries.
        environment.pop("LD_LIBRARY_PATH", None)
    process = subprocess.Popen(
        [sys.executable, pathlib.Path(__file__).with_name(PARTS[part]), part, json.dumps(settings)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    timer = threading.Timer(settings["limit"], os.killpg, (process.pid, 9))
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith('{"row"'):
                news = json.loads(line)
                name = news.pop("row")
                row = result if name is None else rows.setdefault(name, {})
                row.pop("error", None)
                row.update(news)
                if "ms" not in news:
                    print(f"{part}: {name}: {news}", file=sys.stderr, flush=True)
        status = process.wait()
    finally:
        is_late = not timer.is_alive()
        timer.cancel()
    if is_late:
        return f"stopped after {settings['limit']} seconds"
    return f"ended with status {status}" if status else None


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns ratios of step times, and of train.py's images per second to the benchmark's."""
    found = {
        f"{one} / {other}": rows[one]["ms"] / rows[other]["ms"]
        for one, other in RATIOS
        if "ms" in rows.get(one, {}) and "ms" in rows.get(other, {})
    }
    if "images_per_second" in rows.get(EPOCH, {}) and "ms" in rows.get(FASTEST, {}):
        fastest = 1e3 * BATCH_SIZE.value / rows[FASTEST]["ms"]
        for kind in ("images_per_second", "images_per_second_with_epoch_end"):
            name = f"{kind.replace('_', ' ')} of train.py / {FASTEST}"
            found[name] = rows[EPOCH][kind] / fastest
    return found


def print_results(result: dict[str, Any]) -> None:
    """Prints the tables."""
    print(
        f"{TEACHER.value} to {STUDENT.value}, batches of {BATCH_SIZE.value}, {CLASSES.value} "
        f"classes, {EXECUTION.value} steps per execution where it says many steps, on "
        f"{result.get('device', 'an unknown device')}\n"
    )
    print("| step | ms | range | first step | peak memory |\n|---|---|---|---|---|")
    for name, row in result["rows"].items():
        if "error" in row:
            print(f"| {name} | {row['error'].splitlines()[0]} | | | |")
        elif "ms" in row:
            print(
                f"| {name} | {number(row, 'ms', '.2f')} | {number(row, 'ms_min', '.2f')} to "
                f"{number(row, 'ms_max', '.2f')} | {number(row, 'first_step_seconds', '.1f')} s | "
                f"{number(row, 'peak_mb', ',.0f')} MB |"
            )
    for name, row in result["rows"].items():
        if "ms" not in row and "error" not in row:
            print(f"\n{name}: {json.dumps(row)}")
    print("\n| ratio | |\n|---|---|")
    for name, value in result["ratios"].items():
        print(f"| {name} | {value:.3f} |")


def number(row: dict[str, Any], key: str, form: str) -> str:
    """Returns a number of the row, or a dash."""
    return "-" if row.get(key) is None else format(row[key], form)


if __name__ == "__main__":
    app.run(main, __doc__)
