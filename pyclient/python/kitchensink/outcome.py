"""How a job ended, and what its caller gets for it.

Internal. An outcome is kept as it came, with the segments of its frame, until somebody asks for the result.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from . import serialize
from .errors import KitchenSinkError, RemoteError, RemoteTraceback, from_failure

CAUSES_MAX = 10
"""Exceptions of one chain that travel."""


class Outcome(NamedTuple):
    """An outcome as it came; `error` instead where it ended on this side (the connection was lost)."""

    kind: str
    body: Any
    frame: list[bytearray]
    error: Exception | None = None


def failed_here(error: Exception) -> Outcome:
    """An outcome that this side decided."""
    return Outcome("Failed", {}, [], error)


def is_cancelled(outcome: Outcome) -> bool:
    """Whether it ended by being cancelled."""
    return failed_as(outcome, "JobCancelled")


def failed_as(outcome: Outcome, kind: str) -> bool:
    """Whether it is this failure of ours, as the node said it."""
    return outcome.kind == "Failed" and outcome.error is None and bool(outcome.body["kind"] == kind)


def decode(outcome: Outcome, format: str, job: str, where: tuple[str, int] | None) -> tuple[Any, BaseException | None]:
    """The result and the exception (one of them) of an outcome."""
    try:
        if outcome.kind == "Returned":
            return serialize.decode(serialize.open_payload(outcome.body, outcome.frame), format), None
        if outcome.kind == "Raised":
            error: BaseException = _raised(outcome, where)
        else:
            error = outcome.error or from_failure(outcome.body)
    except Exception as reason:
        error = KitchenSinkError(f"the result of job {job} cannot be read: {serialize.describe(reason)}")
        error.__cause__ = reason
    _mark(error, job, where)
    return None, error


def _mark(error: BaseException, job: str, where: tuple[str, int] | None) -> None:
    node, pid = where or (None, None)
    with contextlib.suppress(Exception):  # an exception may refuse attributes
        error.ks_job, error.ks_node, error.ks_pid = job, node, pid  # type: ignore[attr-defined]


def _raised(outcome: Outcome, where: tuple[str, int] | None) -> BaseException:
    """The exception that the user's code raised, with the remote traceback as the root of its causes."""
    body = outcome.body
    chain: list[BaseException] = []
    if body["exception"] is not None:
        with contextlib.suppress(Exception):
            loaded = serialize.decode(serialize.open_payload(body["exception"], outcome.frame))
            # One that would end this process or pass for its Ctrl-C is told about, not raised.
            chain = loaded if all(isinstance(error, Exception) for error in loaded) else []
    if not chain:
        chain = [RemoteError(body["type_name"], body["message"], body["traceback"])]
    place = f"on node {where[0]}, process {where[1]}:" if where else ""
    for error, cause in zip(chain, [*chain[1:], RemoteTraceback(body["traceback"], place)]):
        error.__cause__ = cause
    return chain[0]
