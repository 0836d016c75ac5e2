"""Formats: how arguments, results and saved objects become bytes. `register_serialization` adds one.

Known from the start: `cloudpickle` (any object; what is used where nothing else is said), `pickle`, `dill` (where the
package dill is installed), `json` (calls by name from other languages) and `raw` (bytes, as they are).
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import threading
from typing import Any, Callable

import cloudpickle

from .errors import NotSerializable

__all__ = ["deserializer", "known", "register_serialization", "serializer"]

Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]

_lock = threading.Lock()


def _raw(value: Any) -> bytes:
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise TypeError(f"the format raw takes bytes, not {type(value).__qualname__}") from None


def _dill_dumps(value: Any) -> bytes:
    import dill

    return bytes(dill.dumps(value, recurse=True))


def _dill_loads(data: bytes) -> Any:
    import dill

    return dill.loads(data)


def _cloudpickle_dumps(value: Any) -> bytes:
    from . import own_modules

    with own_modules.by_value():
        return bytes(cloudpickle.dumps(value))


_formats: dict[str, tuple[Serializer, Deserializer]] = {
    "cloudpickle": (_cloudpickle_dumps, pickle.loads),
    "pickle": (pickle.dumps, pickle.loads),
    "dill": (_dill_dumps, _dill_loads),
    "json": (lambda value: json.dumps(value, allow_nan=True).encode(), json.loads),
    "raw": (_raw, bytes),
}
BUILT_IN = frozenset(_formats)
"""These cannot be replaced."""


def register_serialization(name: str, serializer: Serializer, deserializer: Deserializer) -> None:
    """Makes a format known in this process: `serializer(value)` gives bytes, `deserializer(bytes)` the value again.

    The nodes' workers must know it too: do the same in a module that the nodes serve (`ks mount --module MOD`). Errors:
    ValueError for the name of a built-in format.
    """
    if name in BUILT_IN:
        raise ValueError(f"{name} is a built-in format")
    with _lock:
        _formats[name] = (serializer, deserializer)


def known(name: str) -> bool:
    """Whether a format of this name can be used in this process."""
    return name in _formats and (name != "dill" or importlib.util.find_spec("dill") is not None)


def _find(name: str) -> tuple[Serializer, Deserializer]:
    found = _formats.get(name)
    if found is None:
        names = ", ".join(sorted(_formats))
        raise TypeError(f"no format is called {name!r} (known: {names}; register_serialization adds one)")
    if not known(name):
        raise TypeError("the format dill needs the package dill: pip install dill")
    return found


def serializer(name: str) -> Serializer:
    """What makes bytes of a value. Errors: TypeError, where no such format is known."""
    return _find(name)[0]


def deserializer(name: str) -> Deserializer:
    """What makes a value of bytes. Errors: TypeError, where no such format is known."""
    return _find(name)[1]


def serialize(value: Any, name: str) -> bytes:
    """A value as bytes. Errors: NotSerializable."""
    dumps = serializer(name)
    try:
        return dumps(value)
    except Exception as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise NotSerializable(f"a {kind} cannot be saved as {name}: {type(error).__name__}: {error}") from error


def deserialize(data: bytes, name: str) -> Any:
    """The value again. Errors: NotSerializable."""
    loads = deserializer(name)
    try:
        return loads(data)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise NotSerializable(f"{len(data)} bytes are not an object in the format {name}: {reason}") from error
