"""A Redis that nodes are given with `--redis`: not theirs to start, nor to end."""

import subprocess
from collections.abc import Sequence
from typing import Any

from .cluster import Cluster
from .node import Node
from .waiting import wait_for

PORT = 6400
PASSWORD = "not-a-secret"
READY_WITHIN_S = 10


class GivenRedis:
    """A redis-server on a port of `node`'s host, with a password. Use it as a context: its end ends the nodes, too."""

    url = f"redis://:{PASSWORD}@host1:{PORT}"

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.host = cluster[1]
        flags = ["--port", PORT, "--bind", "0.0.0.0", "--requirepass", PASSWORD, "--save", "", "--dir", self.host.home]
        self.process = self.host.spawn(["redis-server", *map(str, flags)], stdout=subprocess.DEVNULL)
        wait_for(lambda: self.ask("ping") == "PONG\n", READY_WITHIN_S, "the test's Redis")

    def __enter__(self) -> "GivenRedis":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for node in reversed(self.cluster.nodes):
                if node.pid:
                    node.stop()
        finally:
            self.process.kill()
            self.process.wait(timeout=10)

    def ask(self, *words: Any, database: int = 0) -> str:
        """What Redis answers to a command."""
        command = ["redis-cli", "-p", PORT, "--no-auth-warning", "-a", PASSWORD, "-n", database, *words]
        return self.host.exec([str(word) for word in command], check=False).text

    def start(self, nodes: Sequence[Node], *flags: Any, url: str = url) -> None:
        """Starts the nodes on it."""
        for node in nodes:
            if node is not self.host:
                self.cluster.copy_key(self.host, node)
            node.start("--redis", url, "--num-workers", "1", *flags)
