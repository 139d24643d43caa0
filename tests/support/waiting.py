"""Waiting for what another process does."""

import time


def wait_for(condition, process, seconds=150):
    """Waits until something is so, as long as a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
