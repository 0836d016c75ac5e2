"""`Executor`: a `concurrent.futures.Executor` whose workers are those of the cluster."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Callable

from . import _client
from .bulk import cancel_rest
from .job import Job
from .mapping import results

__all__ = ["Executor"]


class Executor(concurrent.futures.Executor):
    """Runs functions on the cluster, for code that takes an executor.

    >>> with Executor() as pool:
    ...     sizes = list(pool.map(os.path.getsize, paths))
    ...     future = pool.submit(head, "/ks/mylarge/dataset.h5", n=10, _timeout=60)

    `client`: a `Client`; else `url` and further keywords make one, which ends with the executor. The keywords of
    `Client.call` that begin with `_` are understood by `submit` and `map`, and those of `defaults` hold for all calls.
    """

    def __init__(
        self,
        client: _client.Client | None = None,
        url: str | None = None,
        *,
        defaults: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        if client is not None and (url is not None or keywords):
            raise TypeError("an Executor takes a client, or what makes one, not both")
        self._own = client is None
        self._client = client if client is not None else _client.Client(url, **keywords)
        self._defaults = dict(defaults or {})
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._over = False

    def _open(self) -> None:
        if self._over:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job:
        """Calls `fn(*args, **kwargs)`; returns its `Job`, a future."""
        with self._lock:
            self._open()
            job: Job = self._client.call(fn, *args, **{**self._defaults, **kwargs, "_async": True})
            self._jobs.add(job)
        return job

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **keywords: Any,
    ) -> Iterator[Any]:
        """As the built-in `map`; results in order, each as soon as it is there. All calls are sent at once, in batches
        (so `chunksize` is not needed). Errors: TimeoutError, `timeout` seconds after this call."""
        with self._lock:
            self._open()
            jobs = self._client.submit_many(fn, *iterables, **{**self._defaults, **keywords})
            self._jobs.update(jobs)
        return results(jobs, True, False, timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No further calls. `cancel_futures`: those that still go on are cancelled; `wait`: waits until all have
        ended. Calls that were sent end on their own where nobody waits for them."""
        with self._lock:
            self._over = True
            jobs = list(self._jobs)
        if cancel_futures:
            cancel_rest(jobs)
        if wait:
            concurrent.futures.wait(jobs)
            if self._own:
                self._client.close()

    def __repr__(self) -> str:
        return f"<Executor of {self._client!r}>"
