"""The bulk half of a client: calls are gathered, sent at once, and their results taken in order.

Internal; users find these methods on `Client`. Who takes part: `submission` makes the calls ready and sends them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from . import functions, profiling, submission
from .errors import KitchenSinkError
from .job import Job
from .options import Options
from .progress import shown
from .submission import Function, Maker, Prepared

if TYPE_CHECKING:
    from .session import Session

CANCEL_SECONDS = 5.0
"""How long Ctrl-C waits until the node has cancelled."""

JobOrId = Union[Job, str]


class _Gathered(NamedTuple):
    """A call that waits for `execute`: ready to be sent, or to be run here."""

    prepared: Prepared | None
    function: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class BulkMethods:
    """Methods of `Client`."""

    local: bool = False
    """True: `execute` runs the calls in this process, one after the other, to try things out."""

    if TYPE_CHECKING:
        _lock: threading.RLock
        _format: str

        def _connected(self) -> Session: ...
        def _options(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Options]: ...
        def _arranged(
            self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options
        ) -> tuple[Function, tuple[Any, ...], dict[str, Any]]: ...
        def job(self, job: JobOrId) -> Job: ...
        def cancel(self, jobs: JobOrId | Iterable[JobOrId]) -> list[str]: ...

    def _forget_bulk(self) -> None:
        self._bulk: list[_Gathered] = []
        self._bulk_functions: dict[int, tuple[Any, functions.Serialized]] = {}
        self._bulk_jobs: list[Job] = []
        self._local_results: list[Any] = []

    @property
    def jids(self) -> list[str]:
        """The ids of the jobs that the last `execute`s sent and `br` has not taken."""
        return [job.id for job in self._bulk_jobs]

    def bulk_call(self, f: Function, *args: Any, **kwargs: Any) -> Job | None:
        """Adds a call to those that `execute` will send; keywords as of `call`. The function is taken as it is at its
        first `bulk_call` since the last `execute`. What cannot be sent raises `NotSerializable` here.

        >>> for path in paths:
        ...     c.bc(parse, path)
        >>> c.execute()
        >>> c.br()
        """
        own, chosen = self._options(kwargs)
        if self.local:
            self._bulk.append(_Gathered(None, f, args, own))
            return None
        session = self._connected()
        sent, sent_args, sent_kwargs = self._arranged(f, args, own, chosen)
        with self._lock:
            maker = Maker(session, self._format, self._bulk_functions)
            prepared = maker.prepare(sent, sent_args, sent_kwargs, chosen)
            self._bulk.append(_Gathered(prepared, f, args, own))
        return prepared.job

    def execute(self) -> list[Job]:
        """Sends the calls that were added, and returns their jobs once the node has recorded all of them. All first
        choices of node are given before any second choice."""
        if self.local:
            self.execute_local()
            return []
        session = self._connected()
        with self._lock:
            calls = [call.prepared for call in self._bulk if call.prepared is not None]
            self._bulk, self._bulk_functions = [], {}
        jobs = [prepared.job for prepared in calls]
        for prepared in calls:
            prepared.job._session = session  # the connection may be a new one
        calls.reverse()  # to be let go as they are sent
        with cancelled_by_interrupt(jobs):
            submission.send_all(session, (calls.pop() for _ in range(len(calls))))
        with self._lock:
            self._bulk_jobs.extend(jobs)
        return jobs

    def execute_local(self) -> None:
        """Runs the calls that were added in this process, one after the other; `br` gives their results. What the first
        one raises is raised here, and the rest is dropped."""
        with self._lock:
            calls, self._bulk = self._bulk, []
            self._bulk_functions = {}
        for call in calls:
            if isinstance(call.function, str):
                raise TypeError(f"{call.function!r} is a name, which nodes know: it cannot be run here")
            self._local_results.append(call.function(*call.args, **call.kwargs))

    def bulk_results(
        self, profile: bool | str = False, timeout: float | None = None, progress: bool | None = None
    ) -> list[Any]:
        """The results of all calls that were executed since the last `br`, in the order they were added; waits for all
        of them. If any failed, the first failure (in order) is raised, once all have ended. TimeoutError: `timeout`
        seconds have passed; ask again. KitchenSinkError: calls were added, and none was executed.
        Ctrl-C cancels those that still go on.

        `profile`: print where the time went, under this name (`c.profile` returns the same). `progress`: show a bar;
        None: in a terminal or a notebook, once it has taken two seconds.
        """
        if self._local_results:
            results, self._local_results = self._local_results, []
            return results
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        jobs = self._bulk_jobs
        if self._bulk and not jobs:
            raise KitchenSinkError(f"{len(self._bulk)} calls were added and not sent: call execute() before br()")
        with cancelled_by_interrupt(jobs), shown(jobs, progress):
            for one in jobs:
                one.exception(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self._bulk_jobs = []
        if profile:
            profiling.show(profile if isinstance(profile, str) else "profile", time.monotonic() - began, jobs)
        return in_order(jobs)

    def bulk_async_result(self, job_ids: Iterable[JobOrId], timeout: float | None = None) -> list[Any]:
        """The results of these jobs, in this order; waits for all of them. The first failure (in order) cancels the
        others and is raised. TimeoutError: `timeout` seconds have passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs = [self.job(one) for one in job_ids]
        with cancelled_by_interrupt(jobs):
            for one in jobs:
                error = one.exception(None if deadline is None else max(0.0, deadline - time.monotonic()))
                if error is not None:
                    cancel_rest(jobs)
                    raise error
        return in_order(jobs)

    def bulk_cancel(self, jids: Iterable[JobOrId] | None = None) -> list[str]:
        """Cancels these jobs; None: those of the last `execute`s. Returns the ids of those that were still going."""
        jobs: list[JobOrId] = list(self._bulk_jobs if jids is None else jids)
        return self.cancel(jobs) if jobs else []

    def call_single(self, f: Function, *args: Any, **kwargs: Any) -> Any:
        """Calls one function and returns its result: `call` with `_async=False`."""
        kwargs["_async"] = False
        return self.call(f, *args, **kwargs)

    if TYPE_CHECKING:

        def call(self, f: Function, *args: Any, **kwargs: Any) -> Any: ...

    bc = bulk_call
    br = bulk_results
    cs = call_single


def in_order(jobs: list[Job]) -> list[Any]:
    """Results in order; each job is let go as its result is taken."""
    jobs.reverse()
    results = []
    while jobs:
        results.append(jobs[-1].result())
        jobs.pop()
    return results


def cancel_rest(jobs: Iterable[Job]) -> list[str]:
    """Cancels those of the jobs that still go on; returns their ids. Never raises."""
    going = [job for job in jobs if not job.finished and job._session is not None]
    with contextlib.suppress(Exception):
        if going and going[0]._session is not None:
            return going[0]._session.cancel([job.id for job in going], seconds=CANCEL_SECONDS)
    return []


@contextlib.contextmanager
def cancelled_by_interrupt(jobs: list[Job]) -> Iterator[None]:
    """Ctrl-C in a wait cancels what the wait started, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        count = len(cancel_rest(jobs))
        if count and sys.stderr is not None:
            print(f"kitchensink: interrupted; {count} call{'s' * (count != 1)} cancelled", file=sys.stderr, flush=True)
        raise
