"""Records the command, versions and devices of a run."""

import os
import subprocess
import sys
from typing import Any

import keras
import tensorflow as tf

import stkd_keras
from stkd_keras.cli.app import command_flags
from stkd_keras.cli.train_flags import GROUPS


def provenance() -> dict[str, Any]:
    """Returns the command, its flags, the versions, the git commit and the devices."""
    return {
        "command": sys.argv,
        "flags": {f.name: f.value for group in command_flags(GROUPS).values() for f in group},
        "versions": {
            "python": sys.version.split()[0],
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "stkd_keras": stkd_keras.__version__,
        },
        "git_commit": _git_commit(),
        "device": [device.name for device in tf.config.list_logical_devices()],
    }


def _git_commit() -> str | None:
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        git = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return git.stdout.strip() or None
