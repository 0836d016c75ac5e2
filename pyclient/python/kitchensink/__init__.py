"""KitchenSink: one file tree over your machines, and Python calls that run where the file is.

    from kitchensink import Client

    c = Client()                                        # this machine's node
    job = c.call(head, "/ks/mylarge/dataset.h5", n=10)  # runs on the node where that file is
    c.result(job)                                       # what it prints is seen here as it happens

`Client` has it all, `RemoteData` is a file of the tree as an object; `kitchensink.errors` has the exceptions.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Any

from . import _client, pool
from .__about__ import version as __version__
from ._client import Client, client, setup_client
from .errors import (
    CatalogUnavailable,
    ConnectionFailed,
    ConnectionLost,
    JobCancelled,
    JobTimeout,
    JobUnknown,
    KeyLost,
    KitchenSinkError,
    NestedTooDeep,
    NodeLost,
    NotAuthorized,
    NotPlaceable,
    NotRegistered,
    NotSerializable,
    PayloadError,
    ProtocolError,
    RemoteError,
    TooManyJobs,
    WorkerCrashed,
)
from .executor import Executor
from .job import Job, Placement
from .pool import Pool
from .remote_data import RemoteData, do, dp, dr, du
from .rpc import RPC
from .serialization import register_serialization
from .utils.decorators import memoize, remote

if TYPE_CHECKING:
    from .aio import AsyncClient

__all__ = [
    "AsyncClient",
    "CatalogUnavailable",
    "Client",
    "ConnectionFailed",
    "ConnectionLost",
    "Executor",
    "Job",
    "JobCancelled",
    "JobTimeout",
    "JobUnknown",
    "KeyLost",
    "KitchenSinkError",
    "NestedTooDeep",
    "NodeLost",
    "NotAuthorized",
    "NotPlaceable",
    "NotRegistered",
    "NotSerializable",
    "PayloadError",
    "Placement",
    "Pool",
    "ProtocolError",
    "RPC",
    "RemoteData",
    "RemoteError",
    "TooManyJobs",
    "WorkerCrashed",
    "__version__",
    "client",
    "do",
    "dp",
    "dr",
    "du",
    "memoize",
    "register_serialization",
    "remote",
    "setup_client",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":  # asyncio takes its time to import, and workers need none of it
        from .aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext kitchensink` in IPython and Jupyter: makes the magic `%%ks` known."""
    from . import magics

    magics.register(shell)


atexit.register(_client.close_all)
atexit.register(pool.close_all)
os.register_at_fork(after_in_child=_client.after_fork_in_child)
