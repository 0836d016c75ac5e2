"""The examples of SEMANTICS.md, replayed in their order on three hosts."""

import re

import pytest

from harness import Cluster
from harness.hosts import REPOSITORY
from harness.node import need_running

COMMAND = re.compile(r"    host([1-3])\$ (.*)")


@pytest.fixture(scope="module")
def trio():
    """As the document says: its nodes follow what is done in their data directories."""
    need_running()
    with Cluster(3) as cluster:
        yield cluster.start(workers=2)


def examples():
    """[line number, host, command, what it prints]."""
    found = []
    for number, line in enumerate((REPOSITORY / "SEMANTICS.md").read_text().splitlines(), 1):
        if match := COMMAND.fullmatch(line):
            found.append([number, int(match[1]), match[2], ""])
        elif line.startswith("    ") and found:
            found[-1][3] += line[4:] + "\n"
    return found


def test_the_examples_do_what_the_document_says(trio):
    told = examples()
    assert len(told) > 20
    background = []
    for number, host, command, printed in told:
        if command.endswith("&"):
            background.append(trio[host].spawn(["bash", "-c", command.removesuffix("&")]))
            continue
        done = trio[host].exec(["env", f"DATADIR={trio[host].datadir}", "bash", "-c", command], check=False)
        said = done.text + done.error
        assert said.rstrip("\n") == printed.rstrip("\n"), f"SEMANTICS.md:{number}: {done}"
    for process in background:
        assert process.wait(timeout=10) == 0
