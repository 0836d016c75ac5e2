"""What a call finds around it: the process's output, its directory, its environment and what signals do, put back when
a call has changed them. Looking costs a few microseconds; only what differs is touched."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import locale
import os
import signal
import sys
from typing import Any

__all__ = ["Workplace"]


# `signal.getsignal` makes an enumeration's member of what this returns, which takes ten times as long.
_handler_of = _signal.getsignal

_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGALRM,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGUSR1,
)


class Workplace:
    """Remembers how the process stands now; `restore` makes it so again.

    Imported modules, what they keep, and threads stay as calls leave them.
    """

    def __init__(self) -> None:
        self._environment = _environment().copy()
        self._umask = _umask()
        self._handlers = {number: _handler_of(number) for number in _SIGNALS}
        self._locale = locale.setlocale(locale.LC_ALL)
        self._outputs = [(number, os.dup(number), os.fstat(number)) for number in (1, 2)]
        self._streams = (sys.stdout, sys.stderr)
        self._directory = os.getcwd()

    def restore(self) -> None:
        """After a call: descriptors 1 and 2, `sys.stdout`, `sys.stderr`, the working directory, environment variables,
        the umask, signal handlers, timers and the locale."""
        self._restore_output()
        with contextlib.suppress(OSError):
            if _directory() != self._directory:
                os.chdir(self._directory)
        if _environment() != self._environment:
            self._restore_environment()
        os.umask(self._umask)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            if _handler_of(number) is not handler and handler is not None:
                signal.signal(number, handler)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)

    def _restore_environment(self) -> None:
        now = _environment()
        for name in [name for name in now if name not in self._environment]:
            del os.environb[name]
        for name, value in self._environment.items():
            if now.get(name) != value:
                os.environb[name] = value

    def _restore_output(self) -> None:
        for number, kept, before in self._outputs:
            if not _is(number, before):
                os.dup2(kept, number)
        if sys.stdout is not self._streams[0] or sys.stderr is not self._streams[1]:
            sys.stdout, sys.stderr = self._streams
        if sys.stdout.closed or sys.stderr.closed:
            self._streams = (_reopened(1, sys.stdout), _reopened(2, sys.stderr))
            sys.stdout, sys.stderr = self._streams


def _is(number: int, before: os.stat_result) -> bool:
    try:
        now = os.fstat(number)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)


def _environment() -> dict[bytes, bytes]:
    """The environment as bytes: `os.environ` itself decodes every name and value to be compared, which takes ten times
    as long."""
    return getattr(os.environ, "_data", None) or dict(os.environb)


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _reopened(number: int, stream: Any) -> Any:
    if not stream.closed:
        return stream
    return open(number, "w", buffering=1, errors="backslashreplace", closefd=False)
