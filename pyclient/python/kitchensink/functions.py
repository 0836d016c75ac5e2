"""A function's serialized form, made once and made again when what it refers to has changed.

Internal. A function that workers can import is the name of it, and never changes. Any other travels by value, with the
globals and the variables of enclosing functions that it uses. Its form is kept and used again as long as all of these
are the very same objects, and of kinds that cannot change (numbers, strings, functions, modules that workers have,
tuples of such, ...). A function that uses anything else (a list, an array, a class of your own) is serialized again at
each `call`; in bulk it is serialized once for each `map` and each `execute`, as it was when it was first given.
"""

from __future__ import annotations

import collections
import functools
import sys
import threading
import types
import weakref
from typing import Any, NamedTuple

from . import _native, own_modules, serialize

_KEPT_MAX = 512
_FINGERPRINT_MAX = 2_000
_MISSING = object()
_UNCHANGING = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), range)


class Serialized(NamedTuple):
    """A function, ready to be sent."""

    hash: bytes
    """BLAKE3, 32 bytes."""
    name: str
    code: bytes


class _Changeable(Exception):
    """The function refers to something that may change unseen."""


class _Kept(NamedTuple):
    function: Any
    """A weak reference."""
    fingerprint: list[Any]
    serialized: Serialized


def importable(thing: Any) -> bool:
    """Whether a worker can import this function or class by its name."""
    module_name, qualified = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualified, str) or own_modules.is_own(module_name):
        return False
    found: Any = sys.modules.get(module_name)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    return found is thing


class _Fingerprint:
    """The identities of all that a function's serialized form depends on."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.seen: set[int] = set()

    def add(self, thing: Any) -> None:
        self.things.append(thing)
        if len(self.things) > _FINGERPRINT_MAX:
            raise _Changeable
        if id(thing) in self.seen or isinstance(thing, _UNCHANGING) or thing is _MISSING:
            return
        self.seen.add(id(thing))
        if isinstance(thing, (tuple, frozenset)):
            for item in thing:
                self.add(item)
        elif isinstance(thing, types.FunctionType):
            if not importable(thing):
                self.function(thing)
        elif isinstance(thing, functools.partial):
            self.add(thing.func)
            self.add(thing.args)
            self.add(tuple(thing.keywords.items()))
        elif isinstance(thing, types.ModuleType):
            if own_modules.is_own(thing.__name__):
                raise _Changeable
        elif not (isinstance(thing, (type, types.BuiltinFunctionType)) and importable(thing)):
            raise _Changeable

    def function(self, function: types.FunctionType) -> None:
        self.things.append(function.__code__)
        self.add(function.__defaults__)
        self.add(tuple((function.__kwdefaults__ or {}).items()))
        self.add(tuple(vars(function).items()))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self.add(_MISSING)
        self.globals(function.__code__, function.__globals__)

    def globals(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        for name in code.co_names:
            self.add(namespace.get(name, _MISSING))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.globals(constant, namespace)


def fingerprint(function: Any) -> list[Any] | None:
    """What a function's form depends on, to be compared by identity; None: it may change unseen."""
    found = _Fingerprint()
    try:
        found.add(function)
    except _Changeable:
        return None
    # The function itself must not be kept alive by its own entry.
    return [thing for thing in found.things if thing is not function]


def _same(old: list[Any], new: list[Any]) -> bool:
    if len(old) != len(new):
        return False
    # Tuples that were put together for the fingerprint are new each time; what is in them is compared on its own.
    return all(a is b or (type(a) is tuple and type(b) is tuple and len(a) == len(b)) for a, b in zip(old, new))


_lock = threading.Lock()
_kept: collections.OrderedDict[int, _Kept] = collections.OrderedDict()


def _make(function: Any) -> Serialized:
    code = serialize.encode_function(function, by_value=not importable(function))
    return Serialized(_native.blake3(code), serialize.name_of(function), code)


def serialized(function: Any) -> Serialized:
    """The function as it is now. Errors: NotSerializable."""
    now = fingerprint(function)
    if now is None:
        return _make(function)
    key = id(function)
    with _lock:
        kept = _kept.get(key)
        if kept is not None and kept.function() is function and _same(kept.fingerprint, now):
            _kept.move_to_end(key)
            return kept.serialized
    made = _make(function)
    try:
        reference = weakref.ref(function, lambda _: _kept.pop(key, None))
    except TypeError:
        return made
    with _lock:
        _kept[key] = _Kept(reference, now, made)
        while len(_kept) > _KEPT_MAX:
            _kept.popitem(last=False)
    return made


def reset_after_fork() -> None:
    """Makes the lock anew in a forked child."""
    global _lock
    _lock = threading.Lock()
    own_modules._lock = threading.RLock()
