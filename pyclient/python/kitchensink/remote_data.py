"""`RemoteData`: a file of the tree, or what is to become one, as an object, as bytes, or as a path."""

from __future__ import annotations

import io
import os
import posixpath
import tempfile
import uuid
from typing import IO, TYPE_CHECKING, Any

from . import serialization, settings
from .errors import KitchenSinkError
from .tree import Tree, data_url, tree

if TYPE_CHECKING:
    from ._client import Client

__all__ = ["RemoteData", "do", "dp", "dr", "du"]


class _Absent:
    """Says that an argument was not given, where None is a value."""

    def __repr__(self) -> str:
        return "absent"


_ABSENT: Any = _Absent()


class RemoteData:
    """A small handle of data that is, or will be, a file of the tree. It travels as its data url, and the call goes
    where the file is.

    >>> a = RemoteData(obj=frame)               # or do(frame): any object
    >>> a = RemoteData(local_path="data.h5")    # or dp("data.h5"): a file of this machine
    >>> a = RemoteData(raw=b"...")              # or dr(b"..."): bytes
    >>> a.save(prefix="parsed")                 # now it is a file of the tree, at a.data_url
    >>> b = RemoteData(data_url="mylarge/a")    # or du("mylarge/a"): the file that is /ks/mylarge/a
    >>> c.call(lambda data: data.obj().head(10), b, _async=False)

    Whatever it was made of, `obj()`, `raw()` and `local_path()` give it in that form, by the cheapest way. An object is
    serialized in the format `fmt` (`cloudpickle`, `pickle`, `json`, `raw`, or one of `register_serialization`).
    `rpc_url`, also as an attribute, says which node `save` keeps it on: a node's url or its name.
    """

    def __init__(
        self,
        obj: Any = _ABSENT,
        local_path: str | os.PathLike[str] | None = None,
        data_url: str | None = None,
        raw: bytes | None = None,
        rpc_url: str | None = None,
        fmt: str = "cloudpickle",
    ) -> None:
        if sum([obj is not _ABSENT, local_path is not None, data_url is not None, raw is not None]) != 1:
            raise TypeError("RemoteData is made of one of obj=, local_path=, data_url= and raw=")
        serialization.serializer(fmt)
        self.rpc_url = rpc_url
        self.fmt = fmt
        self.data_url = None if data_url is None else _url(data_url)
        self._obj = obj
        self._local_path = None if local_path is None else os.fspath(local_path)
        self._raw = raw

    # How it travels

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {"data_url": self.data_url, "fmt": self.fmt}
        if self.data_url is None:  # not saved: it travels as what it is
            state["raw"] = None if self._obj is not _ABSENT else self.raw()
            state["obj"] = self._obj if self._obj is not _ABSENT else None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.rpc_url = None
        self.fmt = state["fmt"]
        self.data_url = state["data_url"]
        self._local_path = None
        self._raw = state.get("raw")
        unsaved_object = self.data_url is None and self._raw is None
        self._obj = state.get("obj") if unsaved_object else _ABSENT

    def __repr__(self) -> str:
        if self.data_url is not None:
            return f"RemoteData(data_url={self.data_url!r})"
        if self._local_path is not None:
            return f"RemoteData(local_path={self._local_path!r})"
        if self._raw is not None:
            return f"RemoteData(raw=<{len(self._raw)} bytes>)"
        return f"RemoteData(obj=<{type(self._obj).__name__}>)"

    def _repr_html_(self) -> str:
        """For notebooks."""
        import html

        return f"<code>{html.escape(repr(self))}</code>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteData):
            return NotImplemented
        return self is other or (self.data_url is not None and self.data_url == other.data_url)

    def __hash__(self) -> int:
        return hash(self.data_url) if self.data_url is not None else id(self)

    # What it holds

    def client(self, rpc_url: str | None = None) -> Client:
        """A client of the node that this asks: of `rpc_url`, else the process's."""
        from . import _client

        url = rpc_url or self.rpc_url
        if url is not None and not _client.is_set_up():
            return _client.setup_client(url)
        return _client.client()

    def _tree(self) -> Tree:
        return tree() if settings.is_server else tree(self.client())

    def local_path(self) -> str:
        """A path of a file with its contents, for `open` and everything that takes paths: in the mount where there is
        one, else of a temporary copy."""
        if self._local_path is not None:
            return self._local_path
        if self.data_url is not None:
            where = self._tree()
            path = where.copy_here(self.data_url)
            if not where.mounted:
                self._local_path = path
            return path
        with tempfile.NamedTemporaryFile(prefix="ks-data-", delete=False) as file:
            file.write(self.raw())
        self._local_path = file.name
        return file.name

    def raw(self) -> bytes:
        """Its contents as bytes; for an object, its serialized form."""
        if self._raw is not None:
            return self._raw
        if self._local_path is not None:
            with open(self._local_path, "rb") as file:
                return file.read()
        if self._obj is not _ABSENT:
            return serialization.serialize(self._obj, self.fmt)
        if self.data_url is None:
            raise KitchenSinkError("this RemoteData holds nothing")
        return self._tree().read(self.data_url)

    def obj(self) -> Any:
        """The object; its file is read once."""
        if self._obj is _ABSENT:
            self._obj = serialization.deserialize(self.raw(), self._format())
        return self._obj

    def _format(self) -> str:
        """The format it was saved in, else the one that was said."""
        known = None if self.data_url is None else self._tree().format(self.data_url)
        return known if known is not None and serialization.known(known) else self.fmt

    def is_object(self) -> bool:
        """Whether it is an object rather than any other file."""
        if self._obj is not _ABSENT:
            return True
        return self.data_url is not None and self._tree().format(self.data_url) is not None

    # What is done with it

    def save(self, url: str | None = None, prefix: str = "") -> RemoteData:
        """Makes a file of the tree of it, at `url`, else at a new name below `prefix`: on the node of `rpc_url`, else
        on the node where this runs (a read-only node gives it to another). Returns itself. Errors: KitchenSinkError, if
        it is a file of the tree already."""
        if self.data_url is not None:
            raise KitchenSinkError(f"{self.data_url} exists already, and what is saved is new data")
        target = _url(url) if url is not None else _url(posixpath.join(prefix, str(uuid.uuid4())))
        where = self._tree()
        node = None if self.rpc_url is None else self._keeper(self.rpc_url)
        with self._stream() as source:
            where.store(target, source, self.fmt if self._obj is not _ABSENT else None, node)
        self.data_url = target
        return self

    def _stream(self) -> IO[bytes]:
        if self._raw is None and self._local_path is not None:
            return open(self._local_path, "rb")
        return io.BytesIO(self.raw())

    def _keeper(self, url: str) -> str | None:
        """The node that is to keep it, by name; None: that of this process."""
        if settings.is_server and settings.host_url and url.rstrip("/") == settings.host_url.rstrip("/"):
            return None
        client = self.client()
        name = client.node_of_url(url)
        return None if name == client.node and client.local_mountpoint is not None else name

    def delete(self) -> None:
        """Removes the file from the tree, all of its copies. The handle holds nothing after."""
        if self.data_url is None:
            raise KitchenSinkError("it was not saved: there is nothing to delete")
        self._tree().delete(self.data_url)

    def pipeline(self, url: str | None = None, prefix: str = "") -> RemoteData:
        """Saves it, if it is not yet, and brings it to all nodes that may write; each that has a part gives it on.
        Returns itself."""
        if self.data_url is None:
            self.save(url, prefix)
        client = self.client()
        assert self.data_url is not None
        client.spread(self.data_url)
        return self

    def __getitem__(self, item: Any) -> RemoteData:
        """A part of the object, made where the data is: `rd[100:110]`, `rd["column"]`. It stays there, as remote data
        of its own."""
        if self.data_url is None or settings.is_server:
            return do(self.obj()[item], fmt=self.fmt).save(prefix="slices")
        return self.client().call(_part, self, item, _async=False, _queue_name="data")  # type: ignore[no-any-return]


def _part(data: RemoteData, item: Any) -> RemoteData:
    return data[item]


def _url(url: str) -> str:
    from .tree import worker_mountpoint

    return data_url(url, worker_mountpoint())


def du(url: str, **keywords: Any) -> RemoteData:
    """Remote data of a data url: `du("a/b")` is the file /ks/a/b."""
    return RemoteData(data_url=url, **keywords)


def dp(path: str | os.PathLike[str], **keywords: Any) -> RemoteData:
    """Remote data of a local path."""
    return RemoteData(local_path=path, **keywords)


def do(obj: Any, **keywords: Any) -> RemoteData:
    """Remote data of an object."""
    return RemoteData(obj=obj, **keywords)


def dr(raw: bytes, **keywords: Any) -> RemoteData:
    """Remote data of bytes."""
    return RemoteData(raw=raw, **keywords)
