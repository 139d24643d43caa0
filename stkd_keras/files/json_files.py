"""Reads and writes JSON files."""

import json
import pathlib
from typing import Any

from stkd_keras.errors import InputError
from stkd_keras.files.atomic import write_whole
from stkd_keras.files.untrusted import read_text


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        InputError: where it doesn't.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, but a run writes an object")
    if not isinstance(content.get("settings", {}), dict):
        raise InputError(f"{path} holds settings that aren't an object, as a run writes them")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Raises:
        InputError: where it can't be written.
    """
    write_whole(path, _as_json(content))


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
