"""Large payloads of a process on the node's own machine: written straight to where the node keeps payload files, and
named in the message by their hash. So they cross no socket, and what is there already is not written again.

Internal.
"""

from __future__ import annotations

import contextlib
import os

from . import _native
from .protocol import Buffer, Part, size_of

BLOB_BYTES = 1024 * 1024
"""Buffers of this size and more are put into files; smaller ones are quicker through the socket."""
_FREE_SHARE = 20
"""A disk is not filled beyond one part in so many: there the node decides, which has more to go by."""


class Blobs:
    """A node's directory of payload files."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def keep(self, buffers: list[Buffer]) -> list[Buffer | Part]:
        """The buffers, the large ones of them replaced by parts that name their files. One for which there is no room
        stays what it is."""
        return [self._keep(buffer) if size_of(buffer) >= BLOB_BYTES else buffer for buffer in buffers]

    def _keep(self, buffer: Buffer) -> Buffer | Part:
        size = size_of(buffer)
        with contextlib.suppress(OSError):
            if self._has_room(size):
                return {"Blob": {"hash": _native.put_blob(self._directory, buffer), "size": size, "path": None}}
        return buffer

    def _has_room(self, size: int) -> bool:
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize - size > disk.f_blocks * disk.f_frsize // _FREE_SHARE


def below(state_directory: str) -> Blobs | None:
    """Those of the node whose state (`.ks`) is there; None where the node's user is another: the node could not read
    what this process writes."""
    directory = os.path.join(state_directory, "blobs")
    try:
        ours = os.stat(directory).st_uid == os.geteuid()
    except OSError:
        return None
    return Blobs(directory) if ours and os.access(directory, os.W_OK | os.X_OK) else None
