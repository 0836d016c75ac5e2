"""Functions that every node can run by name (`kitchensink.builtins:...`), without code being sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from .errors import KitchenSinkError

__all__ = ["run_command"]

INTERRUPT_SECONDS = 2.0
"""How long an interrupted command may take to end by itself."""


def run_command(
    argv: Sequence[str],
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    shell: bool = False,
) -> int:
    """Runs a program; what it writes comes back as the call's output, as it writes. Returns its exit status, 128 and
    the signal's number where a signal ended it, 127 where there is no such program and 126 where it cannot be run, as a
    shell does.

    `argv`: the program and its arguments; with `shell`, its items are joined by spaces and given to `/bin/sh`. `cwd`:
    where it runs (the node's own directory if None). `env`: added to the worker's environment. When the call is
    cancelled, the program is interrupted (SIGINT) and, two seconds later, killed.
    """
    if not argv:
        raise KitchenSinkError("no command was given")
    command = ["/bin/sh", "-c", " ".join(argv)] if shell else list(argv)
    sys.stdout.flush()
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            stdin=subprocess.DEVNULL,
            preexec_fn=_own_signals,
        )
    except FileNotFoundError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 127
    except (PermissionError, NotADirectoryError, OSError) as error:
        print(f"{error.filename or command[0]}: {error.strerror}", file=sys.stderr)
        return 126
    try:
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    return 128 - status if status < 0 else status


def _own_signals() -> None:
    # The worker ignores or handles these; a program starts with the usual ones.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(INTERRUPT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
