"""Runs train.py, and sends it a signal when it reaches a moment for the nth time.

python killed_train.py LOG SIGNAL MOMENT N [flags of train.py]

The moments are "before config.json's rename", "before a step", "after a step", "while a backup is
written", "before a backup's rename", "in the validation" and "before the student's rename". LOG
gets a line for each of them. With SIGNAL "hang" the process sleeps for a minute instead. It
patches Keras, NumPy and os, but nothing of the project.
"""

import os
import pathlib
import runpy
import signal
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
log, what, moment, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
left = {moment: count}

import quiet_tensorflow  # noqa: E402, F401, I001
import keras  # noqa: E402
import numpy as np  # noqa: E402


def reached(name, detail=""):
    """Logs the moment, and sends the signal if it is the one asked for."""
    with open(log, "a") as file:
        file.write(f"{name} {detail}\n")
    if name not in left:
        return
    left[name] -= 1
    if left[name] == 0:
        with open(log, "a") as file:
            file.write(f"{what} {name}\n")
        if what == "hang":
            time.sleep(60)
        else:
            os.kill(os.getpid(), signal.Signals[what])


def patch(owner, name, before=None, after=None):
    """Calls a function before or after each call of another."""
    original = getattr(owner, name)

    def patched(*args, **kwargs):
        if before:
            before(*args)
        result = original(*args, **kwargs)
        if after:
            after(*args)
        return result

    setattr(owner, name, patched)


def before_rename(source, target):
    """Notes which file is about to be replaced."""
    if "step-" in str(target):
        reached("before a backup's rename", f"{os.path.getsize(source)} bytes for {target}")
    if str(target).endswith("config.json"):
        reached("before config.json's rename")
    if str(target).endswith("student.keras"):
        reached("before the student's rename", f"{os.path.getsize(source)} bytes for {target}")


callbacks = keras.callbacks.CallbackList
patch(callbacks, "on_train_batch_begin", lambda *_: reached("before a step"))
patch(callbacks, "on_train_batch_end", after=lambda _, n, *__: reached("after a step", n))
patch(callbacks, "on_test_batch_begin", lambda _, n, *__: reached("in the validation", n))
patch(np.lib.format, "write_array", lambda *_: reached("while a backup is written"))
patch(os, "replace", before_rename)

sys.argv = [str(REPOSITORY / "train.py"), *sys.argv[5:]]
runpy.run_path(sys.argv[0], run_name="__main__")
