"""`RPC`: functions that nodes run by name, so that callers need no code and need not be Python.

A module that a node serves (`ks mount --module MOD`) registers them:

>>> from kitchensink.rpc import RPC
>>> rpc = RPC("analysis")
>>> @rpc.register_function
... def add(x, y):
...     return x + y

and any client calls them: `c.call("add", 1, 2, _rpc_name="analysis")`, or `c.call("analysis:add", 1, 2)`. A node with
`--registered-only` runs nothing else: not one byte of another function, or of its arguments, is unpickled there. (The
arguments of a registered function are unpickled, where they are pickled: whoever may call one must be trusted with
that.) A served module that makes no `RPC` serves the public functions that it defines.
"""

from __future__ import annotations

import importlib
import os
import types
from typing import Any, Callable

from . import builtins
from .errors import KitchenSinkError, NotRegistered

__all__ = ["RPC", "register_rpc"]

Function = Callable[..., Any]


class RPC:
    """A set of registered functions under a name, `default` where none is given."""

    def __init__(self, name: str = "default") -> None:
        self.functions: dict[str, Function] = {}
        """What is registered, by name."""
        register_rpc(self, name)

    def register_function(self, function: Function, name: str | None = None) -> Function:
        """Registers a function, under its own name where no other is given; returns it, so it is a decorator too."""
        if not callable(function):
            raise TypeError(f"a function is registered, not {function!r}")
        self.functions[name or function.__name__] = function
        return function


_spaces: dict[str, list[RPC]] = {}
_loaded: set[str] = set()


def register_rpc(rpc: RPC, name: str) -> None:
    """Makes the functions of `rpc` callable under this `_rpc_name` too (the seeds' way to name one)."""
    known = _spaces.setdefault(name, [])
    if rpc not in known:
        known.append(rpc)


def load_modules() -> None:
    """Imports the modules that this worker's node serves, each once. Errors: KitchenSinkError, if one cannot be."""
    for name in filter(None, os.environ.get("KS_MODULES", "").split(",")):
        if name not in _loaded:
            try:
                importlib.import_module(name)
            except Exception as error:
                node = os.environ.get("KS_NODE_NAME", "this node")
                reason = f"{type(error).__name__}: {error}"
                raise KitchenSinkError(f"{name}, which {node} serves, cannot be imported there: {reason}") from error
            _loaded.add(name)


def resolve(reference: str, registered_only: bool = False) -> Function:
    """The function of `space:name`: registered under the `_rpc_name` `space`, or of the module `space`. Errors:
    NotRegistered, KitchenSinkError, and what a module's import raises."""
    space, colon, name = reference.partition(":")
    if not colon or not space or not name:
        raise KitchenSinkError(f"{reference!r} names no function: it should read module:function")
    if space == builtins.__name__:
        return _built_in(name, registered_only)
    load_modules()
    for rpc in _spaces.get(space, ()):
        if name in rpc.functions:
            return rpc.functions[name]
    if registered_only:
        return _served(space, name)
    if space in _spaces or space == "default":
        raise _not_registered(reference)
    return _imported(space, name)


def _built_in(name: str, registered_only: bool) -> Function:
    refused = registered_only and name == "run_command"
    if name not in builtins.__all__ or refused:
        raise _not_registered(f"{builtins.__name__}:{name}")
    found: Function = getattr(builtins, name)
    return found


def _served(space: str, name: str) -> Function:
    """A function that a served module offers."""
    if space in os.environ.get("KS_MODULES", "").split(","):
        module = importlib.import_module(space)
        mine = [f for rpcs in _spaces.values() for rpc in rpcs for f in rpc.functions.values() if _is_of(f, space)]
        found = getattr(module, name, None) if not name.startswith("_") and "." not in name else None
        if isinstance(found, types.FunctionType) and _is_of(found, space) and (not mine or found in mine):
            return found
    raise _not_registered(f"{space}:{name}")


def _is_of(function: Function, module: str) -> bool:
    return getattr(function, "__module__", None) == module


def _imported(space: str, name: str) -> Function:
    found: Any = importlib.import_module(space)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise KitchenSinkError(f"'{space}:{name}' is no function")
    function: Function = found
    return function


def _not_registered(reference: str) -> NotRegistered:
    names = sorted(f"{space}:{name}" for space, rpcs in _spaces.items() for rpc in rpcs for name in rpc.functions)
    node = os.environ.get("KS_NODE_NAME", "this node")
    known = f"registered: {', '.join(names[:20])}" if names else "nothing is registered (ks mount --module MOD)"
    return NotRegistered(f"{reference} is not registered on {node}; {known}")


def _register_own() -> None:
    """What the seeds' `data` calls were."""
    data = RPC("data")
    data.register_function(builtins.search_path)
    data.register_function(builtins.delete_file, "delete")
    data.register_function(builtins.md5sum)


_register_own()
