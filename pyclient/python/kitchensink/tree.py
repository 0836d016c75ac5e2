"""The tree's files, as this process reaches them: through the mount where there is one, else through calls on a node.

Internal: what `RemoteData`, `Pool`, the fsspec file system and the client's data functions stand on. A file is named by
its data url, its path below the mount point. What always holds: a file that is stored becomes visible whole or not at
all, and pieces that travel are at most `PIECE_BYTES` large.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import posixpath
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from .errors import CatalogUnavailable, KitchenSinkError

if TYPE_CHECKING:
    from ._client import Client

PIECE_BYTES = 16 * 1024 * 1024
"""Bytes of a file that travel in one call."""
FORMAT_ATTRIBUTE = "user.kitchensink.format"
"""Extended attribute that says how an object was serialized; files that are no objects have none."""

_WILD = frozenset("*?[")


def worker_mountpoint() -> str | None:
    """The mount point of the node whose worker this process is; None in any other process."""
    return os.environ.get("KS_MOUNTPOINT") if os.environ.get("KS_WORKER") else None


def data_url(path: str | os.PathLike[str], mountpoint: str | None = None) -> str:
    """A data url in its one spelling: no slash at its ends, no mount point, no `..`. Errors: ValueError."""
    text = os.fspath(path)
    if mountpoint and (text == mountpoint or text.startswith(mountpoint.rstrip("/") + "/")):
        text = text[len(mountpoint) :]
    url = posixpath.normpath("/" + text.lstrip("/"))[1:]
    if not url or ".." in text.split("/"):
        raise ValueError(f"{path!r} is no data url: a path below the mount point is")
    return url


def search(mountpoint: str, pattern: str) -> list[str]:
    """The files below `mountpoint` whose data url matches, sorted. As in the seeds `*` stands for any characters,
    slashes too. An absolute pattern gives absolute paths.
    Errors: CatalogUnavailable, where names cannot be learned now."""
    absolute = pattern.startswith(mountpoint.rstrip("/") + "/")
    inner = pattern[len(mountpoint.rstrip("/")) + 1 :] if absolute else pattern.lstrip("/")
    fixed = inner
    for index, character in enumerate(inner):
        if character in _WILD:
            fixed = inner[:index]
            break
    base = posixpath.dirname(fixed)
    found = [url for url in _files(mountpoint, base) if fnmatch.fnmatchcase(url, inner)]
    return sorted(os.path.join(mountpoint, url) if absolute else url for url in found)


def _files(mountpoint: str, base: str) -> Iterator[str]:
    for directory, directories, files in os.walk(os.path.join(mountpoint, base), onerror=_unlisted):
        directories.sort()
        below = os.path.relpath(directory, mountpoint)
        for name in files:
            yield name if below == "." else f"{below}/{name}"


def _unlisted(error: OSError) -> None:
    """A directory that is not there (any more), or is another user's, has no files to be found; any other that cannot
    be listed would be taken for an empty one."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
        return
    if error.errno == errno.EIO:
        raise CatalogUnavailable(
            f"{error.filename}: its names cannot be had now: the cluster's Redis does not answer; see: ks doctor"
        ) from error
    raise error


def status(path: str) -> dict[str, Any]:
    """What `stat` says of a path: `size`, `type` (`file` or `directory`), `mtime`. Errors: FileNotFoundError."""
    found = os.stat(path)
    kind = "directory" if stat.S_ISDIR(found.st_mode) else "file"
    return {"size": 0 if kind == "directory" else found.st_size, "type": kind, "mtime": found.st_mtime}


def listing(path: str) -> dict[str, dict[str, Any]]:
    """What is in a directory: name -> `status`. Errors: FileNotFoundError, NotADirectoryError."""
    entries = {}
    for name in sorted(os.listdir(path)):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, or a link to nowhere
            entries[name] = status(os.path.join(path, name))
    return entries


@contextlib.contextmanager
def fresh_file(path: str, format: str | None = None) -> Iterator[IO[bytes]]:
    """A file to be written, which takes the place of `path` when it is whole. It is read-only for nobody and seen by
    nobody before. Its directories are made."""
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    part = os.path.join(directory, f".{name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with open(part, "xb") as file:
            yield file
        if format is not None:
            with contextlib.suppress(OSError):  # a file system without attributes: the reader's word counts
                os.setxattr(part, FORMAT_ATTRIBUTE, format.encode())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def format_of(path: str) -> str | None:
    """How the object in a file was serialized; None: it is not known to be one."""
    try:
        return os.getxattr(path, FORMAT_ATTRIBUTE).decode()
    except OSError:
        return None


class Tree:
    """The tree, reached in whichever way is there. `client`: None inside of a worker, which has the mount."""

    def __init__(self, mountpoint: str | None, client: Client | None) -> None:
        self.mountpoint = mountpoint
        self._client = client

    @property
    def mounted(self) -> bool:
        """Whether this process can open the tree's files."""
        return self.mountpoint is not None

    def path(self, url: str) -> str:
        """Where a file is in this process's file system. Errors: KitchenSinkError where the tree is not mounted."""
        if self.mountpoint is None:
            raise KitchenSinkError(f"{url}: the tree is not mounted here")
        return os.path.join(self.mountpoint, url)

    def there(self, function: str, *args: Any, **keywords: Any) -> Any:
        """A built-in function, run on a node that has its file."""
        if self._client is None:
            raise KitchenSinkError(f"{function}: there is no client and no mount")
        keywords.setdefault("_queue_name", "data")
        call = self._client.call
        return call(f"kitchensink.builtins:{function}", *args, _async=False, _intermediate_results=False, **keywords)

    def _near(self, url: str) -> dict[str, Any]:
        return {"_locality": [url]}

    def size(self, url: str) -> int:
        """Bytes of a file. Errors: FileNotFoundError."""
        if self.mounted:
            return os.stat(self.path(url)).st_size
        return int(self.there("file_size", url, **self._near(url)))

    def format(self, url: str) -> str | None:
        """How the object in a file was serialized; None: it is not known to be one."""
        if self.mounted:
            return format_of(self.path(url))
        found = self.there("file_format", url, **self._near(url))
        return None if found is None else str(found)

    def read(self, url: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file. Errors: FileNotFoundError, OSError."""
        if self.mounted:
            with open(self.path(url), "rb") as file:
                file.seek(offset)
                return file.read() if length is None else file.read(length)
        if length is not None and length <= PIECE_BYTES:
            return bytes(self.there("read_file", url, offset, length, **self._near(url)))
        return b"".join(self.pieces(url, offset, length))

    def pieces(self, url: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A file's bytes, piece by piece."""
        end = self.size(url) if length is None else offset + length
        while offset < end:
            piece = self.read(url, offset, min(PIECE_BYTES, end - offset))
            if not piece:
                return
            offset += len(piece)
            yield piece

    def copy_here(self, url: str) -> str:
        """A path that this process can open: in the mount, else of a temporary copy."""
        if self.mounted:
            path = self.path(url)
            os.stat(path)
            return path
        with tempfile.NamedTemporaryFile(prefix="ks-data-", delete=False) as file:
            try:
                for piece in self.pieces(url):
                    file.write(piece)
            except BaseException:
                os.unlink(file.name)
                raise
        return file.name

    def store(self, url: str, source: IO[bytes], format: str | None = None, node: str | None = None) -> None:
        """Makes (or replaces) a file of what `source` reads. `node`: which keeps it, by name; None: this one, or, where
        there is no mount, the client's."""
        if self.mounted and node is None:
            try:
                with fresh_file(self.path(url), format) as file:
                    for piece in iter(lambda: source.read(PIECE_BYTES), b""):
                        file.write(piece)
                return
            except OSError as error:
                node = self._another_node(error)
                source.seek(0)
        self._send(url, source, format, node)

    def _another_node(self, error: OSError) -> str:
        """The node that takes a file which this one, being read-only, does not."""
        import errno

        if error.errno != errno.EROFS:
            raise error
        client = self._client = self._client or _default_client()
        for name in sorted(client.hosts(to_write=True)):
            if name != client.node:
                return name
        raise error

    def _send(self, url: str, source: IO[bytes], format: str | None, node: str | None) -> None:
        where = {"_node": node} if node is not None else {}
        first = source.read(PIECE_BYTES)
        rest = source.read(PIECE_BYTES)
        if not rest:
            self.there("store_file", url, first, format, **where)
            return
        part = self.there("begin_file", url, first, **where)
        where = {"_node": part["node"]}
        offset = len(first)
        try:
            while rest:
                self.there("write_file", part["path"], offset, rest, **where)
                offset += len(rest)
                rest = source.read(PIECE_BYTES)
            self.there("end_file", part["path"], url, format, **where)
        except BaseException:
            with contextlib.suppress(Exception):
                self.there("delete_file", part["path"], **where)
            raise

    def delete(self, url: str) -> None:
        """Removes a file, all of its copies. Errors: FileNotFoundError."""
        if self.mounted:
            os.unlink(self.path(url))
        else:
            self.there("delete_file", url)


def _default_client() -> Client:
    from ._client import client

    return client()


def tree(client: Client | None = None) -> Tree:
    """The tree of this worker's node, or the one that the client (the process's, if None) talks to."""
    mountpoint = worker_mountpoint()
    if mountpoint is not None and client is None:
        return Tree(mountpoint, None)
    client = client or _default_client()
    return Tree(client.local_mountpoint, client)
