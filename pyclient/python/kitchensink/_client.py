"""`Client`: what calls functions on the nodes. `setup_client` and `client` keep one for the whole process."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from . import (
    connecting,
    decorated,
    discovery,
    functions,
    job,
    kept,
    options,
    profiled,
    profiling,
    serialization,
    settings,
    submission,
)
from .bulk import BulkMethods, JobOrId, cancelled_by_interrupt
from .client_data import DataMethods
from .errors import ConnectionLost, NotSerializable
from .job import Job
from .mapping import MapMethods
from .options import PathArgument
from .session import Reply, Session
from .submission import Function, Maker

__all__ = ["Client", "client", "setup_client"]

CONNECT_SECONDS = 10.0
"""How long making a connection may take."""
FLUSH_SECONDS = 5.0
"""How long `close` waits until the node has recorded the calls that were sent last."""

IDENTITY = "kitchensink.builtins:identity"
KEPT_AT_ONCE = 1_000
"""Values that are recorded with one question."""

_clients: weakref.WeakSet[Any] = weakref.WeakSet()


class Client(BulkMethods, MapMethods, DataMethods):
    """Calls functions on the nodes of a cluster, each where the files are that its arguments name.

    >>> from kitchensink import Client
    >>> c = Client()                                            # this machine's node
    >>> c = Client("ks://host1:6323")                           # any node; needs the cluster's key or a client key
    >>> job = c.call(head, "/ks/mylarge/dataset.h5", n=10)      # runs where that file is
    >>> c.result(job)                                           # prints are seen as they happen
    >>> c.call(f, day, _locality=["/ks/logs/2026-11-20.csv"])   # a hint, where no argument names the file
    >>> c.call(f, x, _async=False)                              # waits, and returns the result
    >>> with Client() as c:                                     # closes at the end
    ...     c.map(size, ["/ks/a.csv", "/ks/b.csv"])

    `url`: `ks://HOST[:PORT]` (`http://HOST:PORT/`, the seeds' way to write it, is the same), or the path of a node's
    control socket. None: KS_SOCKET or KS_NODE of the environment,
    else the node whose mount contains the working directory, else the first mount of this machine. `key`: the key file
    for `ks://` (KS_CLUSTER_KEY, or `~/.config/ks/cluster.key`). `queue_name`, `rpc_name` and `fmt` (`cloudpickle`,
    `pickle`, `dill`, `json`, `raw`, or one of `register_serialization`) hold for all of its calls.

    It connects when it is made (`ConnectionFailed` says what to do), and again at the next use after the connection was
    lost or the process was forked. Any number of threads may use one client. Exceptions are those of
    `kitchensink.errors`, and what the functions raise.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        rpc_name: str | None = None,
        queue_name: str | None = None,
        fmt: str = "cloudpickle",
        *,
        key: PathArgument | None = None,
        timeout: float = CONNECT_SECONDS,
    ) -> None:
        serialization.serializer(fmt)
        if url is not None and not isinstance(url, (str, os.PathLike)):
            raise TypeError(f"url takes 'ks://HOST:PORT' or the path of a node's control socket, not {url!r}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise TypeError(f"timeout takes seconds, more than 0, not {timeout!r}")
        self._given_url = None if url is None else os.fsdecode(url)
        self._key = None if key is None else os.fsdecode(key)
        self._defaults = {"_rpc_name": rpc_name, "_queue_name": queue_name}
        self._format = fmt
        self._timeout = timeout
        self._closed = False
        self._session: Session | None = None
        self._owned: weakref.WeakSet[kept.RemoteValue] = weakref.WeakSet()
        self._released = kept.Released()
        self._unlock()
        self._connected()
        _clients.add(self)

    def _unlock(self) -> None:
        self._lock = threading.RLock()
        self._forget_bulk()
        self._last_reply: Reply | None = None

    # Connection

    def _connected(self) -> Session:
        session = self._session
        if session is not None and not session.ended:
            return session
        with self._lock:
            if self._closed:
                raise ConnectionLost("the client was closed")
            if self._session is None or self._session.ended:
                self._session = self._connect()
            return self._session

    def _connect(self) -> Session:
        address = discovery.locate(self._given_url)
        key = self._key or discovery.key_path()
        session = Session(
            connecting.connect(address, key, self._timeout), address, functools.partial(connecting.again, key)
        )
        session.client = weakref.ref(self)
        return session

    def close(self) -> None:
        """Ends the connection. Jobs that were sent go on; they can be asked for again by their id. Calls of `bc` that
        were not executed are dropped."""
        self._closed = True
        session, self._session = self._session, None
        if session is None or session.ended:
            return
        kept.release_all(self, session)
        reply = self._last_reply
        if reply is not None and not reply.finished:
            with contextlib.suppress(Exception):
                session.answer(reply, "Accepted", FLUSH_SECONDS)
        session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None:
            session.retire()

    def __reduce__(self) -> Any:
        raise NotSerializable("a Client cannot be sent: functions on nodes have one of their own, kitchensink.client()")

    def __repr__(self) -> str:
        session = self._session
        if session is None or session.ended:
            return "<Client, not connected>"
        return f"<Client of node {session.hello.node} ({session.address})>"

    @property
    def node(self) -> str:
        """The name of the node that it talks to."""
        return self._connected().hello.node

    @property
    def mountpoint(self) -> str:
        """Where that node mounts the tree: paths below it are what calls are placed by."""
        return os.fsdecode(self._connected().hello.mountpoint)

    @property
    def url(self) -> str:
        """The node's address, as it was given or found."""
        return self._given_url or self._connected().address

    def clone(self, **changes: Any) -> Client:
        """Another client of the same node with the same settings, and none of its calls. `changes`: arguments of
        `Client` that are to differ."""
        chosen: dict[str, Any] = {
            "rpc_name": self._defaults["_rpc_name"],
            "queue_name": self._defaults["_queue_name"],
            "fmt": self._format,
            "key": self._key,
            "timeout": self._timeout,
        }
        chosen.update((name, value) for name, value in changes.items() if value is not None)
        return Client(self._given_url, **chosen)

    @staticmethod
    def queue(name: str, host: str | None = None) -> str:
        """What `_queue_name` takes for a queue, or for a queue of one node: `name|host`."""
        return f"{name}|{host}" if host else name

    # Calls

    def call(self, f: Function, *args: Any, **kwargs: Any) -> Any:
        """Calls `f(*args, **kwargs)` on a node that has the files which the arguments name. Returns a `Job` at once,
        or, with `_async=False`, the result.

        >>> c.call(head, "/ks/mylarge/dataset.h5", n=10)
        <Job 8f14e45fceea167a5a36dedd4bea2543 head pending>

        `f` is any function, or the name of one that the nodes have ("module:function"). Paths under the mount point
        count wherever they stand in the arguments: `str`, `bytes` or `PathLike`, also inside of lists, tuples, dicts,
        sets and dataclasses (four levels). On a node that mounts the tree elsewhere they arrive rewritten.

        A node that refuses the call says so in `result`. What cannot be sent raises `NotSerializable` here. An `async
        def` function runs to its end, in an event loop of its own, and its result is what it returns.

        Calls that a call makes (with `client()`, on its node) are cancelled when that call is cancelled, runs out of
        time or memory, or dies; those of a call that returns or raises go on.

        Keywords that begin with `_` are KitchenSink's:

        - `_async=False`: wait, and return the result. Ctrl-C cancels the call.
        - `_locality`: a path or several that the call will read, though no argument names them; or the name of a node
          that is to run it unless it is busy.
        - `_node`: run on the node of this name; `_queue_name`: in this queue (`name|node` does both); `_python`: with
          this interpreter.
        - `_timeout`: seconds it may run; then it ends as `JobTimeout`.
        - `_retries`: how often it may be run again after its worker or node died. 0: it runs at most once.
        - `_priority`: higher goes first.
        - `_data_threshold`: bytes that a node may have to fetch for it; `_no_route_data=True`: any node will do.
        - `_keep=True`: its result stays in memory on the node where it is made, and the job's result is a
          `RemoteValue`, which further calls take as an argument and run at.
        - `_profile=True`: run it under a profiler; `job.profile` and `client.profile(jobs)["profile"]` tell.
        - `_intermediate_results=False`: do not show what it prints and logs.
        - `_rpc_name`: the module, where `f` is a name without one. `_prefix`: the directory in the tree that relative
          `_locality` paths start from, and where results of `@remote` functions are saved.
        """
        kwargs, chosen = self._options(kwargs)
        session = self._connected()
        f, args, kwargs = self._arranged(f, args, kwargs, chosen)
        prepared = Maker(session, self._format).prepare(f, args, kwargs, chosen)
        if not chosen.asynchronous:
            with cancelled_by_interrupt([prepared.job]):
                submission.send_one(session, prepared)
                return prepared.job.result()
        self._last_reply = submission.send_one(session, prepared)
        session.watch()
        return prepared.job

    def _options(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], options.Options]:
        for name, value in self._defaults.items():
            if value is not None:
                kwargs.setdefault(name, value)
        return options.split(kwargs)

    def _check_profiled(self, f: Function, chosen: options.Options) -> None:
        if self._format not in ("cloudpickle", "pickle"):
            raise TypeError(f"_profile profiles calls of pickled functions, and this client's format is {self._format}")
        if chosen.fields.get("intermediate_results") is False:
            raise TypeError("_profile needs what _intermediate_results=False leaves out")
        if isinstance(f, str):
            raise TypeError(f"_profile profiles functions, not names of functions: {f!r}")

    def _arranged(
        self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: options.Options
    ) -> tuple[Function, tuple[Any, ...], dict[str, Any]]:
        """What is sent for a call: something else than the function where its results are to be kept."""
        if chosen.profile:
            self._check_profiled(f, chosen)
        if decorated.is_marked(f) and not isinstance(f, str):
            prefix = settings.prefix if chosen.prefix is None else chosen.prefix
            f, args, kwargs = decorated.run, decorated.instead(f, args, kwargs, prefix), {}
        return (profiled.run, (f, args, kwargs), {}) if chosen.profile else (f, args, kwargs)

    def scatter(self, data: Any, node: str | None = None) -> Any:
        """Puts a value into the memory of a node (this client's own, else that of this name) and returns its
        `RemoteValue`; of a list, a tuple or a dict: those of its values, in the same container. Calls that are given
        one run where it is and get the value: arrays without a copy, read-only, from memory that all of the node's
        processes share.

        >>> table = c.scatter(frame)
        >>> c.map(lambda day, table: summarise(table, day), days, itertools.repeat(table))

        The value goes when its handle goes (`del table`), with the client, or with its node (`KeyLost`).
        """
        values = list(data.values()) if isinstance(data, dict) else data if isinstance(data, (list, tuple)) else [data]
        handles = [kept.fresh(self) for _ in values]
        self._keep_values(zip((kept.KeepAs("", handle.key) for handle in handles), values), node)
        if isinstance(data, dict):
            return dict(zip(data, handles))
        return type(data)(handles) if type(data) in (list, tuple) else handles if values is data else handles[0]

    def _keep_values(self, values: Iterable[tuple[kept.KeepAs, Any]], node: str | None = None) -> None:
        """Leaves values on a node: this client's own, else that of this name."""
        session = self._connected()
        if session.keeper is None or node not in (None, session.hello.node):
            keywords = {"_node": node or session.hello.node, "_intermediate_results": False, "_queue_name": "data"}
            jobs = [self.call(IDENTITY, value, _keep=keep, **keywords) for keep, value in values]
            for one in jobs:
                one.result()
            return
        files = [(keep.message(), session.keeper.put(value)) for keep, value in values]
        for start in range(0, len(files), KEPT_AT_ONCE):
            session.ask({"Keep": {"values": files[start : start + KEPT_AT_ONCE]}}, "Done")

    def result(self, job: JobOrId, timeout: float | None = None) -> Any:
        """The result of a job, or of the job of this id; waits for it. Raises what the call raised, or TimeoutError
        after `timeout` seconds.

        >>> c.result(c.call(sum, [1, 2]))
        3
        """
        return self.job(job).result(timeout)

    def async_result(self, job: JobOrId, timeout: float | None = None) -> Any:
        """The seeds' name for `result(job)`."""
        return self.result(job, timeout)

    def job(self, job: JobOrId) -> Job:
        """The job of this id, whoever sent it: `client.job(id).result()`."""
        if isinstance(job, Job):
            return job
        session = self._connected()
        known = session.job(str(job))
        if known is not None:
            return known
        attached = Job(session, str(job), "job", self._format)
        session.adopt([attached])
        try:
            session.ask({"Attach": {"jobs": [attached.id]}}, "Accepted")
        except BaseException:
            session.forget([attached])
            raise
        return attached

    def cancel(self, jobs: JobOrId | Iterable[JobOrId]) -> list[str]:
        """Cancels a job or several: a queued one never starts, a running one is interrupted, then killed. Returns the
        ids of those that were still going; each ends as `JobCancelled`."""
        several = [jobs] if isinstance(jobs, (Job, str)) else list(jobs)
        return self._connected().cancel([str(one) for one in several])

    def cancel_all(self) -> list[str]:
        """Cancels every job of the cluster, whoever sent it. Returns the ids of those that were still going."""
        return self._connected().cancel([], all=True)

    def profile(self, jobs: Iterable[JobOrId]) -> dict[str, Any]:
        """Where the time of jobs that have ended went, in seconds, all together, and in `calls` each for itself:

        - `queued`: until a node with a free worker was there; `claiming`: until that node had the call;
        - `waiting`: for bytes of other nodes: large arguments and kept values before it ran, files while it ran;
        - `unpickling` function and arguments, `run` (`cpu`: processor time of it), `pickling` the result;
        - `returning`: the rest of what its caller waited: sending the call, and its end on the way back.

        Beside them its bytes (`bytes_local`, `bytes_fetched`), how many ran on each of the `nodes`, what `timethis`
        marked (`marks`), and `profile`: of the calls with `_profile=True` a `Profile` (pstats, and a flame graph), else
        None. Jobs that go on are left out. Errors: JobUnknown, with the first id that no job has.
        """
        several = [self.job(one) for one in jobs]
        for one in several:
            one._raise_unknown()
        return profiling.summary(several)

    # Forks

    def _after_fork(self) -> None:
        self._owned = weakref.WeakSet()
        self._released = kept.Released()
        self._session = None
        self._unlock()


_default_lock = threading.Lock()
_default: Client | None = None


def setup_client(url: str | None = None, **kwargs: Any) -> Client:
    """Makes the client that `client()` returns from now on; arguments as of `Client`.

    >>> from kitchensink import setup_client, client
    >>> setup_client("ks://host1:6323")
    >>> client().call(f, x)
    """
    global _default
    made = Client(url, **kwargs)
    with _default_lock:
        old, _default = _default, made
    settings._connected(made, url)
    if old is not None:
        old.close()
    return made


def client() -> Client:
    """The process's client: that of `setup_client`, else one for this machine's node."""
    global _default
    with _default_lock:
        if _default is None or _default._closed:
            _default = Client()
        return _default


def is_set_up() -> bool:
    """Whether there is a client of `setup_client` or `client` already."""
    return _default is not None and not _default._closed


def after_fork_in_child() -> None:
    """What a forked child does: it has none of the parent's threads, and must leave the parent's connections alone."""
    global _default_lock
    _default_lock = threading.Lock()
    functions.reset_after_fork()
    kept.reset_after_fork()
    job.reset_after_fork()
    for one in list(_clients):
        one._after_fork()


def close_all() -> None:
    """At exit: a thread must not be inside of a wait when the interpreter goes."""
    for one in list(_clients):
        with contextlib.suppress(Exception):
            one.close()
