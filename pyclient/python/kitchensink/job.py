"""`Job`: a call that was sent, and what became of it."""

from __future__ import annotations

import contextlib
import html
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, NamedTuple

from . import outcome as outcomes
from . import waiting
from .errors import JobCancelled, JobUnknown, KitchenSinkError, Late, NotSerializable

if TYPE_CHECKING:
    from .profiled import Profile
    from .session import Session

# States of concurrent.futures; it has no public names for them.
_PENDING, _RUNNING, _FINISHED = "PENDING", "RUNNING", "FINISHED"

CANCEL_SECONDS = 10.0
"""How long `Job.cancel` waits until the call has stopped."""

_making_conditions = threading.Lock()


class Placement(NamedTuple):
    """Where a call ran, why there, and what it cost."""

    node: str
    """The node's name."""
    pid: int
    """The worker's process id there."""
    why: str
    """Why it ran there, in words."""
    costs: dict[str, int]
    """Bytes of its data that each node would have had to fetch when the call was placed, by node name, the least first
    (of many nodes the first 32)."""
    bytes_local: int
    """Bytes it read that were there."""
    bytes_fetched: int
    """Bytes it read that had to be fetched from other nodes."""
    queued_us: int
    """Microseconds from acceptance to start."""
    run_us: int
    """Microseconds it ran."""
    cpu_us: int
    """Microseconds of processor time it took."""
    files: list[bytes]
    """Files of the tree that it opened."""
    claiming_us: int = 0
    """Microseconds from the executing node's asking for it to its having it; part of `queued_us`."""
    bringing_us: int = 0
    """Microseconds until its function, large arguments and kept values were on that node; part of `queued_us`."""
    unpickling_us: int = 0
    """Microseconds that its function and arguments took to be made in the worker."""
    waiting_us: int = 0
    """Microseconds in which it, or a process of its, read bytes of files that had to come from other nodes; part of
    `run_us`."""
    pickling_us: int = 0
    """Microseconds that its result took to be pickled."""


def _placement(report: dict[str, Any]) -> Placement:
    return Placement(
        report["node"],
        report["pid"],
        report["why"],
        {node: size for node, size in report["costs"]},
        report["bytes_local"],
        report["bytes_fetched"],
        report["queued_us"],
        report["run_us"],
        report["cpu_us"],
        report["files"],
        *report.get("phases", ()),
    )


class Job(Future):  # type: ignore[type-arg]
    """A call that was sent. It is a `concurrent.futures.Future`, so `concurrent.futures.wait` and `as_completed` take
    it, and it can be awaited.

    >>> job = client.call(head, "/ks/mylarge/dataset.h5", n=10)
    >>> job.result()            # waits; raises what the call raised
    >>> job.placement.node      # where it ran
    'host3'
    >>> str(job)                # its id: `client.result(id)` finds it again from anywhere
    '8f14e45fceea167a5a36dedd4bea2543'
    """

    # concurrent.futures gives each future a condition and two lists, most of a kilobyte. A job gets them when
    # somebody asks for them.
    def __init__(self, session: Session | None, id: str, name: str, format: str = "cloudpickle") -> None:
        self.id = id
        """32 hex digits."""
        self.name = name
        """The function's name."""
        self._session = session
        self._format = format
        self._state = _PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._outcome: outcomes.Outcome | None = None
        self._report: dict[str, Any] | None = None
        self._where: tuple[str, int] | None = None
        self._decoders: dict[int, Any] | None = None
        self._marks: dict[str, float] | None = None
        self._profile: Any = None
        self._uses: tuple[Any, ...] = ()
        """Handles of the kept values among its arguments: they stay until it has ended."""
        self._keeps = False
        """Its result is a handle whose value goes with it."""
        self._clock = 0.0
        """`time.monotonic` when it was sent; once it has ended, how many seconds that took. 0: unknown."""
        self.finished = False

    def __getattr__(self, name: str) -> Any:
        if name not in ("_condition", "_waiters", "_done_callbacks"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _making_conditions:
            if "_condition" not in self.__dict__:
                self._waiters: list[Any] = []
                self._done_callbacks: list[Any] = []
                self._condition = threading.Condition()
        return self.__dict__[name]

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        where = f" on {self._where[0]}" if self._where else ""
        return f"<Job {self.id} {self.name} {self._state.lower()}{where}>"

    def __reduce__(self) -> Any:
        raise NotSerializable(
            "a Job cannot be sent: pass its result (c.result(job)), the path of a file that it wrote, or what it left "
            "in memory (_keep=True); str(job) is its id"
        )

    def _raise_unknown(self) -> None:
        """Raises JobUnknown where no job has this id."""
        unknown = self._outcome is not None and outcomes.failed_as(self._outcome, "JobUnknown")
        if unknown or isinstance(self._exception, JobUnknown):
            self.result(0)

    # What the session does with it.

    def _started(self, node: str, pid: int) -> None:
        self._where = (node, pid)
        if self._state == _PENDING:
            self._state = _RUNNING

    def _end(self, outcome: outcomes.Outcome, report: dict[str, Any] | None) -> None:
        """The job has ended. Its result is decoded when somebody asks for it."""
        if self.finished:
            return
        self._outcome = outcome
        if report is not None:
            self._report = report
            self._where = (report["node"], report["pid"])
        if self._clock:
            self._clock = time.monotonic() - self._clock
        self._decoders = None
        self._uses = ()
        with _making_conditions:
            watched = "_condition" in self.__dict__
            if not watched:
                self._state = _FINISHED
                self.finished = True
        if watched:
            with self._condition:
                self._state = _FINISHED
                self.finished = True
                for waiter in self._waiters:
                    waiter.add_result(self)
                self._condition.notify_all()
            self._invoke_callbacks()

    def _decode(self) -> None:
        """Makes result or exception of the outcome, once."""
        with _making_conditions:
            outcome, self._outcome = self._outcome, None
            if outcome is None:
                return
            self._decoding = threading.Lock()
            self._decoding.acquire()
        try:
            self._result, self._exception = outcomes.decode(outcome, self._format, self.id, self._where)
            if self._keeps and self._exception is None:
                self._own()
        except BaseException:  # Ctrl-C: another time
            self._outcome = outcome
            raise
        finally:
            self._decoding.release()

    def _own(self) -> None:
        from . import kept

        client = self._session.client() if self._session is not None and self._session.client is not None else None
        if client is not None and isinstance(self._result, kept.RemoteValue):
            self._result._known_client = client
            kept.own(self._result, client)

    def _settle(self, timeout: float | None) -> None:
        """Waits for the end and decodes. Errors: TimeoutError."""
        if not self.finished:
            deadline = None if timeout is None else time.monotonic() + timeout
            if self._session is None or not waiting.wait(self._session, self, deadline):
                raise Late(f"{self.name} ({self.id}) has not ended within {timeout} s")
        self._decode()
        decoding = self.__dict__.get("_decoding")
        if decoding is not None and decoding.locked():
            with decoding:  # another thread decodes it
                pass

    # What users do with it.

    def result(self, timeout: float | None = None) -> Any:
        """The call's result; waits for it. Raises what the call raised, one of `kitchensink.errors`, or TimeoutError
        once `timeout` seconds have passed (the call goes on)."""
        self._settle(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # no cycle: exception, traceback, frame, job
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception that `result` would raise, or None; waits for the end."""
        self._settle(timeout)
        return self._exception

    def done(self) -> bool:
        """Whether it has ended. Never waits."""
        return self.finished

    def running(self) -> bool:
        """Whether a worker runs it now, as far as was heard."""
        return self._state == _RUNNING

    def cancelled(self) -> bool:
        """Whether it ended by being cancelled."""
        if not self.finished:
            return False
        outcome = self._outcome
        return isinstance(self._exception, JobCancelled) if outcome is None else outcomes.is_cancelled(outcome)

    def cancel(self) -> bool:
        """Ends it: a queued call never starts, a running one is interrupted, then killed. Returns when it has stopped
        (where that takes longer than `CANCEL_SECONDS`, before). True: it ends as `JobCancelled`; False: it had ended,
        or was done meanwhile.

        In a thread that runs an event loop (asyncio) it never waits: it tells the node and returns True. The call ends
        soon after, as `JobCancelled` unless it was done before; `await job` or a callback says when and how."""
        if self.finished or self._session is None:
            return False
        if _runs_event_loop():
            self._session.cancel_soon([self.id])
            return True
        if not self._session.cancel([self.id]):
            return False
        waiting.wait(self._session, self, time.monotonic() + CANCEL_SECONDS)
        return not self.finished or self.cancelled()

    @property
    def placement(self) -> Placement | None:
        """Where it ran and what that cost; None until it has ended."""
        return None if self._report is None else _placement(self._report)

    @property
    def returning(self) -> float:
        """Seconds that sending it and getting its end took: what is left of the time from sending it to having its end
        (not yet unpickled) here. 0.0 where it has not ended, or another client sent it."""
        placed = self.placement
        if placed is None or not self._clock:
            return 0.0
        told_us = placed.queued_us + placed.unpickling_us + placed.run_us + placed.pickling_us
        return max(0.0, self._clock - told_us / 1e6)

    @property
    def marks(self) -> dict[str, float]:
        """Seconds that `timethis` measured in it, by name."""
        if self._marks is None:
            self._marks = {}
        return self._marks

    @property
    def profile(self) -> Profile | None:
        """Where its time went, if it ran with `_profile=True` and has ended; else None. `client.profile(jobs)` has that
        of several together."""
        return None if self._profile is None else self._profile.profile()

    def __await__(self) -> Generator[Any, None, Any]:
        """`await job` is its result. Cancelling the task that waits cancels the call."""
        return self._in_loop().__await__()

    async def _in_loop(self) -> Any:
        import asyncio

        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell(_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

        self.add_done_callback(tell)
        if self._session is not None:
            self._session.watch()
        try:
            with waiting.place_given(self._session if not self.finished else None):
                await ended.wait()
        except asyncio.CancelledError:
            # In a loop this only tells the node; where the connection has ended, there is nobody to be told.
            with contextlib.suppress(Exception):
                self.cancel()
            raise
        return self.result(0)

    def _repr_html_(self) -> str:
        """For notebooks."""
        where = f" on <b>{html.escape(self._where[0])}</b>" if self._where else ""
        state = {"PENDING": "waits", "RUNNING": "runs"}.get(self._state, "has ended")
        spent = f" after {self._report['run_us'] / 1e6:.3f} s" if self._report else ""
        return f"Job <code>{self.id}</code>: <code>{html.escape(self.name)}</code> {state}{where}{spent}"

    def set_running_or_notify_cancel(self) -> bool:
        """Not for jobs: their node says when they run."""
        raise KitchenSinkError("a job's state is set by its node")

    def set_result(self, result: Any) -> None:
        """Not for jobs: their node says how they end."""
        raise KitchenSinkError("a job's result is set by its node")

    def set_exception(self, exception: BaseException | None) -> None:
        """Not for jobs: their node says how they end."""
        raise KitchenSinkError("a job's exception is set by its node")


def _runs_event_loop() -> bool:
    """Whether this thread runs an event loop of asyncio, which must not wait."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def reset_after_fork() -> None:
    """Makes the lock anew in a forked child."""
    global _making_conditions
    _making_conditions = threading.Lock()


__all__ = ["CancelledError", "Job", "Placement"]
