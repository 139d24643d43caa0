"""Handles SIGTERM and SIGINT."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """Raised after SIGTERM or SIGINT; the message says how far the run got."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = signal.Signals(number)


class DeferredSignals:
    """The number of a signal to handle after the current step, or 0."""

    def __init__(self):
        self.number = 0


@contextlib.contextmanager
def deferred_signals() -> Iterator[DeferredSignals]:
    """Defers the first SIGTERM or SIGINT; a second one ends the process."""
    deferred = DeferredSignals()

    def handle(number, frame):
        deferred.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(OSError, RuntimeError):  # A closed pipe, or another print.
            print(
                f"\n{signal.Signals(number).name}: finishing the step, then writing a checkpoint; "
                "a second signal stops at once",
                flush=True,
            )

    with kept_handlers() as in_main_thread:
        for number in SIGNALS if in_main_thread else ():
            signal.signal(number, handle)
        yield deferred


@contextlib.contextmanager
def kept_handlers() -> Iterator[bool]:
    """Restores the handlers of SIGTERM and SIGINT at the end.

    Yields whether this is the main thread; others can't change handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    # None means a handler that wasn't set from Python, which can't be restored.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    try:
        yield True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_on_signals() -> None:
    """Makes SIGTERM and SIGINT raise `Interrupted` in the main thread.

    A shell lets the background jobs of a script ignore SIGINT; this replaces that, too.
    """

    def interrupt(number, frame):
        raise Interrupted(number)

    for number in SIGNALS:
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """Ignores SIGTERM and SIGINT from now on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(status: int) -> None:
    """Exits without TensorFlow's cleanup, which may wait for other workers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
