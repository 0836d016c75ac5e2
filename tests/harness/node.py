"""One node: the `ks mount` of a host, and what a test does on that host."""

import json
import os
import signal
import subprocess
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pytest

from .hosts import REPOSITORY, Hosts, command_line
from .waiting import wait_for

PROGRAM = Path(os.environ.get("KS_PROGRAM", REPOSITORY / "target" / "release" / "ks"))
PYTHON = REPOSITORY / ".venv" / "bin" / "python"
MOUNTPOINT = "/ks"
PORT = 6323
COMMAND_TIMEOUT_S = 60
START_TIMEOUT_S = 45
STOP_TIMEOUT_S = 20
LOG_LINES = 60
REPLY = "KS-TEST-REPLY:"

PRELUDE = """\
import json, os, sys, time
def reply(value):
    print({marker!r} + json.dumps(value), flush=True)
"""


def need_running() -> None:
    """What these tests run has to be built; without it every one of them would fail in its own way."""
    for needed in (PROGRAM, PYTHON):
        if not needed.exists():
            pytest.exit(f"{needed} is missing: run scripts/setup", 2)


@dataclass
class Completed:
    """A command that has ended."""

    argv: list
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def error(self) -> str:
        return self.stderr.decode(errors="replace")

    def __str__(self) -> str:
        return (
            f"{' '.join(map(str, self.argv))[:300]}\nstatus {self.status} after {self.seconds:.2f} s\n"
            f"stdout: {self.text[-3000:]}\nstderr: {self.error[-3000:]}"
        )


class Node:
    """A host's node. It is down until `start`."""

    def __init__(self, hosts: Hosts, number: int):
        self.hosts = hosts
        self.number = number
        self.name = f"host{number}"
        self.address = hosts.address(number)
        self.home = hosts.directory(number)
        self.datadir = self.home / "data"
        self.datadir.mkdir(exist_ok=True)
        self.pid: Optional[int] = None
        self.flags: tuple = ()

    # -- commands in the host

    def command(self, argv: list) -> list:
        environment = [
            f"PATH={PYTHON.parent}:{PROGRAM.parent}:{os.environ['PATH']}",
            f"VIRTUAL_ENV={PYTHON.parent.parent}",
        ]
        return self.hosts.command(self.number, ["env", *environment, *argv])

    def spawn(self, argv: list, **options: Any) -> subprocess.Popen:
        """Starts a command in the host and leaves it running (the cluster's end ends it)."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.command(argv), env=self.hosts.environment, start_new_session=True, **options)

    def exec(
        self, argv: list, check: bool = True, timeout: float = COMMAND_TIMEOUT_S, input: Optional[bytes] = None
    ) -> Completed:
        """Runs a command in the host; `check`: it must end with status 0. Its deadline is `timeout` seconds."""
        began = time.monotonic()
        stdin = subprocess.PIPE if input is not None else subprocess.DEVNULL
        process = self.spawn(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            try:
                stdout, stderr = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                stdout, stderr = b"", b"(and it cannot be killed)"
            done = Completed(argv, -1, stdout, stderr, time.monotonic() - began)
            raise AssertionError(f"{self.name}: no end within {timeout} s: {done}") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        done = Completed(argv, process.returncode, stdout, stderr, time.monotonic() - began)
        if check:
            assert done.status == 0, f"{self.name}: {done}"
        return done

    def shell(self, script: str, **options: Any) -> Completed:
        """Runs a line of bash in the host."""
        return self.exec(["bash", "-euo", "pipefail", "-c", script], **options)

    def python(self, code: str, check: bool = True, timeout: float = COMMAND_TIMEOUT_S) -> Completed:
        """Runs Python with the package in the host; `reply(x)` in it hands a value to `ask`."""
        source = PRELUDE.format(marker=REPLY) + textwrap.dedent(code)
        script = self.home / f"snippet-{time.monotonic_ns()}.py"
        script.write_text(source)
        return self.exec([PYTHON, script], check=check, timeout=timeout)

    def client(self, code: str, **options: Any) -> Completed:
        """Like `python`, with `c = Client()` of this host's node."""
        return self.python("from kitchensink import Client, errors\nc = Client()\n" + textwrap.dedent(code), **options)

    def ask(self, code: str, **options: Any) -> Any:
        """Like `client`; returns what the code gave to `reply`."""
        done = self.client(code, **options)
        replies = [line for line in done.text.splitlines() if line.startswith(REPLY)]
        assert len(replies) == 1, f"{self.name}: one reply was due: {done}"
        return json.loads(replies[0][len(REPLY) :])

    # -- the node

    def ks(self, *arguments: Any, **options: Any) -> Completed:
        return self.exec([PROGRAM, *arguments], **options)

    def ks_json(self, *arguments: Any, **options: Any) -> Any:
        return json.loads(self.ks(*arguments, "--json", **options).stdout)

    def mount_command(self, *flags: Any) -> list:
        return [PROGRAM, "mount", MOUNTPOINT, "--datadir", self.datadir, *flags]

    def start(self, *flags: Any, timeout: float = START_TIMEOUT_S) -> None:
        """`ks mount`; it has to come up. The flags are remembered for `restart`."""
        self.flags = flags
        self.exec(self.mount_command(*flags), timeout=timeout)
        self.pid = self.status()["pid"]

    def restart(self) -> None:
        self.start(*self.flags)

    def stop(self) -> None:
        """`ks umount`; nothing of the node may be left."""
        self.ks("umount", MOUNTPOINT, timeout=STOP_TIMEOUT_S)
        self.pid = None

    def kill9(self) -> None:
        """SIGKILL to the daemon alone; returns when it is gone."""
        assert self.pid, f"{self.name} is not running"
        pid, self.pid = self.pid, None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not command_line(pid), 5, f"the end of {pid}")

    def kill_all(self) -> None:
        """SIGKILL to every process in the host, as if its power had failed."""
        self.pid = None
        for pid in self.hosts.processes(self.number):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def status(self) -> dict:
        return self.ks_json("status")

    def read_counters(self) -> dict:
        """The file system's counters: reads, read_bytes, opens, opens_passthrough, bytes_fetched, …"""
        return self.status()["files"]

    def holders(self, path: str) -> dict:
        """node -> copy of the file at `path` (below the mount point), as `ks where` has it, current copies only."""
        (row,) = self.ks_json("where", f"{MOUNTPOINT}/{path}")
        return {copy["node"]: copy for copy in row["copies"] if copy["current"]}

    # -- its files, from outside

    def put(self, path: str, data: "bytes | str") -> Path:
        """Puts a file into the data directory, as a user would without KitchenSink."""
        target = self.datadir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        return target

    def link_bytes(self) -> dict:
        return self.hosts.bytes(self.number)

    def log(self) -> str:
        """What the daemon logged."""
        return "".join(file.read_text(errors="replace") for file in sorted((self.datadir / ".ks").glob("*.log")))

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_LINES:])

    def leftovers(self) -> list:
        """What is here of a node that should be gone: processes, mounts."""
        processes = [f"process {pid}: {line}" for pid, line in self.hosts.processes(self.number).items()]
        return processes + [f"mount {point}" for point in self.hosts.mounts(self.number)]
