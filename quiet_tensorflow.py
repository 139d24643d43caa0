"""Imports TensorFlow for the commands without the notes that it prints.

TensorFlow 2.21 ignores TF_CPP_MIN_LOG_LEVEL while it is imported
(github.com/tensorflow/tensorflow/issues/100442). Errors of the import are Python exceptions and are
still shown.
"""

import os
import signal
import sys
import time

# When the command started.
STARTED = time.monotonic()
# During the import there is nothing to save, and Python's handler would print a traceback.
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
