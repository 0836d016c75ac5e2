"""Functions that every node can run by name (`kitchensink.builtins:...`), without code being sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import KitchenSinkError
from .tree import FORMAT_ATTRIBUTE, data_url, format_of, fresh_file, listing, search, status, worker_mountpoint

__all__ = [
    "begin_file",
    "delete_directory",
    "delete_file",
    "drop_here",
    "end_file",
    "fetch_here",
    "file_format",
    "file_size",
    "file_status",
    "identity",
    "list_directory",
    "make_directory",
    "md5sum",
    "move_file",
    "read_file",
    "run_command",
    "search_path",
    "store_file",
    "write_file",
]

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


def identity(value: Any) -> Any:
    """Its argument: brings a kept value to its caller, and, with `_keep`, leaves a value on a node."""
    return value


# Files of the tree, for clients that have no mount. Each is named by its data url and stays below the mount point.


def _local(url: str) -> str:
    mountpoint = worker_mountpoint()
    if mountpoint is None:
        raise KitchenSinkError("this runs on nodes only")
    return os.path.join(mountpoint, data_url(url))


def search_path(pattern: str) -> list[str]:
    """The data urls that match, sorted; `*` stands for any characters."""
    mountpoint = worker_mountpoint()
    if mountpoint is None:
        raise KitchenSinkError("this runs on nodes only")
    return search(mountpoint, pattern)


def file_size(url: str) -> int:
    """Bytes of a file."""
    return os.stat(_local(url)).st_size


def file_format(url: str) -> str | None:
    """How the object in a file was serialized; None: it is not known to be one."""
    return format_of(_local(url))


def file_status(url: str) -> dict[str, Any]:
    """What `stat` says of a path: `size`, `type` (`file` or `directory`), `mtime`."""
    return status(data_path(url))


def list_directory(url: str) -> dict[str, dict[str, Any]]:
    """What is in a directory: name -> `size`, `type`, `mtime`."""
    return listing(data_path(url))


def data_path(url: str) -> str:
    """The path of a data url on this node; of the tree's root, for an empty one."""
    mountpoint = worker_mountpoint()
    if mountpoint is None:
        raise KitchenSinkError("this runs on nodes only")
    return _local(url) if url.strip("/") else mountpoint


def read_file(url: str, offset: int, length: int) -> bytes:
    """Bytes of a file."""
    with open(_local(url), "rb") as file:
        file.seek(offset)
        return file.read(length)


def store_file(url: str, data: bytes, format: str | None = None) -> None:
    """Makes (or replaces) a file, whole."""
    with fresh_file(_local(url), format) as file:
        file.write(data)


def begin_file(url: str, data: bytes) -> dict[str, Any]:
    """Begins a file that comes in pieces. Its name until it is whole, and the node that has it."""
    directory, name = os.path.split(data_url(url))
    part = os.path.join(directory, f".{name}.{uuid.uuid4().hex[:12]}.part")
    path = _local(part)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
    return {"path": part, "node": os.environ.get("KS_NODE_NAME", "")}


def write_file(part: str, offset: int, data: bytes) -> None:
    """The next piece."""
    with open(_local(part), "r+b") as file:
        file.seek(offset)
        file.write(data)


def end_file(part: str, url: str, format: str | None = None) -> None:
    """The file is whole and takes its place."""
    path = _local(part)
    if format is not None:
        with contextlib.suppress(OSError):
            os.setxattr(path, FORMAT_ATTRIBUTE, format.encode())
    os.replace(path, _local(url))


def delete_file(url: str) -> None:
    """Removes a file from the tree."""
    os.unlink(_local(url))


def make_directory(url: str, exist_ok: bool = True) -> None:
    """Makes a directory, and those above it."""
    os.makedirs(_local(url), exist_ok=exist_ok)


def delete_directory(url: str) -> None:
    """Removes an empty directory."""
    os.rmdir(_local(url))


def move_file(old: str, new: str) -> None:
    """Gives a file or a directory another name."""
    target = _local(new)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(_local(old), target)


def fetch_here(url: str) -> None:
    """Brings a file to the node that runs this."""
    from ._client import client

    client().fetch(_local(url))


def drop_here(url: str) -> None:
    """Gives up the copy of the node that runs this. Errors: KitchenSinkError."""
    from ._client import client

    session = client()._connected()
    for row in session.ask({"Drop": {"paths": [os.fsencode(_local(url))]}}, "Report"):
        if not row["ok"]:
            raise KitchenSinkError(f"{url}: {row['error']}")


def md5sum(url: str) -> str:
    """MD5 of a file, hexadecimal: computed once for each version of it, by a node that has it whole."""
    try:
        return os.getxattr(_local(url), "user.ks.md5").decode()
    except OSError:
        pass  # not mounted, or it takes long: read here
    digest = hashlib.md5(usedforsecurity=False)
    with open(_local(url), "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()
