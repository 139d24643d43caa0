"""Images that are decoded by Python: in threads, with a progress bar, and called by TensorFlow."""

import atexit
import collections
import concurrent.futures
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import keras

# More than cores, because reading waits for the disk or the network.
THREADS = min(32, (os.cpu_count() or 1) + 4)

# In seconds.
PROGRESS_AFTER = 3.0
PROGRESS_INTERVAL = 0.5
SILENCE = 0.5


def in_threads(function: Callable, jobs: Iterable[tuple]) -> Iterator:
    """Calls a function with the arguments of each job, in parallel; gives the results in order.

    No more jobs are taken than are needed to keep the threads busy.
    """
    # Not the executor's own map, which would first take all the jobs and so all their contents.
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for job in jobs:
            pending.append(threads.submit(function, *job))
            if len(pending) > 2 * THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def with_progress(results: Iterable, total: int, what: str) -> Iterator:
    """Gives results on, with Keras's progress bar for what takes more than three seconds."""
    progress = keras.utils.Progbar(total, interval=PROGRESS_INTERVAL, unit_name="image")
    start = time.monotonic()
    is_shown = False
    for done, result in enumerate(results, start=1):
        yield result
        if not is_shown and time.monotonic() - start > PROGRESS_AFTER:
            print(f"reading {what}")
            is_shown = True
        if is_shown:
            progress.update(done)


class _Calls:
    """Counts the calls from TensorFlow's threads, for the end of the process to wait for them.

    Python ends the threads that come back to it then, and TensorFlow would wait for them for ever.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._running = 0
        self._last = -math.inf
        self._process_ends = False

    def __enter__(self) -> None:
        with self._lock:
            self._last = time.monotonic()
            if self._process_ends:
                raise RuntimeError("the process ends")
            self._running += 1

    def __exit__(self, *error) -> None:
        with self._lock:
            self._running -= 1
            self._last = time.monotonic()

    def wait_for_end(self) -> None:
        """Has all further calls fail, and waits until none comes any more."""
        self._process_ends = True
        deadline = time.monotonic() + 20 * SILENCE
        while time.monotonic() < min(deadline, self._last + SILENCE) or self._running:
            time.sleep(0.01)


calls_from_tensorflow = _Calls()
"""What a function that `tf.numpy_function` calls has to be inside of."""

atexit.register(calls_from_tensorflow.wait_for_end)
