"""Reads and writes JSON files."""

import json
import pathlib
from typing import Any

from stkd_keras.errors import InputError, explain_errors
from stkd_keras.files.atomic import write_atomically
from stkd_keras.files.untrusted import read_text


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON object in a file."""
    with explain_errors(f"{path} can't be read as JSON", "check the file"):
        content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}, expected a JSON object")
    for key in ("settings", "flags"):
        if not isinstance(content.get(key, {}), dict):
            raise InputError(f"{path} has {key} that aren't a JSON object")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, to_json(content))


def to_json(content: Any) -> bytes:
    """Encodes a value as indented JSON."""
    return (json.dumps(content, indent=2) + "\n").encode()
