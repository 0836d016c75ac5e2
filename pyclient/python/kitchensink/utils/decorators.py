"""`remote` and `memoize`: how a function's results are kept."""

from __future__ import annotations

import functools
from typing import Any, Callable, TypeVar

from ..remote_data import RemoteData, do

__all__ = ["memoize", "remote"]

F = TypeVar("F", bound=Callable[..., Any])


def memoize(function: F) -> F:
    """A function whose results are kept in the tree, under `memoize/`: called again through a client, anyone's, with
    the same arguments, it is not run again. `f.ks_memoize = True` does the same. Called directly it is the function
    that it was: it runs, and nothing is kept.

    >>> @memoize
    ... def slow(path):
    ...     ...
    >>> c.call(slow, "/ks/a.csv")

    The same function is one with the same code. Files that it reads are not looked at: `c.reducetree("memoize/*")`
    forgets everything.
    """
    function.ks_memoize = True  # type: ignore[attr-defined]
    return function


def remote(function: Callable[..., Any]) -> Callable[..., RemoteData]:
    """A function that works on plain values, here as on a node, and whose result is remote data: arguments that are
    `RemoteData` come as their objects (as local paths, where they are files of other kinds). Called on a node, its
    result is saved there, below the call's `_prefix`.

    >>> @remote
    ... def double(frame):
    ...     return do(2 * frame)
    >>> double(frame).obj()                                      # here
    >>> c.call(double, du("frames/1"), _prefix="doubled").result().obj()   # there
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> RemoteData:
        result = function(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})
        return result if isinstance(result, RemoteData) else do(result)

    wrapper.ks_remote = True  # type: ignore[attr-defined]
    return wrapper


def _plain(value: Any) -> Any:
    if not isinstance(value, RemoteData):
        return value
    return value.obj() if value.is_object() else value.local_path()
