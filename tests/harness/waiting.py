"""Waiting with a deadline."""

import time
from typing import Callable, TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float, what: str = "", every_s: float = 0.02) -> T:
    """Calls `condition` until it is true and returns what it returned; `AssertionError` when `seconds` are over.

    An `AssertionError` inside the condition counts as not yet true, and is told when the time is up.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            value = condition()
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}; last: {last}")
        time.sleep(every_s)
