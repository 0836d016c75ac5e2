"""Other network file systems over the same link: the same reads through them. Neither encrypts anything here."""

import contextlib
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness import wait_for

from . import inside
from .files import run_inside
from .pair import CPU, RANDOM_READS, SEQUENTIAL, SMALL, Cost, Pair
from .report import Report

SFTP_PORT = 7200
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
GLUSTER_PORT = 7300
MOUNT = "/tmp/other"

BRICK = """
volume files
  type storage/posix
  option directory {directory}
end-volume
volume locks
  type features/locks
  subvolumes files
end-volume
volume threads
  type performance/io-threads
  subvolumes locks
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.listen-port {port}
  option auth.addr.threads.allow *
  subvolumes threads
end-volume
"""

VOLUME = """
volume remote
  type protocol/client
  option transport-type tcp
  option remote-host {address}
  option remote-port {port}
  option remote-subvolume threads
end-volume
volume read-ahead
  type performance/read-ahead
  subvolumes remote
end-volume
volume quick-read
  type performance/quick-read
  subvolumes read-ahead
end-volume
volume stat
  type performance/md-cache
  subvolumes quick-read
end-volume
"""


@contextlib.contextmanager
def child(node, argv: list, **options) -> Iterator[subprocess.Popen]:
    """A process of the node's host, while the context lasts."""
    process = node.spawn(argv, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@contextlib.contextmanager
def mounted(node, argv: list) -> Iterator[None]:
    """`argv` mounts at MOUNT in the node's host."""
    node.exec(["mkdir", "-p", MOUNT])
    node.exec(argv)
    try:
        wait_for(lambda: node.exec(["mountpoint", "-q", MOUNT], check=False).status == 0, 20, f"{argv[0]} at {MOUNT}")
        yield
    finally:
        node.exec(["umount", "-l", MOUNT], check=False)


def running(node, name: str) -> list:
    """The processes of that name in the node's host."""
    found = [pid for pid, line in node.hosts.processes(node.number).items() if line.startswith(name)]
    assert found, f"no process {name} in {node.name}"
    return found


def read_through(report: Report, pair: Pair, name: str, cost: Cost) -> None:
    """Every row that there is of ours, through what is mounted at MOUNT."""
    reader = pair.reader

    def beside(what: str, ours: str, value: float, unit: str) -> None:
        report.add(f"{name}: {what}", value, unit, ("KitchenSink", report.value_of(ours)))

    speeds = []
    for turn in range(report.rounds):
        done = cost.of(lambda turn=turn: run_inside(reader, "read_whole", f"{MOUNT}/large{turn}"))
        speeds.append(done["bytes"] / done["seconds"] / 1e6)
    beside("read, cold, sequential", SEQUENTIAL, statistics.median(speeds), "MB/s")
    for side in cost.sides:
        ours = f"{SEQUENTIAL}, {CPU} {side}"
        beside(f"read, cold, sequential, {CPU} {side}", ours, cost.per_gib(side), "s/GiB")
    lone = run_inside(reader, "read_random", f"{MOUNT}/random0", RANDOM_READS)
    beside("read, cold, random 4 KiB, p50", "remote read, cold, random 4 KiB, p50", lone["p50"] * 1e3, "ms")
    before = pair.received()
    listed = run_inside(reader, "run", "h5ls", "-r", f"{MOUNT}/hdf0")
    beside("h5ls -r, 1 GiB", "h5ls -r, remote 1 GiB", listed["seconds"], "s")
    beside("h5ls -r, moved", "h5ls -r, remote 1 GiB, moved", (pair.received() - before) / 1e6, "MB")
    small = run_inside(reader, "read_files", f"{MOUNT}/small0")
    beside("2,000 files of 16 KiB, cold", SMALL, small["files"] / small["seconds"], "/s")


def beside_sshfs(report: Report, pair: Pair) -> None:
    """sshfs without ssh."""
    name, holder = "sshfs, not encrypted", pair.holder
    if not report.wants(name) or not shutil.which("sshfs") or not os.path.exists(SFTP_SERVER):
        return
    serve = ["python3", inside.__file__, "serve_sftp", str(SFTP_PORT)]
    with child(holder, serve, stdout=subprocess.PIPE) as server:
        server.stdout.readline()
        source = f"{holder.name}:{holder.datadir}"
        with mounted(pair.reader, ["sshfs", "-o", f"directport={SFTP_PORT}", source, MOUNT]):
            cost = Cost(running(pair.reader, "sshfs "), running(holder, "sftp-server"))
            read_through(report, pair, name, cost)


def beside_glusterfs(report: Report, pair: Pair) -> None:
    """One brick with copies of the files, as it keeps records of its own among them."""
    name, holder, reader = "GlusterFS, not encrypted", pair.holder, pair.reader
    if not report.wants(name) or not shutil.which("glusterfsd"):
        return
    brick = holder.home / "brick"
    brick.mkdir()
    wanted = [*(f"large{turn}" for turn in range(report.rounds)), "random0", "hdf0", "small0"]
    for file in wanted:
        subprocess.run(["cp", "-r", holder.datadir / file, brick / file], check=True)
    served, volume = holder.home / "brick.vol", Path(reader.home) / "volume.vol"
    served.write_text(BRICK.format(directory=brick, port=GLUSTER_PORT))
    volume.write_text(VOLUME.format(address=holder.address, port=GLUSTER_PORT))
    serve = [
        "glusterfsd",
        "--no-daemon",
        "-f",
        served,
        "-l",
        holder.home / "brick.log",
        "-p",
        holder.home / "brick.pid",
    ]
    with child(holder, serve):
        pid = wait_for(lambda: running(holder, "glusterfsd "), 10, "glusterfsd")
        with mounted(reader, ["glusterfs", "-f", volume, "-l", reader.home / "volume.log", MOUNT]):
            read_through(report, pair, name, Cost(running(reader, "glusterfs "), pid))
