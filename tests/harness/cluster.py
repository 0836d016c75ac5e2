"""Several hosts with a node each, from `up` to nothing left."""

import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .hosts import Hosts
from .node import Node
from .waiting import wait_for

# What `ks umount` may leave running for a moment: processes that are ending.
CLEAN_DEADLINE_S = 5
KEY = ".config/ks/cluster.key"

live_clusters: list = []
numbers = itertools.count(1)


class Cluster:
    """`count` hosts; `start` brings up a node on each. Use it as a context: the end leaves nothing, and checks that."""

    def __init__(self, count: int, mtu: int = 1500):
        self.hosts = Hosts(f"test-{os.getpid()}-{next(numbers)}", count, mtu)
        self.nodes = [Node(self.hosts, number) for number in range(1, count + 1)]
        self.expect_clean = True
        live_clusters.append(self)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, number: int) -> Node:
        """The node of host `number`, counted from 1 as the hosts are."""
        return self.nodes[number - 1]

    def start(self, *flags: Any, workers: int = 1) -> "Cluster":
        """The first node makes the cluster key and runs Redis; the others have a copy of the key and join it."""
        common = ("--num-workers", workers, *flags)
        first, *others = self.nodes
        first.start(*common)
        for node in others:
            self.copy_key(first, node)
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            list(pool.map(lambda node: node.start("--join", first.name, *common), others))
        return self

    @staticmethod
    def copy_key(source: Node, target: Node) -> None:
        """What a user does to let a machine join: copies one file."""
        (target.home / KEY).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.home / KEY, target.home / KEY)

    def link_bytes(self) -> int:
        """Bytes that crossed the links so far, counted where they are received."""
        return sum(node.link_bytes()["received"] for node in self.nodes)

    def close(self) -> None:
        """Ends the nodes in order, then everything; fails where an orderly end left something behind."""
        problems: list = []
        try:
            # The first node has Redis: it ends last.
            first, *others = self.nodes
            for together in (others, [first]):
                running = [node for node in together if node.pid]
                with ThreadPoolExecutor(max(1, len(running))) as pool:
                    list(pool.map(lambda node: self.stop_node(node, problems), running))
        finally:
            live_clusters.remove(self)
            self.hosts.down()
        assert not problems or not self.expect_clean, "\n".join(problems)

    @staticmethod
    def stop_node(node: Node, problems: list) -> None:
        try:
            node.stop()
            wait_for(lambda: not node.leftovers(), CLEAN_DEADLINE_S)
        except AssertionError as error:
            left = "; ".join(node.leftovers())
            problems.append(f"{node.name} was not ended cleanly: {error}\nleft: {left}\nlog: {node.log_tail()}")
