"""Threads and a progress bar for reading images, also inside tf.data pipelines."""

import atexit
import collections
import concurrent.futures
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator

import keras

# More threads than cores, because they wait for the disk or the network.
THREADS = min(32, (os.cpu_count() or 1) + 4)

PROGRESS_AFTER = 3.0
PROGRESS_INTERVAL = 0.5
SILENCE = 0.5
"""All three in seconds."""


def in_threads(function: Callable, jobs: Iterable[tuple]) -> Iterator:
    """Like `Executor.map`, but doesn't hold the arguments of all jobs at once."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for job in jobs:
            pending.append(threads.submit(function, *job))
            if len(pending) > 2 * THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def with_progress(results: Iterable, total: int | None, what: str, unit: str = "image") -> Iterator:
    """Yields the results; shows Keras's progress bar if they take more than three seconds."""
    progress = keras.utils.Progbar(total, interval=PROGRESS_INTERVAL, unit_name=unit)
    start = time.monotonic()
    is_shown = False
    for done, result in enumerate(results, start=1):
        yield result
        if not is_shown and time.monotonic() - start > PROGRESS_AFTER:
            print(what)
            is_shown = True
        if is_shown:
            progress.update(done)


def weak_method(method: Callable) -> Callable:
    """Returns a function for `tf.numpy_function` that doesn't keep the method's object alive.

    TensorFlow keeps such functions until the process ends. As long as a data set exists, the Python
    functions of its `map` keep the object alive.
    """
    reference = weakref.WeakMethod(method)
    return lambda *args: reference()(*args)  # type: ignore[misc]


class _Calls:
    """Counts running calls from TensorFlow's threads, so that the process can wait at exit.

    At exit, Python ends any thread that returns to it, and TensorFlow would wait for that thread
    forever.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._running = 0
        self._last = -math.inf
        self._is_exiting = False

    def __enter__(self) -> None:
        with self._lock:
            self._last = time.monotonic()
            if self._is_exiting:
                raise RuntimeError("the process ends")
            self._running += 1

    def __exit__(self, *error) -> None:
        with self._lock:
            self._running -= 1
            self._last = time.monotonic()

    def wait(self) -> None:
        """Makes further calls fail, and waits until none are running."""
        self._is_exiting = True
        deadline = time.monotonic() + 20 * SILENCE
        while time.monotonic() < min(deadline, self._last + SILENCE) or self._running:
            time.sleep(0.01)


calls_from_tensorflow = _Calls()
"""Context manager for the body of every function called by `tf.numpy_function`."""

atexit.register(calls_from_tensorflow.wait)
