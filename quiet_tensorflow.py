"""Imported first by the commands: Keras on TensorFlow, without its notes on how it was built.

TF_CPP_MIN_LOG_LEVEL doesn't hold for what TensorFlow 2.21 writes while it is imported
(github.com/tensorflow/tensorflow/issues/100442), and those would be the first lines a user sees.
What goes wrong in the import is a Python exception, and is shown.
"""

import os
import signal
import sys
import time

# When the command began.
STARTED = time.monotonic()
# The seconds of the import have nothing to lose, and no handler that would say so in one line.
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
# A user's keras.json may name another one.
os.environ["KERAS_BACKEND"] = "tensorflow"

sys.stderr.flush()
_stderr, _nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import tensorflow  # noqa: F401
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_nowhere)
