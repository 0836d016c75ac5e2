"""The keywords of a call that are KitchenSink's own: they begin with `_`.

Internal; users find them in `Client.call`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Union

from .kept import KeepAs

PathArgument = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{name} takes a string, not {value!r}")


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise TypeError(f"{name} takes a whole number from {least} to {most}, not {value!r}")
    return value


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, type(None))):
        raise TypeError(f"{name} takes True or False, not {value!r}")
    return bool(value)


class Options:
    """One call's keywords, checked, as the fields of the node's `Call` that are not as they are by default."""

    __slots__ = ("asynchronous", "fields", "keep", "locality", "prefix", "profile", "rpc_name")

    def __init__(self) -> None:
        self.asynchronous = True
        self.fields: dict[str, Any] = {}
        self.keep: KeepAs | bool = False
        """As what its result stays where it is made; True: as a new value."""
        self.locality: tuple[bytes, ...] = ()
        self.prefix: str | None = None
        self.profile = False
        self.rpc_name: str | None = None

    def take(self, name: str, value: Any) -> None:
        """One keyword. Errors: TypeError, which names it."""
        taker = _TAKERS.get(name)
        if taker is None:
            known = ", ".join(sorted(_TAKERS))
            raise TypeError(f"{name} is not a keyword of KitchenSink (keywords that begin with _ are its own: {known})")
        taker(self, name, value)

    def _async(self, name: str, value: Any) -> None:
        self.asynchronous = value is None or _yes_or_no(name, value)

    def _keep(self, name: str, value: Any) -> None:
        self.keep = value if isinstance(value, KeepAs) else _yes_or_no(name, value)

    def _profile(self, name: str, value: Any) -> None:
        self.profile = _yes_or_no(name, value)

    def _queue_name(self, name: str, value: Any) -> None:
        text = _text(name, value)
        if text is None:
            return
        queue, bar, host = text.partition("|")
        self.fields["queue"] = queue or "default"
        if bar and host:
            self.fields["node"] = host

    def _node(self, name: str, value: Any) -> None:
        if _text(name, value) is not None:
            self.fields["node"] = value

    def _python(self, name: str, value: Any) -> None:
        if _text(name, value) is not None:
            self.fields["python"] = value

    def _timeout(self, name: str, value: Any) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
            raise TypeError(f"{name} takes seconds, more than 0, not {value!r}")
        self.fields["timeout_ms"] = max(1, round(value * 1000))

    def _retries(self, name: str, value: Any) -> None:
        if value is not None:
            self.fields["retries"] = _whole(name, value, 0, 2**32 - 1)

    def _priority(self, name: str, value: Any) -> None:
        if value is not None:
            self.fields["priority"] = _whole(name, value, -(2**31), 2**31 - 1)

    def _data_threshold(self, name: str, value: Any) -> None:
        if value is not None:
            self.fields["data_threshold"] = _whole(name, value, 0, 2**64 - 1)

    def _no_route_data(self, name: str, value: Any) -> None:
        if _yes_or_no(name, value):
            self.fields["no_route_data"] = True

    def _intermediate_results(self, name: str, value: Any) -> None:
        if value is not None and not _yes_or_no(name, value):
            self.fields["intermediate_results"] = False

    def _locality(self, name: str, value: Any) -> None:
        if value is None:
            return
        single = isinstance(value, (str, bytes, os.PathLike))
        paths: Iterable[Any] = (value,) if single else value
        try:
            self.locality = tuple(os.fsencode(path) for path in paths)
        except TypeError:
            raise TypeError(f"{name} takes a path or several, not {value!r}") from None

    def _rpc_name(self, name: str, value: Any) -> None:
        self.rpc_name = _text(name, value)

    def _prefix(self, name: str, value: Any) -> None:
        self.prefix = _text(name, value)


_TAKERS = {name: getattr(Options, name) for name in vars(Options) if name.startswith("_") and not name.startswith("__")}
_TAKERS["_async"] = Options._async


def split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], Options]:
    """A call's keywords: the function's own, and ours. Errors: TypeError."""
    options = Options()
    if not any(name.startswith("_") for name in kwargs):
        return kwargs, options
    own = {}
    for name, value in kwargs.items():
        if name.startswith("_"):
            options.take(name, value)
        else:
            own[name] = value
    return own, options
