"""`python -m kitchensink.scripts.start`: starts a node with the flags of the seeds, in the foreground.

It becomes `ks mount --foreground`: the program `ks` has to be installed. `--datadir` is the node's own files; the tree
is mounted at `--mountpoint` (`/ks`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit


def parser() -> argparse.ArgumentParser:
    """The seeds' flags, and those that a tree needs beside them."""
    made = argparse.ArgumentParser(prog="python -m kitchensink.scripts.start", description=__doc__)
    made.add_argument("--redis-connection", help="a Redis that runs, as tcp://HOST:PORT?db=9 (default: start one)")
    made.add_argument("--node-url", help="how others reach this node, as http://HOST:PORT/")
    made.add_argument("--node-name", help="its name (default: the host's)")
    made.add_argument("--node-port", type=int, help="the port it listens on (default: that of --node-url)")
    made.add_argument("--no-redis", action="store_true", help="do not start a Redis")
    made.add_argument("--num-workers", type=int, default=1, help="worker processes")
    made.add_argument("--queue", action="append", default=[], help="a queue to serve beside default and data (repeat)")
    made.add_argument("--module", action="append", default=[], help="a module with registered functions (repeat)")
    made.add_argument("--read-only", action="store_true", help="nothing new is stored on this node")
    made.add_argument("--reload", action="store_true", help="accepted, without effect: code travels anyway")
    made.add_argument("--datadir", default="tmp", help="the node's own files (default: ./tmp)")
    made.add_argument("--mountpoint", default="/ks", help="where the tree is mounted")
    made.add_argument("--join", help="a node of the cluster to join")
    return made


def command(arguments: argparse.Namespace, program: str = "ks") -> list[str]:
    """The `ks mount` that these flags stand for."""
    made = [program, "mount", arguments.mountpoint, "--foreground", "--datadir", os.path.abspath(arguments.datadir)]
    made += ["--num-workers", str(arguments.num_workers)]
    for flag, value in (
        ("--node-name", arguments.node_name),
        ("--node-url", arguments.node_url),
        ("--join", arguments.join),
    ):
        made += [flag, value] if value else []
    port = arguments.node_port or (urlsplit(arguments.node_url).port if arguments.node_url else None)
    made += ["--listen", f":{port}"] if port else []
    if arguments.redis_connection and (arguments.no_redis or not arguments.join):
        made += ["--redis", arguments.redis_connection]
    for flag, values in (("--queue", arguments.queue), ("--module", arguments.module)):
        for value in values:
            if (flag, value) not in (("--queue", "default"), ("--queue", "data")):
                made += [flag, value]
    made += ["--no-redis"] if arguments.no_redis else []
    made += ["--read-only"] if arguments.read_only else []
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Becomes the node."""
    chosen = parser().parse_args(arguments)
    program = shutil.which("ks")
    if program is None:
        sys.exit("kitchensink.scripts.start: the program ks is not on the PATH: install it")
    os.makedirs(chosen.datadir, exist_ok=True)
    os.execv(program, command(chosen, program))


if __name__ == "__main__":
    main()
