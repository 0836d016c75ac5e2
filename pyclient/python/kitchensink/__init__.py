"""KitchenSink: one file tree over your machines, and Python calls that run where the file is.

    from kitchensink import Client

    c = Client()                                        # this machine's node
    job = c.call(head, "/ks/mylarge/dataset.h5", n=10)  # runs on the node where that file is
    c.result(job)                                       # what it prints is seen here as it happens

`Client` has it all; `kitchensink.errors` has the exceptions.
"""

from __future__ import annotations

import atexit
import os

from . import _client
from .__about__ import version as __version__
from ._client import Client, client, setup_client
from .errors import (
    CatalogUnavailable,
    ConnectionFailed,
    ConnectionLost,
    JobCancelled,
    JobTimeout,
    JobUnknown,
    KitchenSinkError,
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
from .job import Job, Placement

__all__ = [
    "CatalogUnavailable",
    "Client",
    "ConnectionFailed",
    "ConnectionLost",
    "Job",
    "JobCancelled",
    "JobTimeout",
    "JobUnknown",
    "KitchenSinkError",
    "NodeLost",
    "NotAuthorized",
    "NotPlaceable",
    "NotRegistered",
    "NotSerializable",
    "PayloadError",
    "Placement",
    "ProtocolError",
    "RemoteError",
    "TooManyJobs",
    "WorkerCrashed",
    "__version__",
    "client",
    "setup_client",
]

atexit.register(_client.close_all)
os.register_at_fork(after_in_child=_client.after_fork_in_child)
