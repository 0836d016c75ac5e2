"""Calls on their way to a node: made ready where they are written (so what cannot be sent is said there), sent alone or
in batches.

Internal.
"""

from __future__ import annotations

import collections
import os
import time
import uuid
from collections.abc import Iterable
from typing import Any, Callable, Union

from . import decorated, functions, kept, paths, profiled, serialize, texts, waiting
from .blobs import BLOB_BYTES
from .errors import NotSerializable
from .functions import Serialized
from .job import Job
from .options import Options
from .protocol import INLINE_BYTES, SEGMENTS_MAX, Buffer, pack, packed_array_head, place_part, place_payload, size_of
from .session import ACCEPT_SECONDS, Reply, Session

BATCH_CALLS = 500
"""Calls of one frame."""
BATCH_BYTES = 4 * 1024 * 1024
"""Bytes of one frame, from where on no call is added to it."""
BATCHES_AHEAD = 4
"""Batches that may be under way before the node has accepted the first of them."""

Function = Union[Callable[..., Any], str]


class Prepared:
    """A call that can be sent."""

    __slots__ = ("buffers", "call", "function", "job", "size")

    def __init__(
        self,
        job: Job,
        call: bytes | dict[str, Any],
        function: Serialized | None,
        buffers: list[Buffer] | None,
    ) -> None:
        self.job = job
        self.call = call
        """Packed, where no segment belongs to it; else its fields without `args`."""
        self.function = function
        self.buffers = buffers
        self.size = len(call) if isinstance(call, bytes) else sum(map(size_of, buffers or ()))


def function_reference(function: Function, options: Options) -> str:
    """The name of a function that the nodes know: `module:qualified.name`, or `rpc:name` of a registered one.
    `_rpc_name` says the first half where the name does not."""
    name = str(function)
    if not name.strip(":"):
        raise TypeError(f"{name!r} names no function: write 'module:function', or the name of a registered one")
    return name if ":" in name else f"{options.rpc_name or 'default'}:{name}"


class Maker:
    """Makes calls ready for one session. `shared` holds functions that are to be serialized once for many calls."""

    def __init__(self, session: Session, format: str, shared: dict[int, tuple[Any, Serialized]] | None = None) -> None:
        self._session = session
        self._format = format
        self._mountpoint = session.hello.mountpoint or None
        self._shared = shared

    def function(self, function: Function, options: Options) -> tuple[dict[str, Any], Serialized | None]:
        """The `FunctionRef`, and what must be sent for it."""
        if isinstance(function, str):
            return {"Name": function_reference(function, options)}, None
        if not callable(function):
            raise TypeError(f"a function is called, not {function!r}")
        known = self._shared.get(id(function)) if self._shared is not None else None
        serialized = known[1] if known else functions.serialized(function)
        if self._shared is not None and known is None:
            self._shared[id(function)] = (function, serialized)
        return {"Hash": serialized.hash}, serialized

    def prepare(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Prepared:
        """A call, ready. Errors: NotSerializable."""
        reference, serialized = self.function(function, options)
        name = serialized.name if serialized else next(iter(reference.values()))
        called, called_args = function, args
        if called is profiled.run:
            called, called_args = args[0], args[1]
            name = serialize.name_of(called)
        if called is decorated.run:
            name = serialize.name_of(called_args[0])
        found = paths.find((*args, *kwargs.values()) if kwargs else args, self._mountpoint)
        if found.plain:
            handles: list[kept.RemoteValue] = []
            buffers = self._encode(name, args, kwargs, True)
        else:
            with kept.noted() as handles:
                buffers = self._encode(name, args, kwargs, False)
        job = Job(self._session, os.urandom(16).hex(), name, self._format)
        call: dict[str, Any] = {"job": job.id, "name": name, "function": reference, "format": self._format}
        if found.paths or options.locality:
            call["paths"] = found.paths
            call["locality"] = self._hints(options)
            call["mountpoint"] = self._mountpoint
        elif args or kwargs:
            found_texts = texts.find(args, kwargs)
            if found_texts:
                call["texts"] = found_texts
        call.update(options.fields)
        least = waiting.priority()
        if least is not None:
            call["priority"] = max(least, call.get("priority", least))
            call["outer"] = waiting.outer()
        if handles:
            job._uses = tuple(handles)
            call["kept"] = [{"id": id} for id in dict.fromkeys(handle.id for handle in handles)]
        if options.keep:
            self._keep(job, call, options.keep)
        if self._session.blobs is not None and any(size_of(buffer) >= BLOB_BYTES for buffer in buffers):
            buffers = self._session.blobs.keep(buffers)
        if all(size_of(buffer) <= INLINE_BYTES for buffer in buffers):
            call["args"] = place_payload(buffers, [])
            return Prepared(job, pack(call), serialized, None)
        return Prepared(job, call, serialized, buffers)

    def _keep(self, job: Job, call: dict[str, Any], keep: kept.KeepAs | bool) -> None:
        if self._format not in ("cloudpickle", "pickle"):
            raise TypeError(f"_keep keeps pickled values, and this client's format is {self._format}")
        if isinstance(keep, bool):
            keep = kept.KeepAs("", uuid.uuid4().hex)
            job._keeps = True
        call["keep"] = keep.message()

    def _encode(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], plain: bool) -> list[Buffer]:
        try:
            return serialize.encode_call(args, kwargs, self._format, plain)
        except Exception as error:
            raise NotSerializable(serialize.argument_culprit(name, args, kwargs, self._format, error)) from error

    def _hints(self, options: Options) -> list[bytes]:
        base = os.path.join(self._mountpoint or b"/", os.fsencode(options.prefix or ""))
        return [os.path.join(base, hint) for hint in options.locality]


class _Frame:
    """A `Submit` in the making."""

    def __init__(self) -> None:
        self.prepared: list[Prepared] = []
        self.segments = 0
        self.size = 0

    def fits(self, prepared: Prepared) -> bool:
        if not self.prepared:
            return True
        room = self.segments + len(prepared.buffers or ()) < SEGMENTS_MAX - BATCH_CALLS - 1
        return room and len(self.prepared) < BATCH_CALLS and self.size < BATCH_BYTES

    def add(self, prepared: Prepared) -> None:
        self.prepared.append(prepared)
        self.segments += len(prepared.buffers or ())
        self.size += prepared.size

    def body(self, known: set[bytes]) -> tuple[bytes, list[Buffer], set[bytes]]:
        """The packed request body, its segments, and the hashes of the functions that it brings."""
        segments: list[Buffer] = []
        fresh: dict[bytes, Serialized] = {}
        for prepared in self.prepared:
            if prepared.function is not None and prepared.function.hash not in known:
                fresh[prepared.function.hash] = prepared.function
        codes = [{"hash": f.hash, "name": f.name, "code": place_part(f.code, segments)} for f in fresh.values()]
        calls = [self._call(prepared, segments) for prepared in self.prepared]
        head = b"\x81\xa6Submit\x82\xa9functions" + pack(codes) + b"\xa5calls" + packed_array_head(len(calls))
        return head + b"".join(calls), segments, set(fresh)

    @staticmethod
    def _call(prepared: Prepared, segments: list[Buffer]) -> bytes:
        if isinstance(prepared.call, bytes):
            return prepared.call
        return pack({**prepared.call, "args": place_payload(prepared.buffers or [], segments)})


def _send(session: Session, frame: _Frame) -> Reply:
    jobs = [prepared.job for prepared in frame.prepared]
    session.adopt(jobs)
    reply = Reply(job.id for job in jobs)
    try:
        with session.submitting:
            body, segments, fresh = frame.body(session.sent_functions)
            now = time.monotonic()
            for job in jobs:
                job._clock = now
            session.send_packed(body, reply, segments)
            session.sent_functions |= fresh
    except BaseException:
        session.forget(jobs)
        raise
    return reply


def send_one(session: Session, prepared: Prepared) -> Reply:
    """Sends one call, without waiting for the node's word. A refusal ends the job."""
    frame = _Frame()
    frame.add(prepared)
    return _send(session, frame)


def send_all(session: Session, calls: Iterable[Prepared]) -> None:
    """Sends calls in batches and waits until the node has recorded all of them. Errors: what the node refuses them
    with."""
    under_way: collections.deque[Reply] = collections.deque()
    session.watch()  # results that come meanwhile must be taken, or the node could not go on taking calls

    def flush(frame: _Frame) -> None:
        under_way.append(_send(session, frame))
        while len(under_way) >= BATCHES_AHEAD:
            session.answer(under_way.popleft(), "Accepted", ACCEPT_SECONDS)

    frame = _Frame()
    for prepared in calls:
        if not frame.fits(prepared):
            flush(frame)
            frame = _Frame()
        frame.add(prepared)
    if frame.prepared:
        flush(frame)
    while under_way:
        session.answer(under_way.popleft(), "Accepted", ACCEPT_SECONDS)
