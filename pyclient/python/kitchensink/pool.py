"""`Pool`: distributed3's pool. Results stay on the nodes where they were made, under keys, until they are asked for,
and further calls run where their inputs are.

Who takes part: a `RemoteValue` (`kept`) stands for a key; in a call's arguments it is replaced by its value on the
node, and the result is kept there under a key of its own. What always holds: a key has its whole value or none. Not for
data that is to outlive its pool: a pool without a name removes its keys when it is closed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import uuid
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Callable
from urllib.parse import quote

from . import _client, nested, options, submission
from .bulk import cancelled_by_interrupt
from .errors import KeyLost, KitchenSinkError
from .job import Job
from .kept import KeepAs, RemoteValue, forget

__all__ = ["PendingComputation", "Pool", "RemoteValue"]

RETRIES = 3
"""How often `map` runs a call again whose worker or node died."""
READERS = 16
"""Values that `gather` reads at the same time."""
GOING_MAX = 100_000
"""Keys of one `gather`."""

Address = tuple[str, int]


class PendingComputation:
    """A call under way: `get()` waits for it and gives its `RemoteValue`, whose `get()` gives the value."""

    def __init__(self, value: RemoteValue, job: Job) -> None:
        self.key = value.key
        self.job = job
        self._value = value

    @property
    def status(self) -> str:
        """`running`, `success` or `error`."""
        return self._value.status

    def get(self, timeout: float | None = None) -> RemoteValue:
        """Waits for the end. Errors: TimeoutError."""
        self.job.exception(timeout)
        return self._value

    def __repr__(self) -> str:
        return f"PendingComputation<key={self.key}, {self.status}>"


class Pool:
    """Computes on the cluster's workers, and leaves the results there.

    >>> pool = Pool("host1:6323")                  # or Pool(): this machine's node
    >>> A = pool.map(lambda x: x**2, range(10))    # values stay where they were computed
    >>> B = pool.map(lambda x: -x, A)              # computed there, too
    >>> total = pool.apply(sum, [B])               # handles may be anywhere in the arguments
    >>> total.get()
    -285
    >>> pool.gather({"squares": A, "total": total})
    {'squares': [0, 1, 4, 9, 16, 25, 36, 49, 64, 81], 'total': -285}

    `address`: of any node, as `Client` takes it, or `HOST:PORT`. `name`: pools of one name share their keys, which stay
    when they are closed; a pool without one removes its keys then. Values are in the memory of the node that made them
    (`ks mount --memory-tier`), on its disk where that is full; what was in the memory of a node that dies is lost
    (`KeyLost`), what has the key of a named pool outlives a node that is ended in order.
    """

    def __init__(
        self, address: str | None = None, port: int | None = None, *, name: str | None = None, **keywords: Any
    ) -> None:
        self._client = _client.Client(_node_url(address, port), **keywords)
        self._id = quote(name, safe="") if name else uuid.uuid4().hex[:16]
        self._named = name is not None
        self._pid = os.getpid()
        self._closed = False
        _open.add(self)
        self._turns = itertools.count()
        self.who_has: dict[str, set[Address]] = {}
        """key -> the nodes that have its value, as `sync_center` found it."""
        self.has_what: dict[Address, set[str]] = {}
        """node -> the keys whose values it has."""
        self.available_cores: dict[Address, int] = {}
        """node -> its workers."""
        self._names: dict[Address, str] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pool {self._id} of {self._client!r}>"

    # The cluster

    def sync_center(self) -> None:
        """Learns anew which nodes are alive with how many workers, and who has what."""
        nodes = {name: node for name, node in self._client.nodes().items() if node.get("alive", True)}
        addresses = {name: _address(node["address"]) for name, node in nodes.items()}
        self._names = {address: name for name, address in addresses.items()}
        self.available_cores = {addresses[name]: int(node.get("workers") or 0) for name, node in nodes.items()}
        found = self._client._connected().ask({"KeptGroup": {"group": self._id}}, "KeptGroup")
        self.who_has = {
            value["name"]: {addresses[name] for name in value["nodes"] if name in addresses} for value in found
        }
        self.has_what = {address: set() for address in self.available_cores}
        for key, holders in self.who_has.items():
            for address in holders:
                self.has_what[address].add(key)

    # Computing

    def map(self, func: Callable[..., Any], seq: Iterable[Any], **kwargs: Any) -> list[RemoteValue]:
        """`func(item, **kwargs)` for each item; waits until all have ended and returns their values' handles in order.
        A call that failed raises where its value is asked for. Calls of workers that die are run again.

        Ctrl-C cancels what this started. Keywords that begin with `_` are those of `Client.call`.
        """
        own, sent = _split({"_retries": RETRIES, **kwargs})
        items = list(seq)
        keys = [uuid.uuid4().hex for _ in items]
        jobs: list[Job] = []
        with cancelled_by_interrupt(jobs):
            self._submit(self._checked(func), keys, items, own, sent, jobs)
            for job in jobs:
                job.exception()
        return [self._value(key, job) for key, job in zip(keys, jobs)]

    def _submit(
        self,
        func: Callable[..., Any],
        keys: list[str],
        items: list[Any],
        own: dict[str, Any],
        sent: dict[str, Any],
        jobs: list[Job],
    ) -> None:
        client = self._client
        maker = submission.Maker(client._connected(), client._format, shared={})

        def calls() -> Iterator[submission.Prepared]:
            for key, item in zip(keys, items):
                arguments, chosen = client._options({**own, **sent, "_keep": self._as(key)})
                prepared = maker.prepare(*client._arranged(func, (item,), arguments, chosen), chosen)
                jobs.append(prepared.job)
                yield prepared

        submission.send_all(client._connected(), calls())

    def _as(self, key: str) -> KeepAs:
        return KeepAs(self._id, key, self._named)

    def _value(self, key: str, job: Job | None = None) -> RemoteValue:
        return RemoteValue(self._id, key, job, self._client)

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> PendingComputation:
        """Starts `func(*args, **kwargs)`, on a node that has most of its inputs; its value will be that of `key`."""
        if not isinstance(args, (tuple, list)):
            raise TypeError("args is a tuple or a list: pool.apply_async(func, args=(x,))")
        own, sent = _split(dict(kwargs or {}))
        value_key = key or uuid.uuid4().hex
        job = self._client.call(self._checked(func), *args, **own, **{**sent, "_keep": self._as(value_key)})
        return PendingComputation(self._value(value_key, job), job)

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> RemoteValue:
        """As `apply_async`, and waits for the end."""
        pending = self.apply_async(func, args, kwargs, key)
        with cancelled_by_interrupt([pending.job]):
            return pending.get()

    def _checked(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if self._closed:
            raise KitchenSinkError("the pool was closed")
        if not callable(func):
            raise TypeError(f"a function is called, not {func!r}")
        return func

    # Data

    def scatter(self, data: Any, key: str | None = None) -> Any:
        """Spreads values over the nodes, each in its turn as often as it has workers. A dict gives a dict of handles,
        with its own keys as keys; any other iterable a list. `key`: what their keys begin with."""
        self.sync_center()
        turns = [name for address, name in sorted(self._names.items()) for _ in range(self.available_cores[address])]
        if not turns:
            raise KitchenSinkError("no node of the cluster has a worker")
        items = list(data.items()) if isinstance(data, dict) else [(None, value) for value in data]
        keys = []
        for index, (own, _) in enumerate(items):
            keys.append(str(own) if own is not None else f"{key}-{index}" if key else uuid.uuid4().hex)

        def put(index: int) -> RemoteValue:
            node = turns[(offset + index) % len(turns)]
            return self._put(keys[index], items[index][1], node)

        offset = next(self._turns)
        with concurrent.futures.ThreadPoolExecutor(READERS) as threads:
            handles = list(threads.map(put, range(len(items))))
        return dict(zip((own for own, _ in items), handles)) if isinstance(data, dict) else handles

    def gather(self, data: Any, timeout: float | None = None) -> Any:
        """The same with every handle replaced by its value, however nested. Errors: KeyLost (a KeyError), what the
        handles' calls raised, and TimeoutError, where one of them has not ended within `timeout` seconds."""
        handles = {id(handle): handle for handle in nested.find(data, RemoteValue)}
        if len(handles) > GOING_MAX:
            raise ValueError(f"more than {GOING_MAX} values: gather fewer at once")
        with concurrent.futures.ThreadPoolExecutor(READERS) as threads:
            found = threads.map(lambda handle: handle.get(timeout), handles.values())
            values = dict(zip(handles, found))
        return nested.replace(data, RemoteValue, lambda handle: values[id(handle)])

    def set(self, key: str, value: Any) -> RemoteValue:
        """Keeps a value under a key, on the node that this pool talks to."""
        return self._put(key, value, None)

    def get(self, key: str) -> Any:
        """The value of a key. Errors: KeyError."""
        try:
            return self._value(key).get()
        except KeyLost:
            raise KeyError(key) from None

    def delete(self, *keys: str | RemoteValue) -> None:
        """Removes keys and their values from all nodes. Errors: KeyError."""
        for key in keys:
            self._value(key.key if isinstance(key, RemoteValue) else key).delete()

    def _put(self, key: str, value: Any, node: str | None) -> RemoteValue:
        self._client._keep_values([(self._as(key), value)], node)
        return self._value(key)

    def close(self) -> None:
        """Ends the pool; one without a name removes its keys from the nodes."""
        if self._closed:
            return
        self._closed = True
        if not self._named and self._pid == os.getpid():
            with contextlib.suppress(KitchenSinkError, OSError):
                forget(self._client._connected(), [], (self._id,))
        self._client.close()


_open: weakref.WeakSet[Pool] = weakref.WeakSet()


def close_all() -> None:
    """At exit: pools without a name remove their keys."""
    for pool in list(_open):
        with contextlib.suppress(Exception):
            pool.close()


def _split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The function's own keywords, and those of the call, which begin with `_`. Errors: TypeError."""
    own, _ = options.split(kwargs)
    return own, {name: value for name, value in kwargs.items() if name not in own}


def _node_url(address: str | None, port: int | None) -> str | None:
    if address is None or "://" in address or address.startswith("/"):
        return address
    return f"ks://{address}" if port is None else f"ks://{address}:{port}"


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
