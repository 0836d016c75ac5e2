"""`ks://` for fsspec: pandas, xarray, pyarrow and others read and write the tree by url, with a mount and without.

>>> pd.read_csv("ks://flights/2013-01.csv")
>>> pd.read_csv("ks://flights/2013-01.csv", storage_options={"url": "ks://host1:6323"})

A url's path is a path in the tree: `ks://a/b` is the file /ks/a/b. Where the tree is mounted its files are opened
there; elsewhere they are read in ranges, and written in pieces, through calls on the nodes. Installing the package
makes `ks` known to fsspec.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import posixpath
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from . import _client
from .tree import PIECE_BYTES, Tree, listing, status, tree

__all__ = ["KitchenSinkFile", "KitchenSinkFileSystem"]


class KitchenSinkFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The tree, for fsspec. `url`: a node, as `Client` takes it; None: the process's client. Further keywords are those
    of `Client`."""

    protocol = "ks"
    root_marker = ""

    def __init__(self, url: str | None = None, key: str | None = None, **keywords: Any) -> None:
        super().__init__(url=url, key=key, **keywords)
        self._url, self._key = url, key
        self._made: Tree | None = None

    @property
    def tree(self) -> Tree:
        """The way to the files."""
        if self._made is None:
            if self._url is not None:
                self._made = tree(_client.Client(self._url, key=self._key))
            else:
                self._made = tree()
        return self._made

    @classmethod
    def _strip_protocol(cls, path: str | list[str]) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = os.fspath(path)
        text = text[len("ks://") :] if text.startswith("ks://") else text
        return text.strip("/")

    def _full(self, path: str) -> str:
        """Where it is in the mount."""
        inner = self._strip_protocol(path)
        return self.tree.path(inner) if inner else str(self.tree.mountpoint)

    # Names

    def ls(self, path: str, detail: bool = True, **keywords: Any) -> list[Any]:
        """What is in a directory; a file lists itself."""
        inner = self._strip_protocol(path)
        if self.info(inner)["type"] == "file":
            entries = {"": self.info(inner)}
        elif self.tree.mounted:
            entries = listing(self._full(inner))
        else:
            entries = self.tree.there("list_directory", inner)
        rows = [{**entry, "name": posixpath.join(inner, name) if name else inner} for name, entry in entries.items()]
        return rows if detail else [row["name"] for row in rows]

    def info(self, path: str, **keywords: Any) -> dict[str, Any]:
        """`name`, `size`, `type`, `mtime` of a path. Errors: FileNotFoundError."""
        inner = self._strip_protocol(path)
        found = status(self._full(inner)) if self.tree.mounted else self.tree.there("file_status", inner)
        return {**found, "name": inner}

    def modified(self, path: str) -> datetime.datetime:
        """When it was written last."""
        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], tz=datetime.timezone.utc)

    def mkdir(self, path: str, create_parents: bool = True, **keywords: Any) -> None:
        """Makes a directory."""
        self.makedirs(path, exist_ok=False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a directory, and those above it."""
        if not self._strip_protocol(path):
            if not exist_ok:
                raise FileExistsError(f"{path!r}: the tree's root")
        elif self.tree.mounted:
            os.makedirs(self._full(path), exist_ok=exist_ok)
        else:
            self.tree.there("make_directory", self._strip_protocol(path), exist_ok)

    def rmdir(self, path: str) -> None:
        """Removes an empty directory."""
        if self.tree.mounted:
            os.rmdir(self._full(path))
        else:
            self.tree.there("delete_directory", self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        """Removes a file, all of its copies, or an empty directory (`rm(..., recursive=True)` names both)."""
        try:
            self.tree.delete(self._strip_protocol(path))
        except IsADirectoryError:
            self.rmdir(path)

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def mv(self, path1: str, path2: str, **keywords: Any) -> None:
        """Gives a file or a directory another name."""
        old, new = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.tree.mounted:
            os.makedirs(os.path.dirname(self._full(new)), exist_ok=True)
            os.rename(self._full(old), self._full(new))
        else:
            self.tree.there("move_file", old, new)

    def cp_file(self, path1: str, path2: str, **keywords: Any) -> None:
        """Copies a file."""
        with self.open(path1, "rb") as source:
            self.tree.store(self._strip_protocol(path2), source)

    # Contents

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **keywords: Any) -> bytes:
        """A file's bytes, or a range of them."""
        inner = self._strip_protocol(path)
        begin, stop, _ = slice(start, end).indices(self.info(inner)["size"])
        return self.tree.read(inner, begin, max(0, stop - begin))

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> Any:
        inner = self._strip_protocol(path)
        if self.tree.mounted and autocommit:
            full = self._full(inner)
            if "r" not in mode:
                os.makedirs(os.path.dirname(full), exist_ok=True)
            return open(full, mode)
        if "a" in mode:
            raise ValueError(f"{inner}: a file of the tree is appended to through a mount only")
        return KitchenSinkFile(
            self, inner, mode, block_size or PIECE_BYTES // 4, autocommit, cache_options=cache_options, **keywords
        )


class KitchenSinkFile(AbstractBufferedFile):  # type: ignore[misc]
    """An open file where there is no mount. What is written is seen when it is closed, whole."""

    _part: dict[str, Any] | None = None

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.tree.read(self.path, start, end - start))

    def _initiate_upload(self) -> None:
        self._part = self.fs.tree.there("begin_file", self.path, b"")

    def _upload_chunk(self, final: bool = False) -> bool:
        assert self._part is not None
        self.buffer.seek(0)
        data, where = self.buffer.read(), {"_node": self._part["node"]}
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            self.fs.tree.there("write_file", self._part["path"], self.offset + at, piece, **where)
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        """What was written takes its place."""
        part, self._part = self._part, None
        if part is not None:
            self.fs.tree.there("end_file", part["path"], self.path, _node=part["node"])

    def discard(self) -> None:
        """What was written is dropped."""
        part, self._part = self._part, None
        if part is not None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.tree.there("delete_file", part["path"], _node=part["node"])
