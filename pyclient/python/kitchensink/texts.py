"""The short arguments of a call that names no file, as texts: from what earlier calls opened, the node sees how paths
are made of them (`day="2013-01"` in `/ks/flights/2013-01.csv`), and places the next call by such a path.

Internal. Numbers, strings, dates and the like as `str()` writes them, also inside of a list or tuple that is an
argument.
"""

from __future__ import annotations

import datetime
import numbers
import os
import uuid
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

TEXTS_MAX = 16
"""Arguments of one call that are told."""
TEXT_CHARACTERS_MAX = 64
"""Of longer ones no path is thought to be made."""
ITEMS_MAX = 8
"""A longer list is data."""

_OTHERS = (datetime.date, datetime.time, uuid.UUID, numbers.Real, PurePath)


def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Position ("0", "0.1" inside of the first argument) or keyword, and text, of the arguments that have one."""
    found: list[tuple[str, bytes]] = []
    for name, value in _values(args, kwargs):
        text = _text(value)
        if text is not None:
            found.append((name, text))
            if len(found) == TEXTS_MAX:
                break
    return found


def _values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    named = [(str(index), value) for index, value in enumerate(args[:TEXTS_MAX])]
    for name, value in (*named, *kwargs.items()):
        if type(value) in (tuple, list):
            if len(value) <= ITEMS_MAX:
                for index, item in enumerate(value):
                    yield f"{name}.{index}", item
        else:
            yield name, value


def _text(value: Any) -> bytes | None:
    kind = type(value)
    if kind is str:
        text = value
    elif kind in (int, float) or (isinstance(value, _OTHERS) and kind is not bool):
        try:
            text = str(value)
        except Exception:  # a number of more digits than str() takes, or a class of the user's
            return None
    else:
        return None
    if not 0 < len(text) <= TEXT_CHARACTERS_MAX:
        return None
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return None
