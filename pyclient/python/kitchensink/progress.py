"""Progress of many jobs: a bar of tqdm where that is installed, else a line on standard error.

Internal. It is shown from a thread of its own and looks at the jobs, so the wait itself knows nothing of it. Nothing is
shown before `AFTER_SECONDS`, and by itself only in a terminal or a notebook, for `MANY` jobs or more.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Callable

from .job import Job

AFTER_SECONDS = 2.0
"""How long the wait must have gone on, where nobody asked for progress."""
EVERY_SECONDS = 0.2
"""How often the jobs are looked at."""
MANY = 20
"""Fewer jobs show no progress by themselves."""


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    shell = sys.modules.get("IPython")
    if shell is None:
        return False
    return type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def wanted(count: int, progress: bool | None) -> bool:
    """Whether progress is shown: as said, else in a terminal or a notebook for many jobs."""
    if progress is not None:
        return progress
    watched = in_notebook() or (sys.stderr is not None and hasattr(sys.stderr, "isatty") and sys.stderr.isatty())
    return watched and count >= MANY


class _Line:
    """A line on standard error, written over as it changes."""

    def __init__(self, total: int) -> None:
        self.total, self.n = total, 0

    def update(self, count: int) -> None:
        self.n += count
        print(f"\rkitchensink: {self.n} of {self.total} calls", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr, flush=True)


def _bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line(total)
    return tqdm(total=total, unit="call", file=None if in_notebook() else sys.stderr)


def follow(total: int, done: Callable[[], int], after_seconds: float, ended: threading.Event) -> None:
    """Shows how many are done until `ended`, and then the last state."""
    if ended.wait(after_seconds):
        return
    bar, told = _bar(total), 0
    while True:
        last = ended.wait(EVERY_SECONDS)
        now = done()
        if now > told:
            bar.update(now - told)
            told = now
        if last:
            bar.close()
            return


@contextlib.contextmanager
def shown(jobs: Sequence[Job], progress: bool | None = None, total: int | None = None) -> Iterator[None]:
    """Progress of the jobs while this lasts. `total`: how many there will be, where more are still added."""
    count = len(jobs) if total is None else total
    if not count or not wanted(count, progress):
        yield
        return
    ended = threading.Event()
    after = AFTER_SECONDS if progress is None else 0.0
    thread = threading.Thread(
        target=follow,
        args=(count, lambda: sum(job.finished for job in list(jobs)), after, ended),
        name="kitchensink-progress",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)
