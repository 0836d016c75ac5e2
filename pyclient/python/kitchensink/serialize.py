"""How functions, arguments and results become bytes and come back.

Internal. Arguments and results are pickled with protocol 5; buffers over 64 KiB (arrays, data frames) travel beside the
pickle without a copy and come back writable, as they were. Plain built-in values take the C pickler, all else
cloudpickle. Modules of the client's own project travel by value (`own_modules`).
"""

from __future__ import annotations

import collections
import io
import mmap
import os
import pickle
import sys
from typing import Any, Callable

import cloudpickle

from . import own_modules, serialization
from .errors import KitchenSinkError, NotSerializable
from .protocol import INLINE_BYTES, Buffer, Malformed, Part, variant

PICKLE_PROTOCOL = 5

_PICKLES = ("cloudpickle", "pickle")

_CODE_MAGIC = b"KSF1"
"""Then the Python's major and minor version, then 1 where the function travels by value, then the pickle."""


_FILES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO)


def _reduce_file(file: Any) -> Any:
    """cloudpickle makes a `StringIO` of a text file: whoever gets it takes it for the file, and writes into nothing."""
    for stream in ("stdin", "stdout", "stderr"):
        if file is getattr(sys, stream):
            return getattr, (sys, stream)
    name = getattr(file, "name", "")
    raise NotSerializable(f"an open file ({name}) cannot be sent: send its path, or its content (f.read())")


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """cloudpickle, but for open files."""

    dispatch_table = collections.ChainMap(dict.fromkeys(_FILES, _reduce_file), cloudpickle.CloudPickler.dispatch_table)


def _cloud_dumps(value: Any, **options: Any) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file, **options).dump(value)
        return file.getvalue()


def _dump(value: Any, dumps: Callable[..., bytes]) -> list[Buffer]:
    buffers: list[Buffer] = []

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes <= INLINE_BYTES:
            return True  # inside the pickle
        buffers.append(raw)
        return False

    head = dumps(value, protocol=PICKLE_PROTOCOL, buffer_callback=out_of_band)
    return [head, *buffers]


def encode(value: Any, format: str = "cloudpickle", plain: bool = False) -> list[Buffer]:
    """A value as buffers: the pickle, then what travels beside it. `plain`: it is made of built-in types alone."""
    if format not in _PICKLES:
        data = serialization.serializer(format)(value)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"the serializer of the format {format} made a {type(data).__qualname__}, not bytes")
        return [data]
    if plain or format == "pickle":
        return _dump(value, pickle.dumps)
    with own_modules.by_value():
        return _dump(value, _cloud_dumps)


def decode(buffers: list[Buffer], format: str = "cloudpickle") -> Any:
    """The value of what `encode` made."""
    if format not in _PICKLES:
        return serialization.deserializer(format)(bytes(buffers[0]))
    return pickle.loads(buffers[0], buffers=buffers[1:])


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any], format: str, plain: bool = False) -> list[Buffer]:
    """A call's arguments as buffers. `raw` calls have one argument, bytes."""
    if format == "raw":
        if len(args) != 1 or kwargs:
            raise TypeError("a call in the format raw has one argument, bytes")
        return encode(args[0], format)
    return encode({"args": args, "kwargs": kwargs} if format == "json" else (args, kwargs), format, plain)


def decode_call(buffers: list[Buffer], format: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of what `encode_call` made."""
    value = decode(buffers, format)
    if format == "raw":
        return (value,), {}
    args, kwargs = (value["args"], value["kwargs"]) if format == "json" else value
    return tuple(args), dict(kwargs)


def _map_blob(path: bytes, size: int) -> Buffer:
    """A blob's file as a private, writable mapping: no byte is copied until it is changed, and the file never
    changes."""
    if size == 0:
        return bytearray()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)


def open_part(part: Part, frame: list[bytearray], first: bool = False) -> Buffer:
    """A part's bytes. `first`: it is only read, so it need not be writable."""
    kind, body = variant(part)
    if kind == "Inline":
        return body if first else bytearray(body)
    if kind == "Segment":
        if not 0 < body < len(frame):
            raise Malformed(f"segment {body} of a frame of {len(frame)}")
        return frame[body]
    if kind == "Blob":
        if body["path"] is None:
            raise KitchenSinkError("a payload is kept in a file that this process cannot open")
        return _map_blob(body["path"], body["size"])
    raise Malformed(f"a part of kind {kind}")


def open_payload(payload: dict[str, Any], frame: list[bytearray]) -> list[Buffer]:
    """The buffers of a payload."""
    parts = payload["parts"]
    if not parts:
        raise Malformed("a payload of no parts")
    return [open_part(part, frame, first=index == 0) for index, part in enumerate(parts)]


def encode_function(function: Any, by_value: bool) -> bytes:
    """A function's serialized form. Errors: NotSerializable."""
    try:
        with own_modules.by_value():
            pickled = _cloud_dumps(function, protocol=PICKLE_PROTOCOL)
    except Exception as error:
        raise NotSerializable(_function_culprit(function, error)) from error
    version = bytes([sys.version_info[0], sys.version_info[1], by_value])
    return _CODE_MAGIC + version + pickled


def decode_function(code: Buffer) -> Callable[..., Any]:
    """The function of what `encode_function` made. Errors: NotSerializable, where it comes from another Python or
    cannot be loaded."""
    view = memoryview(code)
    if view[:4] != _CODE_MAGIC or len(view) < 7:
        raise NotSerializable("the function's code is not in a form that this package knows")
    theirs, ours = (view[4], view[5]), sys.version_info[:2]
    both = f"the caller runs Python {theirs[0]}.{theirs[1]}, this worker Python {ours[0]}.{ours[1]}"
    if view[6] and theirs != ours:
        raise NotSerializable(
            f"{both}: a function that travels by value needs the same minor version on both (see _python)"
        )
    try:
        function: Callable[..., Any] = pickle.loads(view[7:])
    except Exception as error:
        reason = f"the function cannot be loaded: {describe(error)}"
        raise NotSerializable(f"{reason} ({both})" if theirs != ours else reason) from error
    return function


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error)
    if isinstance(error, NotSerializable):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def name_of(function: Any) -> str:
    """What people call a function."""
    inner = function
    while not hasattr(inner, "__qualname__") and hasattr(inner, "func"):
        inner = inner.func
    return str(getattr(inner, "__qualname__", None) or type(function).__name__)


def argument_culprit(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], format: str, error: BaseException
) -> str:
    """Which argument cannot be sent, for people."""
    named = [(f"argument {index}", value) for index, value in enumerate(args, 1)]
    named += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    for label, value in named if format != "raw" else ():
        reason = _why_not(value, format)
        if reason is not None:
            return f"{label} of {name} (a {type(value).__qualname__}) cannot be sent: {reason}"
    return f"the arguments of {name} cannot be sent: {describe(error)}"


def _why_not(value: Any, format: str = "cloudpickle") -> str | None:
    try:
        encode(value, format)
    except Exception as error:
        return describe(error)
    return None


def _function_culprit(function: Any, error: BaseException) -> str:
    """Which of the things that a function refers to cannot be sent, for people."""
    name = name_of(function)
    code = getattr(function, "__code__", None)
    if code is not None:
        for cell_name, cell in zip(code.co_freevars, function.__closure__ or ()):
            try:
                reason = _why_not(cell.cell_contents)
            except ValueError:
                continue
            if reason is not None:
                return f"{name} cannot be sent: its variable {cell_name!r}: {reason}"
        for global_name in code.co_names:
            value = function.__globals__.get(global_name)
            reason = None if value is function else _why_not(value)
            if reason is not None:
                return f"{name} cannot be sent: the global {global_name!r} that it uses: {reason}"
    return f"{name} cannot be sent: {describe(error)}"
