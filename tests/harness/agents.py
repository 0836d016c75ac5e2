"""Agents: programs in hosts that do random operations on a tree; see `agent.py` for what runs there."""

import json
import selectors
import subprocess
from random import Random
from typing import Any

from . import agent
from .node import PYTHON, Node

ANSWER_TIMEOUT_S = 40
NAMES = ["a", "b", "c", "d", "e", "d/a", "d/b", "d/e", "d/e/a", "e/a", "e/b"]


def random_operation(dice: Random) -> tuple:
    """Operations that succeed and such that fail; names collide on purpose."""
    path, other = dice.choice(NAMES), dice.choice(NAMES)
    text = dice.choice("xyz") * dice.randrange(1, 3000)
    return dice.choice(
        [
            ("write", path, dice.randrange(5000), text),
            ("write", path, dice.randrange(200_000), text),
            ("replace", path, text),
            ("append", path, text),
            ("read", path),
            ("attributes", path),
            ("truncate", path, dice.randrange(10_000)),
            ("mkdir", path),
            ("mkdir", path),
            ("rmdir", path),
            ("unlink", path),
            ("rename", path, other),
            ("rename", path, other),
            ("link", path, other),
            ("symlink", "a", path),
            ("chmod", path, dice.choice([0o644, 0o600, 0o755])),
            ("list", path),
        ]
    )


class Agent:
    """An `agent.py` in a host, started again where its tree has died under it."""

    def __init__(self, node: Node, base: str):
        self.node = node
        self.base = base
        self.start()

    def start(self) -> None:
        argv = [PYTHON, agent.__file__, self.base]
        self.process = self.node.spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdin and self.process.stdout
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.answers = selectors.DefaultSelector()
        self.answers.register(self.replies, selectors.EVENT_READ)

    def __call__(self, operation: str, *arguments: Any) -> Any:
        self.requests.write(json.dumps([operation, *arguments]) + "\n")
        self.requests.flush()
        assert self.answers.select(ANSWER_TIMEOUT_S), f"{self.node.name}: no answer to {operation} {arguments}"
        return json.loads(self.replies.readline() or '"no answer"')

    def close(self) -> None:
        self.answers.close()
        self.process.kill()
        self.process.wait(timeout=10)
        self.requests.close()
        self.replies.close()
