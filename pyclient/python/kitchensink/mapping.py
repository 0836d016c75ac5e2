"""`map` and its relatives: one function over many arguments, results in order or as they come.

Internal; users find these methods on `Client`.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, as_completed
from typing import TYPE_CHECKING, Any

from . import submission, waiting
from .bulk import cancel_rest, cancelled_by_interrupt, in_order
from .errors import Late
from .job import Job
from .options import Options
from .progress import shown
from .submission import Function, Maker, Prepared

if TYPE_CHECKING:
    from .session import Session


class MapMethods:
    """Methods of `Client`."""

    if TYPE_CHECKING:
        _lock: threading.RLock
        _format: str

        def _connected(self) -> Session: ...
        def _options(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Options]: ...
        def _arranged(
            self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options
        ) -> tuple[Function, tuple[Any, ...], dict[str, Any]]: ...

    def map(
        self,
        f: Function,
        *iterables: Iterable[Any],
        progress: bool | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """The list of `f(*items)` for the items of the iterables, in their order, as the built-in `map` pairs them;
        keywords go to each call.

        >>> c.map(os.path.getsize, ["/ks/logs/1.csv", "/ks/logs/2.csv"])
        [81250, 79113]

        The function is sent as it is now, once. The first call (in order) that failed raises, and the rest are
        cancelled; so do Ctrl-C, and TimeoutError after `timeout` seconds. `progress`: show a bar; None: in a terminal
        or a notebook, once it has taken two seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs: list[Job] = []
        with cancelled_by_interrupt(jobs):
            try:
                self._submit(f, iterables, kwargs, jobs)
                with shown(list(jobs), progress):
                    _wait_in_order(jobs, deadline)
                return in_order(jobs)
            except Exception:
                cancel_rest(jobs)
                raise

    def imap(
        self,
        f: Function,
        *iterables: Iterable[Any],
        ordered: bool = True,
        progress: bool | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As `map`, but an iterator, which gives each result as soon as it is there: in order, or, with
        `ordered=False`, as the calls end. All calls are sent at once. Leaving the loop cancels what still goes on.

        >>> for size in c.imap(os.path.getsize, paths, ordered=False, progress=True):
        ...     total += size
        """
        return results(self.submit_many(f, *iterables, **kwargs), ordered, progress, timeout)

    def submit_many(self, f: Function, *iterables: Iterable[Any], **kwargs: Any) -> list[Job]:
        """As `map`, but returns the jobs at once."""
        jobs: list[Job] = []
        with cancelled_by_interrupt(jobs):
            self._submit(f, iterables, kwargs, jobs)
        return jobs

    def _submit(
        self, f: Function, iterables: tuple[Iterable[Any], ...], kwargs: dict[str, Any], jobs: list[Job]
    ) -> None:
        own, chosen = self._options(kwargs)
        session = self._connected()
        maker = Maker(session, self._format, shared={})

        def calls() -> Iterator[Prepared]:
            for items in zip(*iterables):
                prepared = maker.prepare(*self._arranged(f, items, own, chosen), chosen)
                jobs.append(prepared.job)
                yield prepared

        submission.send_all(session, calls())


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _wait_in_order(jobs: list[Job], deadline: float | None) -> None:
    """Waits for each, and stops at the first that failed."""
    for job in jobs:
        error = job.exception(_left(deadline))
        if error is not None:
            raise error


def results(jobs: list[Job], ordered: bool, progress: bool | None, timeout: float | None) -> Iterator[Any]:
    """The results of jobs, each as soon as it is there. The time runs from here. Whoever leaves the loop, by an error
    or otherwise, cancels what still goes on."""
    return _results(jobs, ordered, progress, None if timeout is None else time.monotonic() + timeout)


def _as_completed(jobs: list[Job], timeout: float | None) -> Iterator[Future[Any]]:
    session = jobs[0]._session if jobs else None
    try:
        ended = as_completed(jobs, timeout)
        while True:
            with waiting.place_given(session):
                job = next(ended, None)
            if job is None:
                return
            yield job
    except concurrent.futures.TimeoutError as error:
        raise Late(str(error)) from None


def _results(jobs: list[Job], ordered: bool, progress: bool | None, deadline: float | None) -> Iterator[Any]:
    with cancelled_by_interrupt(jobs), shown(jobs, progress):
        try:
            if ordered:
                for job in jobs:
                    yield job.result(_left(deadline))
            else:
                for ended in _as_completed(jobs, _left(deadline)):
                    yield ended.result()
        finally:
            cancel_rest(jobs)
