"""Exceptions, and helpers for their messages."""

import contextlib
import difflib
import json
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Limits of positive settings: float32 can represent the squares of all numbers in between.
SMALLEST, LARGEST = 1e-12, 1e12


class InputError(ValueError):
    """Wrong input from the user.

    The message is one line: what was given, what was expected, what to do. The commands print it
    without a traceback and exit with status 2.
    """


class WorkerLostError(RuntimeError):
    """A distributed training lost another worker. The message is one line."""


@contextlib.contextmanager
def explain_errors(problem: str, advice: str) -> Iterator[None]:
    """Turns all errors but InputErrors into one: "PROBLEM (REASON); ADVICE".

    For libraries, which raise almost anything for broken files.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem} ({one_line(error)}); {advice}") from error


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def is_positive(value: object) -> bool:
    """Whether a value is a number from `SMALLEST` to `LARGEST`."""
    return is_number(value) and SMALLEST <= value <= LARGEST  # type: ignore[operator]


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8, unlike some file names."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Returns the error for an unknown name, which suggests similar ones."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=3) or names
    hint = f"the nearest known: {', '.join(nearest)}" if names else "there are none"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def one_line(error: object, length: int = 200) -> str:
    """Shortens an error's message, or a name from a file, to one line."""
    # Keras's reason comes after a long configuration.
    cause = str(error).rpartition("Exception encountered: ")[2]
    if is_bold := re.search("\x1b\\[1m(.*?)\x1b\\[0m", cause, re.DOTALL):
        cause = is_bold[1]
    if "Not allowed: " in cause:
        cause = cause[cause.index("Not allowed: ") :].partition("\n")[0]
    text = " ".join(cause.split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "..."


def first_few(names: Sequence[str], count: int = 3) -> str:
    """Returns the first names of a list, and how many more there are, as text."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(one_line(name, 100) for name in names[:count]) + more


def differences(before: dict, now: dict) -> str:
    """Describes how settings differ from earlier ones read from JSON; "" if they are equal."""
    # JSON turns tuples into lists.
    now = json.loads(json.dumps(now))
    return "; ".join(
        f"{name} was {_shown(before.get(name))} and is {_shown(value)}"
        for name, value in now.items()
        if before.get(name) != value
    )


def without_removed(config: dict, neutral: dict) -> dict:
    """Drops removed options from a saved configuration; raises if one isn't neutral."""
    for name, value in neutral.items():
        if config.get(name, value) != value:
            raise InputError(
                f"{name} is {one_line(config[name])}, but this option was removed; use commit "
                "1f4727a, the last one that has it"
            )
    return {name: value for name, value in config.items() if name not in neutral}


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "config" in value:
        arguments = ", ".join(f"{name}={each}" for name, each in value["config"].items())
        return f"{value.get('class_name')}({arguments})"
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else str(value)
