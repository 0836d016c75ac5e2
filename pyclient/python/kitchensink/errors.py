"""Every exception that KitchenSink itself raises: one tree, and the one place where a node's words become exceptions.

What a call's own code raises is not here: it is raised again, with its own type, where the result is asked for (see
`RemoteError` for when that cannot be).
"""

from __future__ import annotations

import concurrent.futures
import sys
from typing import Any

__all__ = [
    "CatalogUnavailable",
    "ConnectionFailed",
    "ConnectionLost",
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
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "TooManyJobs",
    "WorkerCrashed",
    "WorkerMemoryExceeded",
]


if sys.version_info >= (3, 11):
    Late = TimeoutError
else:

    class Late(concurrent.futures.TimeoutError, TimeoutError):
        """A wait's `timeout` has passed: the built-in TimeoutError, and that of concurrent.futures, which were two."""


class KitchenSinkError(Exception):
    """What all of KitchenSink's own exceptions are. `except KitchenSinkError` catches them, and nothing that your
    functions raise.

    Exceptions of a call also say where it ran, once that is known: `ks_node` (the node's name), `ks_pid` (the worker's
    process) and `ks_job` (the job's id). The exceptions your own functions raise get the same three attributes.
    """

    ks_node: str | None = None
    ks_pid: int | None = None
    ks_job: str | None = None


class ConnectionFailed(KitchenSinkError, ConnectionError):
    """No connection to a node could be made: none runs here, the key is wrong, nobody answers. The message says what to
    do."""


class ConnectionLost(KitchenSinkError, ConnectionError):
    """The connection to the node ended. Jobs that were accepted go on; `client.result(job.id)` on a new connection
    finds them."""


class NotSerializable(KitchenSinkError, TypeError):
    """A function, an argument or a result cannot be sent. For functions and arguments it is raised at the call, before
    anything is sent; the message names the culprit and why."""


class NestedTooDeep(KitchenSinkError):
    """A call was to wait for a call that it made itself, and as many calls of its node as may (`--max-nested`) do so
    already. The inner call goes on."""


class NotPlaceable(KitchenSinkError):
    """No node may run the call: an unknown `_node` or `_queue_name`, a path that does not exist, too much data to fetch
    everywhere."""


class NotAuthorized(KitchenSinkError, PermissionError):
    """This client's key does not allow it."""


class NotRegistered(NotAuthorized):
    """The node runs registered functions only, and this is none."""


class CatalogUnavailable(KitchenSinkError):
    """The cluster's catalog (its Redis) does not answer; nothing was done. Try again, or see `ks doctor`."""


class TooManyJobs(KitchenSinkError):
    """The node takes no more jobs for now: as many go on as the cluster takes (`--max-queued`), or Redis has no memory
    left, and for 20 s too few ended. Ask for results first, or cancel some."""


class PayloadError(KitchenSinkError):
    """Arguments or a result could not be kept or brought: a full disk, or the node that had them is gone."""


class ProtocolError(KitchenSinkError):
    """The node did not understand this client: the two are of different releases."""


class WorkerCrashed(KitchenSinkError):
    """The worker process died in the middle of the call (segmentation fault, `os._exit`, out of memory), or the call
    ended with `sys.exit`. It was not run again."""

    signal: int | None
    """The signal that killed it, or None."""
    exit_code: int | None
    """Its exit status, or None."""
    stack: str | None
    """The last Python stack of its threads, where it could still be written."""

    def __init__(
        self,
        message: str,
        signal: int | None = None,
        exit_code: int | None = None,
        stack: str | None = None,
    ) -> None:
        super().__init__(message, signal, exit_code, stack)
        self.message = message
        self.signal = signal
        self.exit_code = exit_code
        self.stack = stack

    def __str__(self) -> str:
        return f"{self.message}\n{self.stack}" if self.stack else self.message


class WorkerMemoryExceeded(WorkerCrashed):
    """The worker grew beyond the node's `--worker-memory-limit` and was ended; the message has both sizes."""


class JobTimeout(KitchenSinkError, TimeoutError):
    """The call ran longer than its `_timeout` and was ended. (A `timeout` of `result` that passes is a plain
    TimeoutError.)"""


class JobCancelled(KitchenSinkError, concurrent.futures.CancelledError):
    """The call was cancelled."""


class JobUnknown(KitchenSinkError, LookupError):
    """No job has this id, or it ended so long ago that its result is not kept any more."""


class KeyLost(KitchenSinkError, KeyError):
    """No node has the value of a key of a `Pool` any more."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NodeLost(KitchenSinkError):
    """The node that ran the call is gone; the call may or may not have done its work."""


class RemoteError(KitchenSinkError):
    """The call raised an exception that cannot be raised here: it does not pickle, or its type does not exist on this
    machine.

    >>> try:
    ...     client.call(f, _async=False)
    ... except RemoteError as error:
    ...     print(error.type_name, error.message)
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class RemoteTraceback(Exception):
    """The traceback of a call, as text, and where it ran: the `__cause__` of the exception that the call raised."""

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(text, where)
        self.text = text
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}\n" if self.where else ""
        return f'\n"""\n{place}{self.text}"""'


_BY_KIND: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        CatalogUnavailable,
        ConnectionFailed,
        ConnectionLost,
        JobCancelled,
        JobTimeout,
        JobUnknown,
        KeyLost,
        KitchenSinkError,
        NodeLost,
        NotAuthorized,
        NestedTooDeep,
        NotPlaceable,
        NotRegistered,
        NotSerializable,
        PayloadError,
        ProtocolError,
        TooManyJobs,
        # What a node says of paths.
        FileNotFoundError,
        IsADirectoryError,
        NotADirectoryError,
        OSError,
        PermissionError,
    )
}


def from_failure(failure: dict[str, Any]) -> Exception:
    """The exception for a node's `Failed` (of a job or of a request): `kind` is its class's name."""
    kind, message = failure["kind"], failure["message"]
    if kind in ("WorkerCrashed", "WorkerMemoryExceeded"):
        crash = WorkerCrashed if kind == "WorkerCrashed" else WorkerMemoryExceeded
        return crash(message, failure.get("signal"), failure.get("exit_code"), failure.get("stack"))
    known = _BY_KIND.get(kind)
    return known(message) if known else KitchenSinkError(f"{kind}: {message}")
