"""Calls of functions that `@remote` or `@memoize` marked: what their client sends instead, and what runs on the node.

Internal. Functions without such a mark are left alone.
"""

from __future__ import annotations

from typing import Any, Callable

from . import _native, functions, serialize
from .errors import NotSerializable
from .remote_data import RemoteData, do, du


def is_marked(function: Any) -> bool:
    """Whether results of this function are kept."""
    return bool(getattr(function, "ks_remote", False) or getattr(function, "ks_memoize", False))


def instead(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str
) -> tuple[Any, ...]:
    """The arguments of `run` for a call of a marked function. Errors: NotSerializable."""
    key = _key(function, args, kwargs) if getattr(function, "ks_memoize", False) else None
    return function, key, prefix, args, kwargs


def _key(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    code = functions.serialized(function)
    try:
        buffers = serialize.encode((args, sorted(kwargs.items())))
    except Exception as error:
        reason = serialize.argument_culprit(code.name, args, kwargs, "cloudpickle", error)
        raise NotSerializable(reason) from error
    return _native.blake3(b"".join([code.hash, *map(bytes, buffers)])).hex()


def run(
    function: Callable[..., Any], key: str | None, prefix: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """On the node: the kept result, else that of the function, which is kept."""
    kept = None if key is None else f"memoize/{key}"
    if kept is not None:
        try:
            return du(kept).obj()
        except FileNotFoundError:
            pass
    result = function(*args, **kwargs)
    if isinstance(result, RemoteData) and result.data_url is None and getattr(function, "ks_remote", False):
        result.save(prefix=prefix)
    if kept is not None:
        do(result).save(url=kept)
    return result
