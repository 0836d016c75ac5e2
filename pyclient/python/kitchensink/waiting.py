"""Calls that wait for calls of their own: while one does, its worker's place on the node is another call's.

Internal. Who takes part: the worker says which call runs (`runs`), whoever waits for jobs waits here (`wait`,
`place_given`), the node starts another call meanwhile (`Ask::Nested`). What always holds: a wait that is over before
`GRACE_SECONDS` costs nothing; the node is told by the first thread of the call that waits and by the last that goes on;
in a process that is no worker, and in one that a worker forked, nothing happens here.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import KitchenSinkError, NestedTooDeep

if TYPE_CHECKING:
    from .job import Job
    from .session import Session

GRACE_SECONDS = 0.01
"""How long a call waits before it gives its place away."""
ASK_SECONDS = 5.0
"""How long the node may take to hear of it."""
PRIORITY_MAX = 2**31 - 1
"""The highest."""


class _Running:
    """The call that this worker runs."""

    def __init__(self, job: str, priority: int) -> None:
        self.job = job
        self.priority = priority
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting = 0
        self._given = False

    @contextlib.contextmanager
    def place_given(self, session: Session) -> Iterator[None]:
        """Its place is another's inside of this. Errors: NestedTooDeep."""
        with self._lock:
            self._waiting += 1
            try:
                if self._waiting == 1:
                    self._given = self._say(session, True)
            except BaseException:
                self._waiting -= 1
                raise
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if self._waiting == 0 and self._given:
                    self._given = False
                    with contextlib.suppress(KitchenSinkError):
                        self._say(session, False)

    def _say(self, session: Session, waits: bool) -> bool:
        """Whether the node heard of it. Only this worker's own node knows the call."""
        if session.hello.node != os.environ.get("KS_NODE_NAME"):
            return False
        try:
            session.ask({"Nested": {"job": self.job, "waits": waits}}, "Done", ASK_SECONDS)
        except NestedTooDeep:
            raise
        except (KitchenSinkError, TimeoutError):
            return False
        return True


_running: _Running | None = None


def runs(job: str, priority: int) -> None:
    """This process runs this call from now on."""
    global _running
    _running = _Running(job, priority)


def runs_nothing() -> None:
    """It has ended."""
    global _running
    _running = None


def _current() -> _Running | None:
    running = _running
    return running if running is not None and running.pid == os.getpid() else None


def priority() -> int | None:
    """The least priority of calls that are made here: they go before the one that makes them, and so may have its place
    while it waits. None: no call runs here."""
    running = _current()
    return None if running is None else min(running.priority + 1, PRIORITY_MAX)


def outer() -> str | None:
    """The call that makes the calls that are made here: it takes them with it when it is stopped."""
    running = _current()
    return None if running is None else running.job


def wait(session: Session, job: Job, deadline: float | None) -> bool:
    """As `session.wait(job, deadline)`; the place of the call that waits is given away meanwhile. Errors:
    NestedTooDeep."""
    running = _current()
    if running is None:
        return session.wait(job, deadline)
    soon = time.monotonic() + GRACE_SECONDS
    if session.wait(job, soon if deadline is None else min(soon, deadline)):
        return True
    if deadline is not None and time.monotonic() >= deadline:
        return False
    with running.place_given(session):
        return session.wait(job, deadline)


def place_given(session: Session | None) -> contextlib.AbstractContextManager[None]:
    """What waits for jobs in another way than `wait` does so inside of this. Errors: NestedTooDeep."""
    running = _current()
    if running is None or session is None:
        return contextlib.nullcontext()
    return running.place_given(session)
