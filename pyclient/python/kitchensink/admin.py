"""`timethis` marks the parts of a call whose time is to be known; `retrieve_profile` and `cancel_all` under the seeds'
import path."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from . import profiling, settings
from .job import Job

__all__ = ["cancel_all", "retrieve_profile", "timethis"]


@contextlib.contextmanager
def timethis(what: str) -> Iterator[None]:
    """Measures the time of a block. In a call it belongs to the call's profile (`c.profile(jobs)`, `br(profile=...)`),
    elsewhere it is printed.

    >>> with timethis("load"):
    ...     frame = pd.read_csv(path)
    """
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        if settings.is_server:
            logger = logging.getLogger(profiling.LOGGER)
            logger.setLevel(logging.INFO)
            logger.info("%s", json.dumps([what, seconds]))
        else:
            print(f"{what} : {seconds:.3f} seconds")


def retrieve_profile(jobs: Iterable[Job | str]) -> dict[str, Any]:
    """Where the time of these jobs went; see `Client.profile`."""
    return settings.client().profile(jobs)


def cancel_all() -> list[str]:
    """Cancels every job of the cluster; see `Client.cancel_all`."""
    return settings.client().cancel_all()
