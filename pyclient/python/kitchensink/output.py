"""What a call prints and logs, shown where its caller is.

Internal. `sys.stdout` and `sys.stderr` are looked up at each write, so that notebooks, pytest and
`contextlib.redirect_stdout` see it.
"""

from __future__ import annotations

import codecs
import logging
import sys
from typing import Any

_log = logging.getLogger("kitchensink")


def decoder() -> codecs.IncrementalDecoder:
    """For one stream of one call: a character may come in two pieces."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def write(stream: int, text: str) -> None:
    """Shows what a call wrote to its descriptor 1 or 2."""
    target: Any = sys.stdout if stream == 1 else sys.stderr
    if target is None or not text:
        return
    try:
        target.write(text)
        target.flush()
    except Exception as error:  # closed, a broken pipe, somebody's own stream: the connection is not to suffer
        _log.debug("output of a call cannot be shown: %s", error)


def log(job: str, record: dict[str, Any]) -> None:
    """Hands a call's log record to the logger of the same name here, if that one wants it. The record has `ks_node` and
    `ks_job`."""
    logger = logging.getLogger(record["logger"])
    if not logger.isEnabledFor(record["level"]):
        return
    made = logger.makeRecord(record["logger"], record["level"], "(remote)", 0, record["message"], (), None)
    made.created = record["time"]
    made.msecs = (record["time"] % 1) * 1000
    made.ks_node, made.ks_job = record["node"], job
    try:
        logger.handle(made)
    except Exception as error:  # a handler or filter of the user's
        _log.debug("a call's log record cannot be handled: %s", error)
