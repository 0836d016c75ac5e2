"""Every exception that KitchenSink itself raises: one tree, and the one place where a node's words become exceptions.

What a call's own code raises is not here: it is raised again, with its own type, where the result is asked for (see `RemoteError` for
when that cannot be).
"""

from __future__ import annotations

import concurrent.futures
from typing import Any, Optional

__all__ = [
    "ConnectionFailed",
    "ConnectionLost",
    "JobCancelled",
    "JobTimeout",
    "KitchenSinkError",
    "NodeLost",
    "NotAuthorized",
    "NotPlaceable",
    "NotSerializable",
    "RemoteError",
    "RemoteTraceback",
    "WorkerCrashed",
]


class KitchenSinkError(Exception):
    """What all of KitchenSink's own exceptions are. `except KitchenSinkError` catches them, and nothing that your functions raise.

    Exceptions of a call also say where it ran, once that is known: `ks_node` (the node's name), `ks_pid` (the worker's process) and
    `ks_job` (the job's id). The exceptions your own functions raise get the same three attributes.
    """

    ks_node: Optional[str] = None
    ks_pid: Optional[int] = None
    ks_job: Optional[str] = None


class ConnectionFailed(KitchenSinkError, ConnectionError):
    """No connection to a node could be made: none runs here, the key is wrong, nobody answers. The message says what to do."""


class ConnectionLost(KitchenSinkError, ConnectionError):
    """The connection to the node ended. Jobs that were accepted go on; `client.result(job.id)` on a new connection finds them."""


class NotSerializable(KitchenSinkError, TypeError):
    """A function, an argument or a result cannot be sent. For functions and arguments it is raised at the call, before anything is
    sent; the message names the culprit and why."""


class NotPlaceable(KitchenSinkError):
    """No node may run the call: an unknown `_node` or `_queue_name`, a path that does not exist, too much data to fetch everywhere."""


class NotAuthorized(KitchenSinkError, PermissionError):
    """This client's key does not allow it, or the node runs registered functions only."""


class WorkerCrashed(KitchenSinkError):
    """The worker process died in the middle of the call (segmentation fault, `os._exit`, out of memory). It was not run again."""

    signal: Optional[int]
    """The signal that killed it, or None."""
    exit_code: Optional[int]
    """Its exit status, or None."""
    stack: Optional[str]
    """The last Python stack of its threads, where it could still be written."""

    def __init__(
        self,
        message: str,
        signal: Optional[int] = None,
        exit_code: Optional[int] = None,
        stack: Optional[str] = None,
    ) -> None:
        super().__init__(message, signal, exit_code, stack)
        self.message = message
        self.signal = signal
        self.exit_code = exit_code
        self.stack = stack

    def __str__(self) -> str:
        return f"{self.message}\n{self.stack}" if self.stack else self.message


class JobTimeout(KitchenSinkError, TimeoutError):
    """The call ran longer than its `_timeout` and was ended. (A `timeout` of `result` that passes is a plain TimeoutError.)"""


class JobCancelled(KitchenSinkError, concurrent.futures.CancelledError):
    """The call was cancelled."""


class NodeLost(KitchenSinkError):
    """The node that ran the call is gone; the call may or may not have done its work."""


class RemoteError(KitchenSinkError):
    """The call raised an exception that cannot be raised here: it does not pickle, or its type does not exist on this machine.

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
    """The traceback of a call, as text: the `__cause__` of the exception that the call raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


_BY_KIND: dict[str, type[KitchenSinkError]] = {
    kind.__name__: kind
    for kind in (
        KitchenSinkError,
        ConnectionFailed,
        ConnectionLost,
        NotSerializable,
        NotPlaceable,
        NotAuthorized,
        JobTimeout,
        JobCancelled,
        NodeLost,
    )
}


def from_failure(failure: dict[str, Any]) -> KitchenSinkError:
    """The exception for a node's `Failed` (of a job or of a request): `kind` is its class's name."""
    kind, message = failure["kind"], failure["message"]
    if kind == "WorkerCrashed":
        return WorkerCrashed(message, failure.get("signal"), failure.get("exit_code"), failure.get("stack"))
    known = _BY_KIND.get(kind)
    return known(message) if known else KitchenSinkError(f"{kind}: {message}")
