"""Numbers in the words of a report."""

import math
from collections.abc import Sequence
from typing import Any

NOT_KNOWN = "–"  # noqa: RUF001


def percent(fraction: float | None, digits: int = 1) -> str:
    """Returns a fraction in percent."""
    return _formatted(fraction, lambda x: f"{100 * x:.{digits}f} %")


def number(value: float | None, digits: int = 3) -> str:
    """Returns an integer with its thousands apart, or another number with so many digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return _formatted(value, lambda x: f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.{digits}g}")


def millions(value: float | None) -> str:
    """Returns a number in millions."""
    return _formatted(value, lambda x: f"{x / 1e6:,.1f} M")


def megabytes(value: float | None) -> str:
    """Returns bytes in MB of 10^6."""
    return _formatted(value, lambda x: f"{x / 1e6:,.2f} MB")


def times(value: float | None, reference: float | None) -> str:
    """Returns a number as a multiple of another."""
    if not value or not reference:
        return NOT_KNOWN
    ratio = value / reference
    return f"{ratio:.{2 if ratio < 1 else 1 if ratio < 10 else 0}f}×"  # noqa: RUF001


def nats(value: float | None) -> str:
    """Returns a likelihood or a divergence."""
    return _formatted(value, lambda x: f"{x:.4f}")


def printable(words: str) -> str:
    """Returns a name from a file without what would command a terminal, or turn a line around."""
    return "".join(c if c.isprintable() else "?" for c in words)


def duration(seconds: float) -> str:
    """Returns seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def summary(models: Sequence[dict[str, Any]]) -> str:
    """Returns the sentence that can be quoted: what the student reaches, and what it costs.

    Args:
        models: the numbers of each, the student's first, a teacher's second.
    """
    student = models[0]
    name, costs = student["name"], student["cost"]
    low, high = student["accuracy_interval"]
    if len(models) < 2 or models[1]["role"] != "teacher":
        total = sum(each["images"] for each in student["per_class"])
        return (
            f"{name} names {percent(student['accuracy'])} of {total:,} test images right (95 % "
            f"interval {percent(low)} to {percent(high)}) with {costs['parameters']:,} parameters."
        )
    teacher = models[1]
    parts = [
        _fewer(costs["parameters"], teacher["cost"]["parameters"], "parameters"),
        _fewer(costs["multiply_adds"], teacher["cost"]["multiply_adds"], "multiply-adds"),
    ]
    both = " and ".join(part for part in parts if part)
    speed = costs["images_per_second_128"] / teacher["cost"]["images_per_second_128"]
    than = f"{_rounded(speed)} times the images a second" if speed >= 1.05 else ""
    than = than or f"{percent(speed, 0)} of the images a second"
    reached = f"{percent(student['accuracy'])} of {percent(teacher['accuracy'])}"
    share = (
        f"keeps {percent(student['accuracy'] / teacher['accuracy'])} of {teacher['name']}'s "
        f"accuracy ({reached})"
        if 0 < student["accuracy"] <= teacher["accuracy"]
        else f"has an accuracy of {percent(student['accuracy'])}, where {teacher['name']} has "
        f"{percent(teacher['accuracy'])},"
    )
    return f"{name} {share} with {both}, and answers {than} on this machine."


def _fewer(own: float | None, teachers: float | None, what: str) -> str:
    if not own or not teachers:
        return ""
    if teachers / own >= 1.05:
        return f"{_rounded(teachers / own)} times fewer {what}"
    if own / teachers >= 1.05:
        return f"{_rounded(own / teachers)} times as many {what}"
    return f"about as many {what}"


def _rounded(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _formatted(value: float | None, form) -> str:
    return NOT_KNOWN if value is None or not math.isfinite(value) else form(value)
