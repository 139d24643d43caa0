"""Checks of what commands print."""

import re


def assert_one_line(completed, names: str) -> None:
    """Checks that a command refused its input in one line with a part of the message."""
    assert completed.returncode == 2, completed
    assert "Traceback" not in completed.stdout + completed.stderr, completed
    lines = completed.stderr.splitlines()
    assert len(lines) == 1, completed.stderr
    assert re.match(r"\w+\.py: error: ", lines[0]), lines[0]
    assert names in lines[0], lines[0]
    assert len(lines[0]) < 1500, len(lines[0])
