"""`AsyncClient`: a client for asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Callable

from . import _client
from .bulk import JobOrId, cancel_rest
from .job import Job
from .submission import Function

__all__ = ["AsyncClient"]


class AsyncClient:
    """A `Client` whose methods are awaited.

    >>> async with AsyncClient() as c:
    ...     first = await c.call(head, "/ks/a.h5", n=10)
    ...     several = await asyncio.gather(*(c.call(size, path) for path in paths))
    ...     async for result in c.imap(size, paths, ordered=False):
    ...         print(result)

    Arguments as of `Client`. Nothing here blocks the loop: what sends runs in a thread of its own, and the loop is told
    when a job has ended. Cancelling the task that awaits a call cancels the call. `asyncio.timeout` and `_timeout` are
    both there to bound it.
    """

    def __init__(self, url: str | None = None, **keywords: Any) -> None:
        self._make = functools.partial(_client.Client, url, **keywords)
        self._made: _client.Client | None = None
        self._sender = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="kitchensink-send")

    async def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            self._sender, functools.partial(function, *args, **kwargs)
        )

    async def client(self) -> _client.Client:
        """The client that it stands on, connected. Errors: ConnectionFailed."""
        if self._made is None:
            await self._run(self._connect)
        assert self._made is not None
        return self._made

    def _connect(self) -> None:
        """In the sending thread, of which there is one: so it is done once."""
        if self._made is None:
            self._made = self._make()

    async def __aenter__(self) -> AsyncClient:
        await self.client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection. Jobs that were sent go on."""
        if self._made is not None:
            await self._run(self._made.close)
        self._sender.shutdown(wait=False)

    async def submit(self, f: Function, *args: Any, **kwargs: Any) -> Job:
        """Sends a call; returns its job, which can be awaited."""
        client = await self.client()
        job: Job = await self._run(client.call, f, *args, **{**kwargs, "_async": True})
        return job

    async def call(self, f: Function, *args: Any, **kwargs: Any) -> Any:
        """Calls a function and returns its result; keywords as of `Client.call`."""
        return await (await self.submit(f, *args, **kwargs))

    async def result(self, job: JobOrId) -> Any:
        """The result of a job, or of the job of this id."""
        client = await self.client()
        return await (await self._run(client.job, job))

    async def map(self, f: Function, *iterables: Iterable[Any], **kwargs: Any) -> list[Any]:
        """The results in order, as `Client.map` has them; the first failure cancels the rest."""
        return [result async for result in self.imap(f, *iterables, **kwargs)]

    async def imap(
        self, f: Function, *iterables: Iterable[Any], ordered: bool = True, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Each result as soon as it is there: in order, or, with `ordered=False`, as the calls end. Leaving the loop
        cancels what still goes on."""
        client = await self.client()
        jobs: list[Job] = await self._run(client.submit_many, f, *iterables, **kwargs)
        try:
            if ordered:
                for job in jobs:
                    yield await job
            else:
                for ended in asyncio.as_completed([asyncio.ensure_future(_result(job)) for job in jobs]):
                    yield await ended
        finally:
            going = [job for job in jobs if not job.finished]
            if going:
                await self._run(cancel_rest, going)

    async def cancel(self, jobs: JobOrId | Iterable[JobOrId]) -> list[str]:
        """Cancels jobs; returns the ids of those that were still going."""
        cancelled: list[str] = await self._run((await self.client()).cancel, jobs)
        return cancelled

    async def hosts(self, to_write: bool = False) -> dict[str, str]:
        """The nodes that are alive: name -> url."""
        found: dict[str, str] = await self._run((await self.client()).hosts, to_write)
        return found

    async def path_search(self, pattern: str) -> list[str]:
        """The data urls of the tree that match."""
        found: list[str] = await self._run((await self.client()).path_search, pattern)
        return found


async def _result(job: Job) -> Any:
    return await job
