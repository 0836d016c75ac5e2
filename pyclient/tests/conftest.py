"""A fake node with real workers for every test that asks for one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fake_node import FakeNode

from kitchensink import Client


@pytest.fixture(scope="module")
def node(request):
    """One node for a whole file, with two workers, or as many as the file's WORKERS."""
    with FakeNode(workers=getattr(request.module, "WORKERS", 2)) as running:
        yield running


@pytest.fixture
def client(node):
    """A client of it."""
    with Client(node.socket) as connected:
        yield connected


@pytest.fixture(scope="module")
def separate_node():
    """The socket of a node in a process of its own, which does not share our GIL."""
    script = os.path.join(os.path.dirname(__file__), "fake_node.py")
    process = subprocess.Popen([sys.executable, script, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait(60)
    process.stdout.close()
