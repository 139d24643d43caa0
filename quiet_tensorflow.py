"""Imports TensorFlow for the commands without its log messages.

TensorFlow 2.21 ignores TF_CPP_MIN_LOG_LEVEL during its import
(github.com/tensorflow/tensorflow/issues/100442). Import errors are Python exceptions, so they are
still shown.
"""

import os
import signal
import sys
import time

# `training.timing` measures the startup from here.
STARTED = time.monotonic()
# There is nothing to save during the import, and Python's handler would print a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if os.environ.get("KERAS_BACKEND", "tensorflow") not in ("", "tensorflow"):
    print(
        f"{os.path.basename(sys.argv[0])}: error: KERAS_BACKEND is "
        f"{os.environ['KERAS_BACKEND']!r}, but must be tensorflow: unset it",
        file=sys.stderr,
    )
    sys.exit(2)
# A user's keras.json may name another backend.
os.environ["KERAS_BACKEND"] = "tensorflow"

sys.stderr.flush()
_stderr, _devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_devnull, 2)
try:
    import tensorflow  # noqa: F401
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_devnull)
