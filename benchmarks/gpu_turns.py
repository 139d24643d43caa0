"""Builds contenders and times them in turns, for the parts of gpu.py; imports no framework."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

# Building stops after this share of the time, so that what is built gets timed.
BUILDING = 0.7

# Takes at least the given number of steps, and returns how many.
Loop = Callable[[int], int]


def report(name: str | None, **fields) -> None:
    """Prints what is newly known of a row."""
    print(json.dumps({"row": name, **fields}), flush=True)


def built(
    makers: dict[str, Callable[[], Loop | None]], settings: dict[str, Any]
) -> dict[str, Loop]:
    """Builds the contenders, reports the time up to their first step, and returns their loops."""
    loops, began = {}, time.monotonic()
    for name, make in makers.items():
        if settings["contender"] and name not in settings["contender"]:
            continue
        start = time.perf_counter()
        if time.monotonic() - began > BUILDING * settings["limit"]:
            report(name, error="left out for lack of time")
            continue
        try:
            run = make()
            if run is None:  # It only prepares others.
                report(name, seconds=round(time.perf_counter() - start, 2))
                continue
            run(1)
            report(name, first_step_seconds=round(time.perf_counter() - start, 2))
            run(2)
        except Exception as error:  # The other rows are still worth having.
            report(name, error=f"{type(error).__name__}: {error}"[:500])
        else:
            loops[name] = run
    return loops


def time_by_turns(
    loops: dict[str, Loop],
    settings: dict[str, Any],
    reset_peak: Callable[[], None],
    peak: Callable[[], float | None],
) -> None:
    """Times the loops in turns, and reports medians after each round.

    `peak` returns the peak of the GPUs' memory in MB since `reset_peak`, or None without a GPU.
    """
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(settings["rounds"]):
        for name, run in loops.items():
            reset_peak()
            start = time.perf_counter()
            steps = run(settings["chunk"])
            taken[name].append(1e3 * (time.perf_counter() - start) / steps)
            low, high = min(taken[name]), max(taken[name])
            report(name, ms=statistics.median(taken[name]), ms_min=low, ms_max=high, peak_mb=peak())
