"""Things of one kind inside of lists, tuples, dicts and sets: found, and replaced.

Internal. Looked at down to `DEPTH_MAX` containers inside each other. Containers are made anew only where something in
them changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, TypeVar

T = TypeVar("T")

DEPTH_MAX = 32
"""Containers inside containers that are looked into; what is deeper is left alone."""


def find(value: Any, kind: type[T], depth: int = 0) -> Iterator[T]:
    """All of this kind."""
    if isinstance(value, kind):
        yield value
    elif depth < DEPTH_MAX and isinstance(value, dict):
        for pair in value.items():
            yield from find(pair, kind, depth)
    elif depth < DEPTH_MAX and isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from find(item, kind, depth + 1)


def replace(value: Any, kind: type[T], change: Callable[[T], Any], depth: int = 0) -> Any:
    """The same value with `change(thing)` for each thing of this kind."""
    if isinstance(value, kind):
        return change(value)
    if depth >= DEPTH_MAX:
        return value
    if isinstance(value, dict):
        pairs = [(replace(k, kind, change, depth + 1), replace(v, kind, change, depth + 1)) for k, v in value.items()]
        same = all(new[0] is old[0] and new[1] is old[1] for new, old in zip(pairs, value.items()))
        return value if same else type(value)(pairs)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [replace(item, kind, change, depth + 1) for item in value]
        if all(new is old for new, old in zip(items, value)):
            return value
        make: Any = getattr(type(value), "_make", type(value))
        return make(items)
    return value
