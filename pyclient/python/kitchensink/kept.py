"""Values that stay on nodes: `Client.scatter`, `_keep=True` and the keys of a `Pool`. A handle (`RemoteValue`) is
small; a call that is given one runs where its value is, and gets the value.

Who takes part: a `Keeper` writes values as files of a node, in its memory tier where there is room; the node records
who holds them, and brings them to where calls use them; `Arrived` opens them in the worker. What always holds: the
bytes of a value are written once and never changed, all processes of a node map the same ones, and arrays made of them
are read-only. A value's file says all of it: `KSV1`, a salt (so that no two values share a file), how many buffers
there are, how large each is, then the buffers, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import mmap
import os
import queue
import struct
import threading
import time
import uuid
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _native, serialize
from .errors import KeyLost, KitchenSinkError, NotSerializable, PayloadError
from .protocol import Buffer, size_of

if TYPE_CHECKING:
    from ._client import Client
    from .job import Job
    from .session import Session

__all__ = ["RemoteValue"]

FORMAT = "cloudpickle"
_MAGIC = b"KSV1"
_ALIGNED_BYTES = 64
_MAPPED_MAX = 64
"""Values that a process keeps mapped for the next use."""
_FREE_SHARE = 20
"""A disk is not filled beyond one part in so many."""
_LEDGER_SECONDS = 0.05
"""How long room in memory is waited for; then the value goes to the disk."""
_FORGET_SECONDS = 10.0
_BRING_SECONDS = 3600.0
"""How long bringing a value from another node may take."""


class KeepAs(NamedTuple):
    """As what a result is kept: a `RemoteValue` with this pool and key will stand for it."""

    pool: str
    key: str
    forever: bool = False

    def message(self) -> dict[str, Any]:
        """As the node's `KeepAs`."""
        return {"id": id_of(self.pool, self.key), "group": self.pool, "name": self.key, "forever": self.forever}


def id_of(pool: str, key: str) -> str:
    """The id of a key: of what belongs to no pool, the key itself."""
    return hashlib.blake2b(f"{pool}\0{key}".encode(), digest_size=16).hexdigest() if pool else key


# Writing


def _laid_out(value: Any) -> list[Buffer]:
    """A value as the buffers of its file. Errors: NotSerializable."""
    try:
        parts = serialize.encode(value, FORMAT)
    except Exception as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise NotSerializable(f"a value (a {kind}) cannot be kept: {serialize.describe(error)}") from error
    sizes = [size_of(part) for part in parts]
    head = _MAGIC + os.urandom(16) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    buffers: list[Buffer] = [head, _padding(len(head))]
    for part, size in zip(parts, sizes):
        buffers += [part, _padding(size)]
    return buffers


def _padding(size: int) -> bytes:
    return bytes(-size % _ALIGNED_BYTES)


class Keeper:
    """Where the values of a node on this machine are written."""

    def __init__(self, memory: str | None, disk: str) -> None:
        self._memory = memory
        self._disk = disk

    def stands(self, path: bytes) -> list[bytes]:
        """Where the value of this file may stand: there, or where it has moved since."""
        tail = os.path.join(*path.split(b"/")[-2:])
        tiers = [os.fsencode(tier) for tier in (self._memory, self._disk, self._memory) if tier is not None]
        return [path, *(os.path.join(tier, tail) for tier in tiers)]

    def put(self, value: Any) -> dict[str, Any]:
        """Writes a value; the node's `KeptFile` of it. Errors: NotSerializable, PayloadError."""
        buffers = _laid_out(value)
        size = sum(map(size_of, buffers))
        if self._memory is not None and _change_ledger(self._memory, size):
            try:
                return {"hash": _native.put_value(self._memory, buffers), "size": size}
            except OSError:
                _change_ledger(self._memory, -size)
            except BaseException:
                _change_ledger(self._memory, -size)
                raise
        disk = os.statvfs(self._disk)
        if disk.f_bavail * disk.f_frsize - size < disk.f_blocks * disk.f_frsize // _FREE_SHARE:
            raise PayloadError(f"a value of {size} bytes cannot be kept: memory tier and disk are full ({self._disk})")
        try:
            return {"hash": _native.put_value(self._disk, buffers), "size": size}
        except OSError as error:
            raise PayloadError(f"a value of {size} bytes cannot be kept: {error}") from error


def keeper(memory: str | None, state_directory: str) -> Keeper | None:
    """Of the node whose state (`.ks`) is there; None where the node's user is another."""
    disk = os.path.join(state_directory, "kept")
    try:
        if os.stat(disk).st_uid != os.geteuid():
            return None
    except OSError:
        return None
    return Keeper(memory if memory and os.access(memory, os.W_OK | os.X_OK) else None, disk)


def _change_ledger(memory: str, size: int) -> bool:
    """Takes room in a memory tier, or gives it back; False: there is none (see the node's `store/memory.rs`)."""
    try:
        ledger = os.open(os.path.join(memory, "ledger"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _locked(ledger):
            return False
        used, limit = struct.unpack("<2Q", os.pread(ledger, 16, 0))
        after = max(0, used + size)
        if size > 0 and after > limit:
            return False
        os.pwrite(ledger, struct.pack("<Q", after), 0)
        return True
    except (OSError, struct.error):
        return False
    finally:
        os.close(ledger)


def _locked(ledger: int) -> bool:
    until = time.monotonic() + _LEDGER_SECONDS
    while True:
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.001)


# Reading


def _opened(path: bytes) -> list[memoryview]:
    """The buffers of a value's file, mapped. Errors: OSError, ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mapped = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)
    if mapped[:4] != _MAGIC:
        raise ValueError(f"{os.fsdecode(path)}: no kept value")
    (count,) = struct.unpack_from("<I", mapped, 20)
    sizes = struct.unpack_from(f"<{count}Q", mapped, 24)
    at = 24 + 8 * count
    buffers = []
    for size in sizes:
        at += -at % _ALIGNED_BYTES
        buffers.append(mapped[at : at + size])
        at += size
    return buffers


def _found(paths: list[bytes]) -> tuple[bytes, list[memoryview]]:
    """The first of these files that is there, and its buffers. Errors: OSError, ValueError."""
    for path in paths[:-1]:
        with contextlib.suppress(FileNotFoundError):
            return path, _opened(path)
    return paths[-1], _opened(paths[-1])


class Mapped:
    """Values that this process has mapped; the least used go first."""

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[bytes, list[memoryview]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def value(self, name: str, path: bytes, keeper: Keeper | None = None) -> Any:
        """The value of a file, made anew of the same bytes each time. Errors: KeyLost, and what unpickling it
        raises."""
        with self._lock:
            buffers = self._kept.get(path)
            if buffers is not None:
                self._kept.move_to_end(path)
        if buffers is None:
            try:
                path, buffers = _found([path] if keeper is None else keeper.stands(path))
            except (OSError, ValueError) as error:
                raise KeyLost(f"{name}: no node has its value any more: {error}") from error
            with self._lock:
                self._kept[path] = buffers
                while len(self._kept) > _MAPPED_MAX:
                    self._kept.popitem(last=False)
        return serialize.decode(list(buffers), FORMAT)

    def let_go(self) -> None:
        """Lets go of those whose files were removed: their memory is free once nobody uses their arrays."""
        with self._lock:
            for path in [path for path in self._kept if not os.path.exists(path)]:
                del self._kept[path]


_mapped = Mapped()


def let_go() -> None:
    """See `Mapped.let_go`."""
    _mapped.let_go()


class Arrived:
    """In a worker, while a call's arguments are loaded: its handles become values."""

    def __init__(self, kept: Any, keeper: Keeper | None = None) -> None:
        self._keeper = keeper
        self._paths = {value["id"]: value["path"] for value in kept}
        self._values: dict[str, Any] = {}

    def __enter__(self) -> Arrived:
        _now.arrived = self
        return self

    def __exit__(self, *error: object) -> None:
        _now.arrived = None

    def value(self, pool: str, key: str) -> Any:
        """The value of a handle; the handle itself where the call did not say that it uses it."""
        id = id_of(pool, key)
        if id not in self._paths:
            return RemoteValue(pool, key)
        if id not in self._values:
            path = self._paths[id]
            if path is None:
                raise KeyLost(f"{key}: no node has its value any more")
            self._values[id] = _mapped.value(key, path, self._keeper)
        return self._values[id]


class _Now(threading.local):
    arrived: Arrived | None = None
    noted: list[RemoteValue] | None = None


_now = _Now()


@contextlib.contextmanager
def noted() -> Any:
    """While a call's arguments are pickled: the handles among them."""
    before, _now.noted = _now.noted, []
    try:
        yield _now.noted
    finally:
        _now.noted = before


def _arrive(pool: str, key: str) -> Any:
    arrived = _now.arrived
    return RemoteValue(pool, key) if arrived is None else arrived.value(pool, key)


# Handles


class RemoteValue:
    """A value that stays on the node where it was made. `get()` brings it here; as an argument of a call, also inside
    of other arguments, it is replaced by its value on the node, and the call goes to where that is.

    What `scatter` and `_keep=True` return is kept for as long as that handle (and its client) is: when it goes, the
    value goes. A handle that was pickled is a reference and keeps nothing.
    """

    def __init__(self, pool: str, key: str, job: Job | None = None, known_client: Client | None = None) -> None:
        self.key = key
        self.id = id_of(pool, key)
        self._pool = pool
        self._job = job
        self._known_client = known_client

    def __reduce__(self) -> tuple[Any, ...]:
        if _now.noted is not None:
            _now.noted.append(self)
        return _arrive, (self._pool, self.key)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, RemoteValue) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"RemoteValue<key={self.key}, {self.status}>"

    def client(self) -> Client:
        """The client that made it, where that is; else the process's."""
        from . import _client

        known = self._known_client
        return known if known is not None and not known._closed else _client.client()

    @property
    def status(self) -> str:
        """`running`, `success` or `error`."""
        if self._job is None or self._job.finished and self._job.exception() is None:
            return "success"
        return "error" if self._job.finished else "running"

    def get(self, timeout: float | None = None) -> Any:
        """The value; waits for it. Raises what its call raised, KeyLost where no node has it any more, or TimeoutError
        once `timeout` seconds have passed. Arrays are read-only where their bytes are mapped from the node's memory."""
        if self._job is not None:
            self._job.result(timeout)
        client = self.client()
        session = client._connected()
        if session.keeper is None:
            return client.call(
                "kitchensink.builtins:identity", self, _async=False, _intermediate_results=False, _queue_name="data"
            )
        seconds = _BRING_SECONDS if timeout is None else timeout
        found = session.ask({"Kept": {"ids": [self.id]}}, "Kept", seconds)
        return _mapped.value(self.key, found[0]["path"], session.keeper)

    def obj(self) -> Any:
        """The same as `get()`."""
        return self.get()

    def delete(self) -> None:
        """Removes the value from all nodes. Errors: KeyError, where it is not there."""
        if not forget(self.client()._connected(), [self.id]):
            raise KeyError(self.key)


def forget(session: Session, ids: list[str], groups: tuple[str, ...] = ()) -> int:
    """Says that values are not needed any more; how many there were."""
    _mapped.let_go()
    answer = session.ask({"Forget": {"ids": ids, "groups": list(groups)}}, "Forgotten", _FORGET_SECONDS)
    return int(answer["count"])


def fresh(client: Client, job: Job | None = None) -> RemoteValue:
    """A handle of a new value, which goes with it."""
    return own(RemoteValue("", uuid.uuid4().hex, job, client), client)


def own(handle: RemoteValue, client: Client) -> RemoteValue:
    """Makes the value go with its handle."""
    client._owned.add(handle)
    weakref.finalize(handle, _released, client, handle.id, os.getpid()).atexit = False
    _release_thread()
    return handle


class Released:
    """Ids of a client whose handles are gone."""

    def __init__(self) -> None:
        self.ids: collections.deque[str] = collections.deque()
        self.telling = threading.Lock()
        """Held while the node is told of them."""

    def take(self) -> list[str]:
        """Those that are there, each once."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self.ids.popleft())
        return taken


def _released(client: Client, id: str, pid: int) -> None:
    # Objects are collected anywhere, under any lock: so nothing but this is done here.
    if pid == os.getpid():
        client._released.ids.append(id)
        _waiting.put(client)


_waiting: queue.SimpleQueue[Client] = queue.SimpleQueue()
"""Clients that have something to tell."""
_thread: threading.Thread | None = None
_thread_lock = threading.Lock()


def _release_thread() -> None:
    global _thread
    with _thread_lock:
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_release, name="kitchensink-release", daemon=True)
            _thread.start()


def _release() -> None:
    """Tells nodes of handles that are gone."""
    while True:
        client: Client | None = _waiting.get()
        assert client is not None
        with client._released.telling:
            ids = [] if client._closed else client._released.take()
            with contextlib.suppress(KitchenSinkError, OSError):
                if ids:
                    forget(client._connected(), ids)
        client = None  # it is not kept while this waits


def release_all(client: Client, session: Session) -> None:
    """A client is closed: what its handles hold goes, but for what its jobs still need."""
    with client._released.telling:
        ids = client._released.take()
        ids += [handle.id for handle in list(client._owned) if handle.id not in session.needed]
        if ids:
            with contextlib.suppress(KitchenSinkError, OSError):
                forget(session, ids)


def reset_after_fork() -> None:
    """A forked child has no thread, and nothing to release."""
    global _thread, _thread_lock, _waiting
    _thread, _thread_lock, _waiting = None, threading.Lock(), queue.SimpleQueue()
    _mapped._lock = threading.Lock()
