"""Waits for other processes."""

import time


def wait_for(condition, process, seconds=600):
    """Waits until a condition holds, while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
