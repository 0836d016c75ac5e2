"""Where this process is, under the seeds' names: `from kitchensink import settings`.

In a worker it knows the node that it works for: `is_server` is True, and `host_name` and `host_url` name the node. In a
client it knows what `setup_client` was given.

>>> def where():
...     from kitchensink import settings
...     return settings.host_name
>>> client().call(where, _async=False)
'host2'
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._client import Client

__all__ = [
    "client",
    "data_rpc_url",
    "datadir",
    "host_name",
    "host_url",
    "is_server",
    "mountpoint",
    "prefix",
    "rpc_url",
    "setup_client",
]

is_server: bool = bool(os.environ.get("KS_WORKER"))
"""Whether this process is a worker."""


def _url(address: str | None) -> str | None:
    return None if not address else f"http://{address.split('://')[-1].rstrip('/')}/"


host_name: str | None = os.environ.get("KS_NODE_NAME") if is_server else None
"""The node: the one that a worker works for, or the one that the client of `setup_client` talks to."""
host_url: str | None = _url(os.environ.get("KS_NODE_URL")) if is_server else None
"""How a worker's node is reached (`http://HOST:PORT/`)."""
rpc_url: str | None = host_url
"""The node that calls are sent to: what `setup_client` was given."""
data_rpc_url: str | None = host_url
"""The node that remote data is asked of; the same."""
datadir: str | None = os.environ.get("KS_DATADIR") if is_server else None
"""A worker's node's own files."""
mountpoint: str | None = os.environ.get("KS_MOUNTPOINT") if is_server else None
"""Where a worker's node mounts the tree."""
prefix: str = ""
"""What data urls of results that `@remote` functions save begin with, where no `_prefix` says otherwise."""


def setup_client(url: str | None = None, **keywords: Any) -> Client:
    """Makes the client that `client()` returns from now on; see `kitchensink.setup_client`."""
    from . import _client

    return _client.setup_client(url, **keywords)


def client(rpc_name: str | None = None, queue_name: str | None = None, fmt: str = "cloudpickle") -> Client:
    """The process's client; with any argument, a client of its own for the same node, with these settings."""
    from . import _client

    known = _client.client()
    if rpc_name is None and queue_name is None and fmt == "cloudpickle":
        return known
    return known.clone(rpc_name=rpc_name, queue_name=queue_name, fmt=fmt)


def _connected(made: Client, url: str | None) -> None:
    """`setup_client` has made a client."""
    global rpc_url, data_rpc_url, host_name
    if is_server:
        return
    rpc_url = data_rpc_url = url or made.url
    host_name = made.node
