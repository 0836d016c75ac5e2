"""Local files through /ks beside the same files without it, what making and listing costs, and the daemon's memory."""

import itertools
import json
import shutil
import time
from pathlib import Path

from harness import REPOSITORY, Cluster
from harness.data import MIB, write_noise

from . import inside
from .report import Report, alternate

LOCAL_BYTES = 1024 * MIB
WRITTEN_BYTES = 512 * MIB
FIO_SECONDS = 2
REST_SECONDS = 5
OPENS = 5000
MANY_FILES = 20_000
FILES_EACH = 200


def run_inside(node, name: str, *arguments, timeout: float = 120) -> dict:
    """One of the programs of `inside`, in the node's host."""
    return json.loads(node.exec(["python3", inside.__file__, name, *arguments], timeout=timeout).stdout)


def fio(node, path: str, *flags: str) -> dict:
    argv = ["fio", "--name=bench", f"--filename={path}", "--readonly", "--output-format=json", "--time_based"]
    argv += [f"--runtime={FIO_SECONDS}", "--invalidate=0", "--thread", *flags]
    return json.loads(node.exec(argv, timeout=60).stdout)["jobs"][0]["read"]


def local_reads(report: Report, node) -> None:
    direct, through = str(node.datadir / "local"), "/ks/local"
    run_inside(node, "read_whole", direct)
    patterns = [
        ("local read, sequential", ["--rw=read", "--bs=1M", "--ioengine=psync"], "bw_bytes", 1e6, "MB/s", 0.95),
        ("local read, random 4 KiB", ["--rw=randread", "--bs=4k", "--ioengine=psync"], "iops", 1, "/s", 0.9),
        ("local read, mmap", ["--rw=read", "--bs=4k", "--ioengine=mmap"], "bw_bytes", 1e6, "MB/s", 0.9),
    ]
    for name, flags, key, scale, unit, target in patterns:
        if report.wants(name):
            ours, plain = alternate(
                report.rounds,
                lambda flags=flags, key=key: fio(node, through, *flags)[key],
                lambda flags=flags, key=key: fio(node, direct, *flags)[key],
            )
            report.add(name, ours / scale, unit, ("without /ks", plain / scale), ratio=(">=", target))
    name = "local open+close"
    if report.wants(name):
        ours, plain = alternate(
            report.rounds,
            lambda: run_inside(node, "open_close", through, OPENS)["seconds"] * 1e6,
            lambda: run_inside(node, "open_close", direct, OPENS)["seconds"] * 1e6,
        )
        report.add(name, ours, "µs", ("without /ks", plain))


def created_files(report: Report, node) -> None:
    name = "2,000 files of 16 KiB created"
    if not report.wants(name):
        return
    plain = node.home / "plain"
    plain.mkdir()

    turns = itertools.count()

    def rate(base):
        done = run_inside(node, "create_files", f"{base}/made{next(turns)}", 2000, 16384)
        return done["files"] / done["seconds"]

    ours, without = alternate(report.rounds, lambda: rate("/ks"), lambda: rate(plain))
    report.add(name, ours, "/s", ("without /ks", without), value_target=(">=", 5000))


def written_file(report: Report, node) -> None:
    name = "local write, sequential"
    if not report.wants(name):
        return
    turns = itertools.count()

    def speed(base):
        done = run_inside(node, "write_whole", f"{base}/written{next(turns)}", WRITTEN_BYTES)
        return WRITTEN_BYTES / done["seconds"] / 1e6

    ours, without = alternate(report.rounds, lambda: speed("/ks"), lambda: speed(node.home))
    report.add(name, ours, "MB/s", ("without /ks", without), ratio=(">=", 0.8))


def git_status(report: Report, node) -> None:
    """In a checkout of this project that was looked at before."""
    name = "git status in a checkout of this project, warm"
    if not report.wants(name):
        return

    def seconds(base):
        return run_inside(node, "run", "git", "-C", f"{base}/checkout", "status")["seconds"]

    for base in ("/ks", node.home):
        node.exec(["git", "clone", "--quiet", REPOSITORY, f"{base}/checkout"])
        seconds(base)
    ours, without = alternate(report.rounds, lambda: seconds("/ks"), lambda: seconds(node.home))
    report.add(name, ours * 1e3, "ms", ("without /ks", without * 1e3), ratio=("<=", 3))


def wake_ups(pid: int) -> dict:
    """How often each of the process's threads has been woken up so far."""
    counts = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                counts[task.name] = int(line.split()[1])
    return counts


def at_rest(report: Report, node, name: str) -> None:
    time.sleep(2)
    before = wake_ups(node.pid)
    time.sleep(REST_SECONDS)
    woken = sum(count - before.get(thread, 0) for thread, count in wake_ups(node.pid).items())
    report.add(f"wake-ups at rest, {name}", woken / REST_SECONDS, "/s")
    report.add(f"memory at rest, {name}", node.status()["memory_bytes"] / MIB, "MiB", value_target=("<=", 50))


def many_files(report: Report) -> None:
    """How long a node takes to start on a data directory of many files: those it has never seen, and those it knows."""
    first, again = f"start on {MANY_FILES:,} files, new", f"start on {MANY_FILES:,} files, known"
    if not (report.wants(first) or report.wants(again)):
        return

    def seconds(node) -> float:
        begun = time.monotonic()
        node.exec(node.mount_command("--num-workers", 1), timeout=120)
        taken = time.monotonic() - begun
        node.pid = node.status()["pid"]
        return taken

    with Cluster(1) as cluster:
        node = cluster[1]
        empty = seconds(node)
        node.stop()
        for number in range(MANY_FILES):
            directory = node.datadir / f"directory{number // FILES_EACH}"
            if number % FILES_EACH == 0:
                directory.mkdir()
            (directory / f"file{number}").write_bytes(b"a small file")
        for name in (first, again):
            taken = seconds(node)
            # Ten seconds for a million.
            each = (taken - empty) * 1e6 / MANY_FILES
            report.add(name, each, "µs a file", value_target=("<=", 10))
            if name == again:
                report.add(
                    f"memory, {MANY_FILES:,} files known",
                    node.status()["memory_bytes"] / MIB,
                    "MiB",
                    value_target=("<=", 200),
                )
            node.stop()
        # The end of the hosts has a deadline, and removes what is left.
        for directory in node.datadir.glob("directory*"):
            shutil.rmtree(directory)


def measure(report: Report) -> None:
    many_files(report)
    with Cluster(1) as cluster:
        node = cluster[1]
        write_noise(node.datadir / "local", LOCAL_BYTES)
        cluster.start()
        for step in (local_reads, written_file, created_files, git_status):
            try:
                step(report, node)
            except AssertionError as error:
                report.failed(step.__name__, error)
        at_rest(report, node, "after the files")
