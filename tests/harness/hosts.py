"""The hosts of one cluster: a thin cover of `scripts/hosts`, which knows how they are made."""

import json
import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCRIPT = REPOSITORY / "scripts" / "hosts"
# On a disk: data directories are below it.
DIRECTORY = os.environ.get("KS_HOSTS_DIR", "/var/tmp")
COMMAND_TIMEOUT_S = 60


class HostsError(Exception):
    """`scripts/hosts` failed; the text is what it said."""


class Hosts:
    """`count` hosts under a name of their own; `down` leaves nothing of them."""

    def __init__(self, name: str, count: int, mtu: int = 1500, directory: str = DIRECTORY):
        self.name = name
        self.count = count
        self.environment = {**os.environ, "KS_HOSTS_DIR": directory, "KS_HOSTS_NAME": name}
        self.run("up", str(count), "--mtu", str(mtu))
        self.table = {row["host"]: row for row in json.loads(self.run("list", "--json"))}

    def run(self, *arguments: str) -> str:
        """One command of `scripts/hosts`; its output."""
        done = subprocess.run(
            [str(SCRIPT), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise HostsError(done.stderr.strip())
        return done.stdout

    def command(self, number: int, argv: list) -> list:
        """The command line that runs `argv` in a host."""
        return [str(SCRIPT), "exec", str(number), "--", *map(str, argv)]

    def directory(self, number: int) -> Path:
        """The host's HOME, which is visible from outside, too."""
        return Path(self.table[number]["dir"])

    def address(self, number: int) -> str:
        return self.table[number]["address"]

    def cut(self, number: int) -> None:
        self.run("cut", str(number))

    def mend(self, number: int) -> None:
        self.run("mend", str(number))

    def rate(self, number: int, mbit: "int | str") -> None:
        self.run("rate", str(number), str(mbit))

    def bytes(self, number: int) -> dict:
        """What crossed the host's link so far: `received`, `sent`."""
        return json.loads(self.run("bytes", str(number)))

    def processes(self, number: int) -> dict:
        """pid -> command line of what runs in the host, but for what holds the host itself."""
        holder = self.table[number]["pid"]
        network = os.readlink(f"/proc/{holder}/ns/net")
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "ns/net") == network and int(entry.name) != holder:
                    found[int(entry.name)] = command_line(int(entry.name))
            except OSError:
                continue
        # A zombie has no command line and no namespace of use; it is its parent's to reap.
        return {pid: line for pid, line in found.items() if line}

    def mounts(self, number: int) -> list:
        """The mount points of type `fuse.*` in the host."""
        text = Path(f"/proc/{self.table[number]['pid']}/mountinfo").read_text()
        return [line.split()[4] for line in text.splitlines() if line.split(" - ")[1].startswith("fuse.")]

    def down(self) -> None:
        self.run("down")


def command_line(pid: int) -> str:
    """The process's command line, or nothing when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def processes_with(text: str) -> dict:
    """pid -> command line of this machine's processes whose command line has `text` in it."""
    lines = {int(entry.name): command_line(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
    return {pid: line for pid, line in lines.items() if text in line and pid != os.getpid()}
