"""Which arguments name files of the tree, and how such paths are rewritten for a node whose mount point differs.

Looked at: `RemoteData`, and `str`, `bytes` and `os.PathLike` values, absolute and under the mount point, as arguments
themselves or inside of lists, tuples, dicts (keys and values), sets and dataclasses, four levels deep, the first 10,000
values. A string that merely contains slashes is left alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Callable

from . import remote_data

DEPTH_MAX = 4
"""Containers inside containers that are looked into; the arguments themselves are at depth 0."""
VALUES_MAX = 10_000
"""Values that are looked at in one call's arguments."""
PATHS_MAX = 1_000
"""Paths of one call that are told to the node."""

_ATOMS = frozenset({int, float, bool, complex, type(None), str, bytes})
_PLAIN_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})


def is_under(path: bytes, mountpoint: bytes) -> bool:
    """Whether an absolute path is the mount point or below it."""
    return path.startswith(mountpoint) and (
        len(path) == len(mountpoint) or path[len(mountpoint)] == 0x2F or mountpoint.endswith(b"/")
    )


def as_bytes(value: Any) -> bytes | None:
    """A path-like value as the file system's bytes; None where it is none."""
    try:
        return os.fsencode(value)
    except (TypeError, UnicodeEncodeError, ValueError):
        return None
    except Exception:  # a user's __fspath__ may raise anything: then it names no file
        return None


class Found:
    """What a look through a call's arguments found."""

    __slots__ = ("paths", "plain")

    def __init__(self, paths: list[bytes], plain: bool) -> None:
        self.paths = paths
        self.plain = plain
        """Nothing but built-in atoms and containers: the quickest pickler will do."""


def find(values: Iterable[Any], mountpoint: bytes | None) -> Found:
    """The tree's paths in a call's arguments, each once, in the order they appear."""
    search = _Search(mountpoint)
    for value in values:
        search.look(value, 0)
    return Found(list(search.paths), search.plain)


class _Search:
    __slots__ = ("left", "mountpoint", "paths", "plain", "prefix")

    def __init__(self, mountpoint: bytes | None) -> None:
        self.mountpoint = mountpoint
        self.prefix = os.fsdecode(mountpoint) if mountpoint else None
        self.paths: dict[bytes, None] = {}
        self.plain = True
        self.left = VALUES_MAX

    def look(self, value: Any, depth: int) -> None:
        kind = type(value)
        self.left -= 1
        if kind is str:
            if self.prefix is not None and value.startswith(self.prefix):
                self.note(value)
        elif kind in _ATOMS:
            if kind is bytes:
                self.note(value)
        elif kind in _PLAIN_CONTAINERS:
            self.inside(kind, value, depth)
        else:
            self.plain = False
            self.other(value, depth)

    def inside(self, kind: type, value: Any, depth: int) -> None:
        if depth >= DEPTH_MAX or self.left <= 0:
            self.plain = False  # what was not looked at may be anything
            return
        for item in tuple(value):
            if self.left <= 0:
                self.plain = False
                return
            self.look(item, depth + 1)
            if kind is dict:
                self.look(value[item], depth + 1)

    def other(self, value: Any, depth: int) -> None:
        if isinstance(value, remote_data.RemoteData):
            if value.data_url is not None and self.prefix is not None:
                self.note(os.path.join(self.prefix, value.data_url))
            return
        if isinstance(value, (str, bytes, os.PathLike)):
            self.note(value)
        elif isinstance(value, (list, tuple, set, frozenset)):
            self.inside(list, value, depth)
        elif isinstance(value, dict):
            self.inside(list, [*value.keys(), *value.values()], depth)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.inside(list, list(_fields(value).values()), depth)

    def note(self, value: Any) -> None:
        if self.mountpoint is None or len(self.paths) >= PATHS_MAX:
            return
        path = as_bytes(value)
        if path is not None and is_under(path, self.mountpoint):
            self.paths[path] = None


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}


def rewrite(value: Any, old: bytes, new: bytes) -> Any:
    """`value` with the paths under mount point `old` put under `new`. Containers are changed in place where their type
    allows it: they belong to one call alone."""
    return _Rewrite(old, new).apply(value, -1)


class _Rewrite:
    __slots__ = ("left", "new", "old")

    def __init__(self, old: bytes, new: bytes) -> None:
        self.old = old.rstrip(b"/") or b"/"
        self.new = new.rstrip(b"/")
        self.left = VALUES_MAX

    def apply(self, value: Any, depth: int) -> Any:
        self.left -= 1
        kind = type(value)
        if self.left <= 0 or kind in (int, float, bool, type(None)):
            return value
        if isinstance(value, (str, bytes, PurePath)):
            return self.path(value)
        if depth >= DEPTH_MAX:
            return value
        inside = self.container(value)
        return inside(value, depth + 1) if inside else value

    def container(self, value: Any) -> Callable[[Any, int], Any] | None:
        if isinstance(value, list):
            return self.list
        if isinstance(value, tuple):
            return self.tuple
        if isinstance(value, dict):
            return self.dict
        if isinstance(value, (set, frozenset)):
            return self.set
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.dataclass
        return None

    def path(self, value: Any) -> Any:
        path = as_bytes(value)
        if path is None or not is_under(path, self.old):
            return value
        moved = self.new + path[len(self.old) :]
        if type(value) is bytes:
            return moved
        text = os.fsdecode(moved)
        if isinstance(value, PurePath) or type(value) is str:
            return type(value)(text)
        return value

    def list(self, value: list[Any], depth: int) -> Any:
        for index, item in enumerate(value):
            changed = self.apply(item, depth)
            if changed is not item:
                value[index] = changed
        return value

    def tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        changed = [self.apply(item, depth) for item in value]
        if all(new is old for new, old in zip(changed, value)):
            return value
        make: Any = getattr(type(value), "_make", type(value))
        return make(changed)

    def dict(self, value: dict[Any, Any], depth: int) -> Any:
        changed = [(self.apply(key, depth), self.apply(item, depth)) for key, item in value.items()]
        if any(new[0] is not old for new, old in zip(changed, value)):
            value.clear()
            value.update(changed)
            return value
        for key, item in changed:
            if value[key] is not item:
                value[key] = item
        return value

    def set(self, value: Any, depth: int) -> Any:
        items = list(value)
        changed = [self.apply(item, depth) for item in items]
        if all(new is old for new, old in zip(changed, items)):
            return value
        if isinstance(value, frozenset):
            return type(value)(changed)
        value.clear()
        value.update(changed)
        return value

    def dataclass(self, value: Any, depth: int) -> Any:
        for name, item in _fields(value).items():
            changed = self.apply(item, depth)
            if changed is not item:
                object.__setattr__(value, name, changed)
        return value
