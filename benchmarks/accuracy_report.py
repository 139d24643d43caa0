"""Reports the runs of a table: means, intervals and differences, as Markdown, CSV and a plot."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import scipy.stats
from accuracy_table import Table
from matplotlib.figure import Figure

from stkd_keras.errors import InputError
from stkd_keras.files.atomic import atomic_path, write_atomically
from stkd_keras.files.json_files import read_json

CONFIDENCE = 0.95
# From Okabe and Ito's palette for color-blind readers.
BLUE, ORANGE = "#0072B2", "#E69F00"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of runs, or of differences between paired runs, with its uncertainty.

    Attributes:
        name: the name of the row, or of both rows.
        values: the scores of the runs, or the differences.
        expected: the number of values once all runs are complete.
        unit: what the interval is taken over, "data seeds" or "seeds".
        count: the number of units.
        mean: the mean over the units.
        deviation: the standard deviation of the values, None for a single one.
        interval: Student's interval, None for a single unit.
        p: p-value of a t-test that the mean is 0, None for a single unit.
    """

    name: str
    values: list[float]
    expected: int
    unit: str
    count: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    p: float | None


def write_report(table: Table, runs: pathlib.Path, output: pathlib.Path, command: str) -> None:
    """Writes table.md, table.csv, plot.svg and plot.png of the runs that are complete.

    Args:
        table: the table.
        runs: the folder of its runs.
        output: the folder to write to.
        command: the command that makes the table, for table.md.

    Raises:
        InputError: if a run lacks the score, or if a file can't be written.
    """
    values = {
        name: {
            run.pair: (100 if table.is_in_percent else 1) * score_of(table, path)
            for run in planned
            if (path := runs / run.name / "metrics.json").is_file()
        }
        for name, planned in table.rows.items()
    }
    rows = [estimate(name, [run.pair for run in table.rows[name]], values[name]) for name in values]
    differences = []
    for a, b in table.differences:
        pairs = [run.pair for run in table.rows[a] if run.pair in {r.pair for r in table.rows[b]}]
        both = {p: values[a][p] - values[b][p] for p in pairs if p in values[a] and p in values[b]}
        differences.append(estimate(f"{a} - {b}", pairs, both))
    output.mkdir(parents=True, exist_ok=True)
    text = _markdown(table, rows, differences, runs, command)
    write_atomically(output / "table.md", text.encode())
    write_atomically(output / "table.csv", _csv(rows, differences).encode())
    _plot(table, rows, output)
    print(f"\n{text}\n{output}/table.md")


def score_of(table: Table, metrics: pathlib.Path) -> float:
    """Returns the score that a table compares, from a run's metrics.json.

    Raises:
        InputError: if the score is missing.
    """
    try:
        return float(read_json(metrics)[table.split][table.measure])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{metrics} has no {table.measure} of the {table.split} split, which the table compares"
        ) from error


def estimate(
    name: str, pairs: Sequence[tuple[int, int]], values: dict[tuple[int, int], float]
) -> Estimate:
    """Returns the mean and its interval.

    Runs with the same data seed see the same images in the same order, so they aren't independent.
    If several data seeds are planned, the interval is over the means of each.

    Args:
        name: the name of the estimate.
        pairs: (data seed, seed) of all planned runs.
        values: scores of the complete runs.
    """
    over_data = len({data_seed for data_seed, _ in pairs}) > 1
    there = [(pair, values[pair]) for pair in pairs if pair in values]
    units: dict[int, list[float]] = {}
    for (data_seed, seed), value in there:
        units.setdefault(data_seed if over_data else seed, []).append(value)
    means = [float(np.mean(each)) for each in units.values()]
    runs = [value for _, value in there]
    interval, p = _interval(means)
    return Estimate(
        name=name,
        values=runs,
        expected=len(pairs),
        unit="data seeds" if over_data else "seeds",
        count=len(means),
        mean=float(np.mean(means)) if means else math.nan,
        deviation=float(np.std(runs, ddof=1)) if len(runs) > 1 else None,
        interval=interval,
        p=p,
    )


def _interval(values: list[float]) -> tuple[tuple[float, float] | None, float | None]:
    """Returns Student's interval of a mean, and the p-value of the test that it is 0."""
    if len(values) < 2:
        return None, None
    mean, error = float(np.mean(values)), float(scipy.stats.sem(values))
    half = error * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, len(values) - 1)) if error else None
    return (mean - half, mean + half), p


def _markdown(
    table: Table,
    rows: list[Estimate],
    differences: list[Estimate],
    runs: pathlib.Path,
    command: str,
) -> str:
    digits = 2 if table.is_in_percent else 4
    lines = [
        f"# {table.title}",
        "",
        f"{table.measure.replace('_', ' ').capitalize()} on the {table.split} split"
        f"{' in %' if table.is_in_percent else ''}. {_caption(rows)}",
        "",
        "| row | mean | standard deviation | 95 % interval | runs |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {row.name} | {_shown(row, digits)} | {_counted(row)} |")
    if differences:
        lines += [
            "",
            f"Differences{' in percent points' if table.is_in_percent else ''}, paired by data "
            "seed and seed; intervals as above, p from a paired t-test:",
            "",
            "| difference | mean | standard deviation | 95 % interval | p | pairs |",
            "|---|---|---|---|---|---|",
        ]
        for each in differences:
            p = "-" if each.p is None else f"{each.p:.2g}"
            lines.append(f"| {each.name} | {_shown(each, digits, '+')} | {p} | {_counted(each)} |")
    lines += ["", f"Made with `{command}` from these runs:", ""]
    for name, planned in table.rows.items():
        paths = [runs / run.name for run in planned]
        there = [str(path) for path in paths if (path / "metrics.json").is_file()]
        lines.append(f"- {name}: {', '.join(there) or 'none yet'}")
    return "\n".join([*lines, *_timings(table, runs)]) + "\n"


def _caption(rows: list[Estimate]) -> str:
    """Explains the intervals."""
    units = {row.unit for row in rows}
    over = {
        "seeds": "over seeds",
        "data seeds": "over the means of each data seed (runs that share one aren't independent)",
    }
    made = " or, where several data seeds are planned, ".join(
        over[unit] for unit in ("seeds", "data seeds") if unit in units
    )
    return f"The standard deviation is that of the runs. Intervals are Student's, {made}."


def _shown(row: Estimate, digits: int, sign: str = "") -> str:
    number = f"{sign}.{digits}f"
    mean = "-" if not row.count else format(row.mean, number)
    deviation = "-" if row.deviation is None else f"{row.deviation:.{digits}f}"
    interval = "none of one run" if row.count else "-"
    if row.interval is not None:
        low, high = (format(end, number) for end in row.interval)
        interval = f"{low} to {high} ({row.count} {row.unit})"
    elif len(row.values) > 1:
        interval = "none of one data seed"
    return f"{mean} | {deviation} | {interval}"


def _counted(row: Estimate) -> str:
    count = len(row.values)
    return str(count) if count == row.expected else f"{count} of {row.expected}"


def _timings(table: Table, runs: pathlib.Path) -> list[str]:
    """Returns a line with the total duration and the machines, if known."""
    path = runs / "timings.json"
    known = read_json(path) if path.is_file() else {}
    timings = [known[run.name] for run in table.runs if run.name in known]
    if not timings:
        return []
    seconds = sum(timing["seconds"] for timing in timings)
    machines = sorted({timing["machine"] for timing in timings})
    return ["", f"Wall time of the runs: {seconds / 3600:.2f} h in all. {'; '.join(machines)}."]


def _csv(rows: list[Estimate], differences: list[Estimate]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = (
        "kind name mean standard_deviation interval_low interval_high interval_over units runs p"
    )
    writer.writerow(names.split())
    for kind, estimates in (("row", rows), ("difference", differences)):
        for each in estimates:
            low, high = each.interval or (None, None)
            p = each.p if kind == "difference" else None
            numbers = (each.mean if each.count else None, each.deviation, low, high)
            writer.writerow(
                [
                    kind, each.name, *map(_number, numbers), each.unit, each.count,
                    len(each.values), _number(p),
                ]
            )  # fmt: skip
    return file.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _plot(table: Table, rows: list[Estimate], output: pathlib.Path) -> None:
    """Draws the mean, the interval and the runs of each row."""
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        if row.interval is not None:
            axes.plot(row.interval, [y, y], "-", color=BLUE, lw=2)
        if row.count:
            axes.plot(row.mean, y, "D", ms=6, color=BLUE)
        axes.plot(row.values, [y + 0.25] * len(row.values), "o", ms=4, color=ORANGE)
    axes.plot([], [], "D-", ms=6, lw=2, color=BLUE, label="mean, 95 % interval")
    axes.plot([], [], "o", ms=4, color=ORANGE, label="run")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    unit = " (%)" if table.is_in_percent else ""
    axes.set_xlabel(f"{table.measure.replace('_', ' ')} on the {table.split} split{unit}")
    figure.suptitle(table.title, fontsize="large", wrap=True)
    # The same runs must give the same file.
    with mpl.rc_context({"svg.hashsalt": "stkd_keras"}):
        for name, metadata in (("plot.svg", {"Date": None}), ("plot.png", {})):
            with atomic_path(output / name) as path:
                figure.savefig(path, metadata=metadata, dpi=150)
