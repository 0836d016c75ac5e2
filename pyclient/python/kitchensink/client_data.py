"""The data half of a client: which nodes there are, which files, who holds them, and moving copies.

Internal; users find these methods on `Client`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Callable, Union

from . import discovery
from .errors import ConnectionFailed, KitchenSinkError, NotPlaceable
from .options import PathArgument
from .tree import Tree, data_url, search

if TYPE_CHECKING:
    from .remote_data import RemoteData
    from .session import Session

DataUrl = Union[str, "RemoteData"]
Located = tuple[set[str], dict[str, Any]]

SPREAD_SECONDS = 3600.0
"""How long bringing one file to one node may take."""


class DataMethods:
    """Methods of `Client`."""

    if TYPE_CHECKING:

        def _connected(self) -> Session: ...
        def call(self, f: Any, *args: Any, **kwargs: Any) -> Any: ...
        @property
        def node(self) -> str: ...
        @property
        def mountpoint(self) -> str: ...

    @property
    def local_mountpoint(self) -> str | None:
        """The mount point, where its files can be opened by this process; None for a node of another machine."""
        session = self._connected()
        mountpoint = os.fsdecode(session.hello.mountpoint)
        return mountpoint if session.address.startswith("/") and os.path.isdir(mountpoint) else None

    # Nodes

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The nodes of the cluster, by name: what `ks nodes --json` shows of each.

        >>> sorted(c.nodes())
        ['host1', 'host2', 'host3']
        """
        return {str(node["name"]): node for node in self._connected().ask("Nodes", "Nodes")}

    def hosts(self, to_write: bool = False) -> dict[str, str]:
        """The nodes that are alive: name -> url. `to_write`: without those that are read-only.

        >>> c.hosts()
        {'host1': 'http://10.0.0.1:6323/', 'host2': 'http://10.0.0.2:6323/'}
        """
        return {
            name: f"http://{node['address']}/"
            for name, node in self.nodes().items()
            if node.get("alive", True) and not (to_write and node.get("read_only"))
        }

    def node_of_url(self, url: str) -> str:
        """The name of the node of this url (or name). Errors: NotPlaceable."""
        hosts = self.hosts()
        if url in hosts:
            return url
        try:
            wanted = discovery.parse(url).quic
        except ConnectionFailed:
            wanted = None
        for name, known in hosts.items():
            port = known.rstrip("/").rpartition(":")[2]
            if wanted is not None and wanted in (discovery.parse(known).quic, f"{name}:{port}"):
                return name
        raise NotPlaceable(f"{url}: no node of the cluster has this url; these are there: {hosts}")

    def pick_host(self, url: DataUrl) -> tuple[str, str]:
        """A node that holds all of a file, and its url: the client's own, if that does."""
        hosts, found = self.data_info([url])
        ((holders, _),) = found.values()
        if not holders:
            raise NotPlaceable(f"{url}: no node that is alive holds all of it")
        name = self.node if self.node in holders else random.choice(sorted(holders))
        return name, hosts[name]

    def ping(self) -> str:
        """Asks the node for a sign of life; returns its name."""
        return str(self._connected().ask("Ping", "Pong")["node"])

    # Files

    def where(self, *paths: PathArgument) -> list[dict[str, Any]]:
        """Who holds these files, how much of them and in which version, as `ks where --json` shows it, in the order of
        the paths."""
        asked = [os.fsencode(os.path.abspath(os.fsencode(path))) for path in paths]
        return list(self._connected().ask({"Where": {"paths": asked}}, "Where"))

    def data_info(self, urls: Iterable[DataUrl]) -> tuple[dict[str, str], dict[str, Located]]:
        """The nodes that are alive (name -> url), and for each data url the names of those that hold all of it, and
        what is known of it (`size`, `version`, `blake3`, `copies`).

        >>> hosts, found = c.data_info(["mylarge/dataset.h5"])
        >>> holders, info = found["mylarge/dataset.h5"]
        """
        asked = [self._url(url) for url in urls]
        hosts = self.hosts()
        rows = self._connected().ask({"Where": {"paths": [os.fsencode(url) for url in asked]}}, "Where")
        return hosts, {url: _located(row, hosts) for url, row in zip(asked, rows)}

    def _url(self, url: DataUrl) -> str:
        known = url if isinstance(url, str) else url.data_url
        if known is None:
            raise KitchenSinkError(f"{url!r} was not saved: it has no data url")
        return data_url(known, self.mountpoint)

    def path_search(self, pattern: str) -> list[str]:
        """The data urls of the tree that match, sorted; `*` stands for any characters, slashes too. An absolute pattern
        gives absolute paths.

        >>> c.path_search("flights/2013*.csv")
        ['flights/2013-01.csv', 'flights/2013-02.csv']
        """
        mountpoint = self.local_mountpoint
        if mountpoint is not None:
            return search(mountpoint, pattern)
        inside = self.mountpoint.rstrip("/") + "/"
        absolute = pattern.startswith(inside)
        inner = pattern[len(inside) :] if absolute else pattern
        found = self._on_node("search_path", inner)
        return [inside + url for url in found] if absolute else list(found)

    def _on_node(self, function: str, *args: Any, **keywords: Any) -> Any:
        keywords.setdefault("_queue_name", "data")
        return self.call(
            f"kitchensink.builtins:{function}", *args, _async=False, _intermediate_results=False, **keywords
        )

    def tree(self) -> Tree:
        """The tree's files, as this client reaches them."""
        return Tree(self.local_mountpoint, self)  # type: ignore[arg-type]

    def md5(self, url: DataUrl) -> list[tuple[str, str]]:
        """The MD5 of a file as each of its holders reads it: (node, hexadecimal)."""
        asked = self._url(url)
        _, found = self.data_info([asked])
        return [(name, self._on_node("md5sum", asked, _node=name)) for name in sorted(found[asked][0])]

    def fetch(self, *paths: PathArgument, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Brings files to the node that this client talks to. `progress(path, have, size)` is called as their bytes
        come."""
        asked = [os.path.abspath(os.fsencode(path)) for path in paths]

        def report(body: dict[str, Any]) -> None:
            if progress is not None:
                progress(os.fsdecode(bytes(body["path"])), body["have"], body["size"])

        self._connected().ask({"Fetch": {"paths": asked}}, "Done", seconds=None, progress=report)

    def spread(self, url: DataUrl) -> list[str]:
        """Brings a file to every node that is alive and may write; returns the names of those that hold it then. They
        fetch at the same time, and give each other what they have."""
        asked = self._url(url)
        _, found = self.data_info([asked])
        missing = [name for name in self.hosts(to_write=True) if name not in found[asked][0]]
        jobs = [
            self.call(
                "kitchensink.builtins:fetch_here",
                asked,
                _node=name,
                _queue_name="data",
                _no_route_data=True,
                _timeout=SPREAD_SECONDS,
            )
            for name in missing
        ]
        for job in jobs:
            job.result()
        return sorted({*found[asked][0], *missing})

    def delete(self, *urls: DataUrl) -> None:
        """Removes files from the tree, all of their copies."""
        where = self.tree()
        for url in urls:
            where.delete(self._url(url))

    def remove_directory(self, url: str) -> None:
        """Removes an empty directory of the tree."""
        where = self.tree()
        if where.mounted:
            os.rmdir(where.path(self._url(url)))
        else:
            self._on_node("delete_directory", self._url(url))

    # Copies

    def drop(self, *urls: DataUrl, node: str | None = None) -> None:
        """Gives up the copies that a node (None: the client's) has of these files. Errors: KitchenSinkError, where it
        would be the last whole copy that can be reached, or is pinned."""
        for url in urls:
            self._on_node("drop_here", self._url(url), _node=node or self.node, _no_route_data=True)

    def reducedata(self, *urls: DataUrl, number: int = 0, remove_host: str | None = None) -> list[str]:
        """Leaves `number` copies of each of these files, and returns the data urls of those that had more. 0 removes
        the file from the tree. `remove_host`: the node (name or url) whose copy goes first."""
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise TypeError(f"number is how many copies stay, not {number!r}")
        asked = [self._url(url) for url in urls]
        if number == 0:
            self.delete(*asked)
            return asked
        first = None if remove_host is None else self.node_of_url(remove_host)
        _, found = self.data_info(asked)
        reduced = []
        for url in asked:
            homes = {copy["node"] for copy in found[url][1]["copies"] if copy["home"]}
            # Those that go first come last: the home stays longest, `remove_host` not at all.
            holders = sorted(found[url][0], key=lambda name: (name == first, name not in homes, name))
            for name in holders[number:]:
                self.drop(url, node=name)
            reduced += [url] if len(holders) > number else []
        return reduced

    def reducetree(self, pattern: str, number: int = 0, remove_host: str | None = None) -> list[str]:
        """`reducedata` of the files that match; by itself it removes them from the tree.

        >>> c.reducetree("memoize/*")
        >>> c.reducetree("flights/*", number=1, remove_host="host3")
        """
        return self.reducedata(*self.path_search(pattern), number=number, remove_host=remove_host)

    def move_data_pattern(self, pattern: str, from_host: str, to_host: str | None = None) -> list[str]:
        """Takes the copies of the files that match away from a node (name or url), and returns their data urls. What no
        other node holds is brought to `to_host` before, else to any other node that may write."""
        source = self.node_of_url(from_host)
        target = None if to_host is None else self.node_of_url(to_host)
        others = sorted(name for name in self.hosts(to_write=True) if name != source)
        if not others or target == source:
            raise NotPlaceable(f"there is no node beside {source} to take the files")
        found = self.path_search(pattern)
        moved = [url for url, (holders, _) in self.data_info(found)[1].items() if source in holders] if found else []
        for url in moved:
            holders = self.data_info([url])[1][url][0]
            if len(holders) == 1 or (target is not None and target not in holders):
                self._bring(url, target or random.choice(others))
            self.drop(url, node=source)
        return moved

    def _bring(self, url: str, node: str) -> None:
        self._on_node("fetch_here", url, _node=node, _no_route_data=True, _timeout=SPREAD_SECONDS)


def _located(row: dict[str, Any], hosts: dict[str, str]) -> Located:
    """Of a row of `where`: which nodes of `hosts` hold all of the current version, and the rest of it."""
    holders = {
        copy["node"]
        for copy in row["copies"]
        if copy["current"] and copy["bytes"] >= row["size"] and copy["node"] in hosts
    }
    return holders, {name: value for name, value in row.items() if name != "path"}
