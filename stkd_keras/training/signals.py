"""SIGTERM and SIGINT: what is being done is finished and saved, or given up at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end. The message is one line: where it was, and how to go on.

    Args:
        number: the signal's.
        message: where it was.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name, as SIGTERM."""
        return signal.Signals(self.number).name


class NotedSignals:
    """What signals have come while something must not be cut short.

    Attributes:
        number: of the first signal that came; 0 for none.
    """

    def __init__(self):
        self.number = 0

    def _watch(self, receiver: socket.socket) -> None:
        # A thread of its own: Python calls no handler while TensorFlow is at work.
        while received := receiver.recv(1):
            if received[0] not in SIGNALS:
                continue
            if self.number:
                os.write(2, b"stopped at once: the last backup is whole\n")
                os._exit(128 + received[0])
            self.number = received[0]
            with contextlib.suppress(OSError):  # Ctrl-C ends who reads the output, too.
                print(
                    f"\n{signal.Signals(self.number).name}: finishing the step, then a backup; "
                    "once more stops at once",
                    flush=True,
                )


@contextlib.contextmanager
def noted_signals() -> Iterator[NotedSignals]:
    """Notes the first SIGTERM or SIGINT for who asks, in place of breaking off; a second ends all.

    In a thread that isn't the main one, signals stay as they are.
    """
    noted = NotedSignals()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    thread = threading.Thread(target=noted._watch, args=(receiver,), daemon=True)
    # None stands for a handler of somebody else's, which can't be put back.
    handlers = {n: signal.getsignal(n) or signal.SIG_DFL for n in SIGNALS}
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        thread.start()
        for number in handlers:
            signal.signal(number, lambda *_: None)
        yield noted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        sender.close()
        thread.join()
        receiver.close()


def raise_on_signals() -> None:
    """Has SIGTERM and SIGINT raise `Interrupted` wherever the main thread is.

    Also where a shell had SIGINT ignored, as it does for what a script starts in the background:
    whoever sends it all the same means it.
    """

    def interrupt(number, frame):
        raise Interrupted(number)

    for number in SIGNALS:
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """Has the rest be done, whatever comes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(status: int) -> None:
    """Ends the process without what TensorFlow does at its end, which may wait for others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
