"""Which node to talk to: this machine's, found in the kernel's mount table, or the one that was named."""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from .errors import ConnectionFailed
from .tree import worker_mountpoint

PORT = 6323
"""Where a node listens unless it is told otherwise."""
_FS_TYPE = "fuse.ks"
_SOURCE = "ks:"


class Mount(NamedTuple):
    """A mounted tree on this machine."""

    mountpoint: str
    socket: str


class Address(NamedTuple):
    """Where a node is: one of the two is set."""

    socket: str | None
    """Path of its control socket."""
    quic: str | None
    """`host:port`."""

    def __str__(self) -> str:
        return self.socket if self.socket is not None else f"ks://{self.quic}"


def unescape(field: str) -> str:
    r"""A field of mountinfo: the kernel writes space, tab, newline and backslash as `\040` and the like."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), field)


def mounts(table: str) -> list[Mount]:
    """The trees in a mountinfo table, in its order."""
    found = []
    for line in table.splitlines():
        before, dash, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or len(rest) < 2 or rest[0] != _FS_TYPE:
            continue
        source = unescape(rest[1])
        if source.startswith(_SOURCE):
            found.append(Mount(unescape(fields[4]), source[len(_SOURCE) :]))
    return found


def choose(found: list[Mount], directory: str) -> Mount | None:
    """The tree that contains `directory` (the innermost), else the first."""
    inside = [m for m in found if directory == m.mountpoint or directory.startswith(m.mountpoint.rstrip("/") + "/")]
    if inside:
        return max(inside, key=lambda mount: len(mount.mountpoint))
    return found[0] if found else None


def parse(url: str) -> Address:
    """A node's address from `ks://host[:port]`, `http://host[:port]/` (the same: the seeds wrote it so), `unix:///path`
    or a path. Errors: ConnectionFailed."""
    if url.startswith("/"):
        return Address(url, None)
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return Address(parts.path, None)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("ks", "http", "https") or not host:
        raise ConnectionFailed(
            f"{url!r}: not a node's address; write ks://HOST:PORT, or the path of its control socket"
        )
    name = f"[{host}]" if ":" in host else host
    return Address(None, f"{name}:{port or PORT}")


def locate(url: str | None = None) -> Address:
    """The address of the node that is meant: `url`, else KS_SOCKET, else KS_NODE, else this machine's. Errors:
    ConnectionFailed."""
    named = url or os.environ.get("KS_SOCKET") or os.environ.get("KS_NODE")
    if named:
        return parse(named)
    # Any byte may stand in a path; one that is not UTF-8 must survive.
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        found = mounts(table.read())
    directory = worker_mountpoint()  # a worker's client talks to the worker's own node
    if directory is None:
        try:
            directory = os.getcwd()
        except OSError:
            directory = "/"
    mount = choose(found, directory)
    if mount is None:
        raise ConnectionFailed(
            "no node runs on this machine: start one (ks mount /ks --datadir DIR), or name another "
            "(Client('ks://HOST:6323'), or KS_NODE)"
        )
    return Address(mount.socket, None)


def key_path() -> str:
    """The cluster's key: KS_CLUSTER_KEY, else `~/.config/ks/cluster.key`."""
    return os.environ.get("KS_CLUSTER_KEY") or os.path.expanduser("~/.config/ks/cluster.key")
