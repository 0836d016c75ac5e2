"""How a connection to a node is made, and made again when it broke: to the same node, or to another of its cluster.

Internal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import __about__, _native
from .discovery import Address
from .errors import ConnectionFailed
from .protocol import VERSION, Malformed, pack, unpack, variant

HELLO_SECONDS = 10.0
"""How long a node may take to say who it is."""
AGAIN_SECONDS = 15.0
"""How long another node is looked for after a connection broke."""
AGAIN_ALONE_SECONDS = 3.0
"""How long where no other node is known: it may be started again."""
_ATTEMPT_SECONDS = 2.0
_PAUSE_SECONDS = 0.1


class Opened(NamedTuple):
    """A connection whose node has said who it is."""

    connection: Any
    hello: dict[str, Any]
    address: Address


def connect(address: Address, key: str, seconds: float) -> Any:
    """A connection, nothing said on it yet. Errors: ConnectionFailed, with what to do."""
    if address.quic is not None:
        try:
            return _native.connect_quic(address.quic, key, seconds)
        except OSError as error:
            raise ConnectionFailed(_explain_quic(address.quic, key, error)) from error
    socket = str(address.socket)
    try:
        return _native.connect_unix(socket)
    except OSError as error:
        raise ConnectionFailed(_explain_unix(socket, error)) from error


def again(key: str, address: Address, peers: Sequence[str], until: float) -> Opened | None:
    """A connection in place of one that broke: to the same node, else to one of `peers` (`host:port`). None: there was
    none by `until` (of `time.monotonic`)."""
    routes = [address, *(Address(None, peer) for peer in peers)]
    while True:
        for route in routes:
            seconds = min(_ATTEMPT_SECONDS, until - time.monotonic())
            if seconds <= 0:
                return None
            opened = _try(route, key, seconds)
            if opened is not None:
                return opened
        time.sleep(max(0.0, min(_PAUSE_SECONDS, until - time.monotonic())))


def _try(address: Address, key: str, seconds: float) -> Opened | None:
    try:
        connection = connect(address, key, seconds)
    except ConnectionFailed:
        return None
    try:
        connection.send(pack({"request": 0, "body": greeting()}))
        frame = connection.recv(seconds)
        kind, body = variant(unpack(frame[0]) if frame else "closed")
        answered, hello = variant(body["answer"]) if kind == "Reply" and body else ("", None)
        if answered == "Hello" and hello and hello["version"] == VERSION:
            return Opened(connection, hello, address)
    except (OSError, TimeoutError, Malformed, KeyError, TypeError):
        pass
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


def greeting() -> dict[str, Any]:
    """The first request on every connection."""
    return {"Hello": {"version": VERSION, "program": f"kitchensink {__about__.version}"}}


def _explain_unix(path: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        cure = "it belongs to another user: run as that user, or use ks://HOST:PORT with a key"
    elif isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        cure = "the node does not run any more; `ks mount` starts it again"
    else:
        cure = "`ks doctor` says more"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"{path}: {reason}: {cure}"


def _explain_quic(address: str, key: str, error: OSError) -> str:
    text = str(error)
    if not os.path.exists(key):
        text = (
            f"there is no key file {key}: copy the cluster's ~/.config/ks/cluster.key here, or a client key "
            "(ks key client), or set KS_CLUSTER_KEY"
        )
    return f"ks://{address}: {text}"
