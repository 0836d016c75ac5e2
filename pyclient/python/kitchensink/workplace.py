"""What a call finds around it: the process's output and its directory, put back when a call has changed them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

__all__ = ["Workplace"]


class Workplace:
    """Remembers how the process stands now; `restore` makes it so again.

    Environment variables, imported modules and threads stay as calls leave them.
    """

    def __init__(self) -> None:
        self._outputs = [(number, os.dup(number), os.fstat(number)) for number in (1, 2)]
        self._streams = (sys.stdout, sys.stderr)
        self._directory = os.getcwd()

    def restore(self) -> None:
        """After a call: descriptors 1 and 2, `sys.stdout`, `sys.stderr` and the working directory."""
        for number, kept, before in self._outputs:
            if not _is(number, before):
                os.dup2(kept, number)
        if sys.stdout is not self._streams[0] or sys.stderr is not self._streams[1]:
            sys.stdout, sys.stderr = self._streams
        if sys.stdout.closed or sys.stderr.closed:
            self._streams = (_reopened(1, sys.stdout), _reopened(2, sys.stderr))
            sys.stdout, sys.stderr = self._streams
        with contextlib.suppress(OSError):
            if _directory() != self._directory:
                os.chdir(self._directory)


def _is(number: int, before: os.stat_result) -> bool:
    try:
        now = os.fstat(number)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _reopened(number: int, stream: Any) -> Any:
    if not stream.closed:
        return stream
    return open(number, "w", buffering=1, errors="backslashreplace", closefd=False)
