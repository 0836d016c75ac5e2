"""Which modules are the client's own project: they travel by value, because the workers do not have them.

Internal. Own is a module whose file is under the working directory or under the directory of the script that runs, and
not part of Python, of site-packages or of this package. Extension modules cannot travel.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cloudpickle

_lock = threading.RLock()
_PACKAGE_DIRECTORIES = ("/site-packages/", "/dist-packages/")


def _directory(path: str) -> str:
    return os.path.realpath(path).rstrip("/") + "/"


def _python_directories() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(_directory(paths[key]) for key in ("stdlib", "platstdlib") if key in paths)


_PYTHON = _python_directories()
_OURS = _directory(os.path.dirname(__file__))


def _places() -> tuple[str | None, str | None]:
    """Where this process is: its working directory and its script."""
    try:
        directory: str | None = os.getcwd()
    except OSError:
        directory = None
    return directory, getattr(sys.modules.get("__main__"), "__file__", None)


def _roots(places: tuple[str | None, str | None]) -> frozenset[str]:
    directory, script = places
    roots = [directory] if directory else []
    if script:
        roots.append(os.path.dirname(os.path.abspath(script)))
    return frozenset(map(_directory, roots))


def _file_of(module: Any) -> str | None:
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    try:
        return str(next(iter(module.__path__))) + "/"
    except Exception:  # lazy modules do anything when an attribute is asked for
        return None


def belongs(file: str, roots: frozenset[str]) -> bool:
    """Whether a module of this file is the client's own."""
    real = os.path.realpath(file)
    if real.endswith((".so", ".pyd")) or any(part in real for part in _PACKAGE_DIRECTORIES):
        return False
    if real.startswith((*_PYTHON, _OURS)):
        return False
    return any(real.startswith(root) for root in roots)


class _Known:
    """What was found in `sys.modules` so far."""

    def __init__(self) -> None:
        self.places: tuple[str | None, str | None] = (None, None)
        self.roots: frozenset[str] = frozenset()
        self.seen: set[str] = set()
        self.own: dict[str, ModuleType] = {}

    def refresh(self) -> None:
        places = _places()
        if places != self.places:
            self.places, self.roots = places, _roots(places)
            self.seen.clear()
            self.own.clear()
        if len(sys.modules) == len(self.seen):
            return
        for name, module in list(sys.modules.items()):
            if name not in self.seen:
                self.seen.add(name)
                file = None if name == "__main__" else _file_of(module)
                if file is not None and isinstance(module, ModuleType) and belongs(file, self.roots):
                    self.own[name] = module
        self.seen &= set(sys.modules)


_known = _Known()
_by_value = True


def travel_by_name() -> None:
    """For workers: what they can import, their callers can; what came by value goes back by value anyway."""
    global _by_value
    _by_value = False


def is_own(name: str | None) -> bool:
    """Whether things of the module of this name travel by value."""
    if name is None or name == "__main__":
        return True
    with _lock:
        _known.refresh()
        return name in _known.own


@contextlib.contextmanager
def by_value() -> Iterator[None]:
    """While this lasts, cloudpickle takes own modules by value. It is undone after, so that other users of cloudpickle
    in this process see no difference."""
    if not _by_value:
        yield
        return
    with _lock:
        _known.refresh()
        registered = []
        try:
            already = cloudpickle.list_registry_pickle_by_value()
            for name, module in _known.own.items():
                if name not in already and sys.modules.get(name) is module:
                    cloudpickle.register_pickle_by_value(module)
                    registered.append(module)
            yield
        finally:
            for module in registered:
                cloudpickle.unregister_pickle_by_value(module)
