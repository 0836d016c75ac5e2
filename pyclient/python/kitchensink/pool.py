"""`Pool`: distributed3's pool. Results stay on the nodes where they were made, under keys, until they are asked for,
and further calls run where their inputs are.

Who takes part: a `RemoteValue` is a key and the file of the tree that holds its value; `_run` replaces such handles by
their values on the node, and keeps the result there. What always holds: a key has its whole value or none. Not for data
that is to outlive its pool: a pool without a name removes its keys when it is closed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import itertools
import os
import uuid
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Callable
from urllib.parse import quote, unquote

from . import _client, nested, options, serialization
from .bulk import cancelled_by_interrupt
from .errors import KeyLost, KitchenSinkError
from .job import Job
from .remote_data import RemoteData
from .tree import data_url, tree

__all__ = ["PendingComputation", "Pool", "RemoteValue"]

FORMAT = "cloudpickle"
RETRIES = 3
"""How often `map` runs a call again whose worker or node died."""
READERS = 16
"""Values that `gather` reads at the same time."""
GOING_MAX = 100_000
"""Keys of one `gather`."""

Address = tuple[str, int]


class RemoteValue(RemoteData):
    """A value that stays where it was made. `get()` brings it here; as an argument of the pool's functions, also inside
    of lists, tuples, dicts and sets, it is replaced by its value on the node."""

    def __init__(self, pool: str, key: str, job: Job | None = None, known_client: _client.Client | None = None) -> None:
        super().__init__(data_url=_url(pool, key), fmt=FORMAT)
        self.key = key
        self._pool = pool
        self._job = job
        self._known_client = known_client

    def client(self, rpc_url: str | None = None) -> _client.Client:
        """The pool's client, where the pool is; else the process's."""
        return self._known_client or super().client(rpc_url)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "key": self.key, "pool": self._pool}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.key, self._pool = state["key"], state["pool"]
        self._job = self._known_client = None

    def __repr__(self) -> str:
        return f"RemoteValue<key={self.key}, {self.status}>"

    @property
    def status(self) -> str:
        """`running`, `success` or `error`."""
        if self._job is None or self._job.finished and self._job.exception() is None:
            return "success"
        return "error" if self._job.finished else "running"

    def get(self, timeout: float | None = None) -> Any:
        """The value; waits for it. Raises what its call raised, KeyLost where no node has it any more, or TimeoutError
        once `timeout` seconds have passed."""
        if self._job is not None:
            self._job.result(timeout)
        try:
            return self.obj()
        except OSError as error:
            raise KeyLost(f"{self.key}: no node has its value any more: {error}") from error


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
    when they are closed; a pool without one removes its keys then. Values are files of the tree below `pools/`, of
    which the page cache of their node keeps in memory what it can.
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
        found = self._client.path_search(f"pools/{self._id}/*")
        located = self._client.data_info(found)[1] if found else {}
        self.who_has = {
            unquote(url.rpartition("/")[2]): {addresses[name] for name in holders}
            for url, (holders, _) in located.items()
            if not url.rpartition("/")[2].startswith(".")
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
        keys = []
        urls = []
        items = list(seq)
        for _ in items:
            keys.append(uuid.uuid4().hex)
            urls.append(_url(self._id, keys[-1]))
        jobs = self._client.submit_many(
            self._function(func), urls, [(item,) for item in items], itertools.repeat(own), **sent
        )
        with cancelled_by_interrupt(jobs):
            for job in jobs:
                job.exception()
        return [self._value(key, job) for key, job in zip(keys, jobs)]

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
        job = self._client.call(self._function(func), _url(self._id, value_key), tuple(args), own, **sent)
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

    def _function(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if self._closed:
            raise KitchenSinkError("the pool was closed")
        if not callable(func):
            raise TypeError(f"a function is called, not {func!r}")
        made = functools.partial(_run, func)
        made.__qualname__ = getattr(func, "__qualname__", type(func).__name__)  # type: ignore[attr-defined]
        return made

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
            name = key.key if isinstance(key, RemoteValue) else key
            try:
                self._client.delete(_url(self._id, name))
            except FileNotFoundError:
                raise KeyError(name) from None

    def _put(self, key: str, value: Any, node: str | None) -> RemoteValue:
        here = self._client.node if self._client.local_mountpoint is not None else None
        where = self._client.tree()
        data = serialization.serialize(value, FORMAT)
        where.store(_url(self._id, key), io.BytesIO(data), FORMAT, None if node == here else node)
        return self._value(key)

    def close(self) -> None:
        """Ends the pool; one without a name removes its keys from the nodes."""
        if self._closed:
            return
        self._closed = True
        if not self._named and self._pid == os.getpid():
            with contextlib.suppress(KitchenSinkError, OSError):
                self._client.reducetree(f"pools/{self._id}/*")
                self._client.remove_directory(f"pools/{self._id}")
        self._client.close()


_open: weakref.WeakSet[Pool] = weakref.WeakSet()


def close_all() -> None:
    """At exit: pools without a name remove their keys."""
    for pool in list(_open):
        with contextlib.suppress(Exception):
            pool.close()


def _run(function: Callable[..., Any], url: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """On the node: the call, on the values of its handles, and its result kept there."""
    values: dict[str, Any] = {}

    def value(handle: RemoteValue) -> Any:
        if handle.key not in values:
            values[handle.key] = handle.get()
        return values[handle.key]

    own_args, own_kwargs = nested.replace((args, kwargs), RemoteValue, value)
    result = function(*own_args, **own_kwargs)
    tree().store(url, io.BytesIO(serialization.serialize(result, FORMAT)), FORMAT)


def _split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The function's own keywords, and those of the call, which begin with `_`. Errors: TypeError."""
    own, _ = options.split(kwargs)
    return own, {name: value for name, value in kwargs.items() if name not in own}


def _url(pool: str, key: str) -> str:
    return data_url(f"pools/{pool}/{quote(key, safe='')}")


def _node_url(address: str | None, port: int | None) -> str | None:
    if address is None or "://" in address or address.startswith("/"):
        return address
    return f"ks://{address}" if port is None else f"ks://{address}:{port}"


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
