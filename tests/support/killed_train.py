"""Runs train.py, and sends it a signal when it is at a certain moment for the nth time.

python killed_train.py LOG SIGNAL MOMENT N [flags of train.py]

The moments are "before the configuration's rename", "before a step", "after a step", "before a
backup's rename", "in the validation" and "before the student's rename". LOG has a line for each of
them until then. With SIGNAL "hang", the process stays where it is for a minute. Nothing of the
project is changed: it is Keras and the operating system that are listened to.
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


def reached(name, detail=""):
    """Writes down where the process is, and ends it if this is what it waits for."""
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


def listen(owner, name, before=None, after=None):
    """Has a function of somebody else's say when it is called."""
    original = getattr(owner, name)

    def heard(*args, **kwargs):
        if before:
            before(*args)
        result = original(*args, **kwargs)
        if after:
            after(*args)
        return result

    setattr(owner, name, heard)


def before_rename(source, target):
    """Sees what a whole file is about to be put in the place of."""
    if "step-" in str(target):
        reached("before a backup's rename", f"{os.path.getsize(source)} bytes for {target}")
    if str(target).endswith("config.json"):
        reached("before the configuration's rename")
    if str(target).endswith("student.keras"):
        reached("before the student's rename", f"{os.path.getsize(source)} bytes for {target}")


callbacks = keras.callbacks.CallbackList
listen(callbacks, "on_train_batch_begin", lambda *_: reached("before a step"))
listen(callbacks, "on_train_batch_end", after=lambda _, n, *__: reached("after a step", n))
listen(callbacks, "on_test_batch_begin", lambda _, n, *__: reached("in the validation", n))
listen(os, "replace", before_rename)

sys.argv = [str(REPOSITORY / "train.py"), *sys.argv[5:]]
runpy.run_path(sys.argv[0], run_name="__main__")
