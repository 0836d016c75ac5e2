"""The words between client, node and worker: MessagePack maps beside raw segments (the node's
`executor/src/protocol.rs`).

Internal. Externally tagged: a variant without fields is a string ("Ping"), any other a map of one key ({"Submit":
{...}}).
"""

from __future__ import annotations

from typing import Any

import msgpack

VERSION = 1
"""Of the protocol; said in `Hello`."""
INLINE_BYTES = 64 * 1024
"""A part up to this size travels inside the header, a larger one as a segment of its own."""
SEGMENTS_MAX = 65_536
"""Segments of one frame, the header included."""

Part = dict[str, Any]
Payload = dict[str, list[Part]]
Buffer = Any
"""Anything with the buffer protocol."""


class Malformed(Exception):
    """What came is no message of this protocol."""


def pack(message: Any) -> bytes:
    """A message as bytes."""
    packed: bytes = msgpack.packb(message, use_bin_type=True)
    return packed


def unpack(header: bytes | bytearray) -> Any:
    """The message of a header."""
    try:
        return msgpack.unpackb(header, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise Malformed(f"not a message: {error}") from error


def variant(message: Any) -> tuple[str, Any]:
    """The name and the body of an enum's value."""
    if isinstance(message, str):
        return message, None
    if isinstance(message, dict) and len(message) == 1:
        [(name, body)] = message.items()
        return name, body
    raise Malformed(f"not a variant: {type(message).__name__}")


def size_of(buffer: Buffer | Part) -> int:
    """Bytes in a buffer; of a part that stands for one already, 0."""
    if isinstance(buffer, dict):
        return 0
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def place_part(buffer: Buffer | Part, segments: list[Buffer]) -> Part:
    """A part for the header; a large buffer is appended to the frame's segments (which hold what comes after the
    header). What is a part already stays as it is."""
    if isinstance(buffer, dict):
        return buffer
    if size_of(buffer) > INLINE_BYTES:
        segments.append(buffer)
        return {"Segment": len(segments)}
    return {"Inline": bytes(buffer)}


def place_payload(buffers: list[Buffer | Part], segments: list[Buffer]) -> Payload:
    """A payload for the header."""
    return {"parts": [place_part(buffer, segments) for buffer in buffers]}


def packed_array_head(length: int) -> bytes:
    """The head of an array of `length` values that are packed already."""
    head: bytes = msgpack.Packer().pack_array_header(length)
    return head
