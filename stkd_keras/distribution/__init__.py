"""Training on several devices and (experimental) several machines."""

from stkd_keras.distribution.strategy import largest_batch, make_strategy
from stkd_keras.distribution.workers import is_chief, wait_for_all

__all__ = ["is_chief", "largest_batch", "make_strategy", "wait_for_all"]
