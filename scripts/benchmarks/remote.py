"""Remote files: the first read of them, beside a bare stream between the same hosts, and beside other file systems."""

import itertools
import os
import statistics
from pathlib import Path

from harness import Cluster
from harness.data import MIB, write_noise

from .file_systems import beside_glusterfs, beside_sshfs
from .files import at_rest, run_inside
from .pair import CPU, GIB, LARGE_BYTES, LISTED_FILES, RANDOM_READS, SEQUENTIAL, SMALL, Cost, Pair, Streams
from .report import Report, alternate

QUESTION = "question and answer between nodes, p50"
PAGE_CACHE_BYTES_MAX = 32 * GIB
LINK_BYTES = 128 * MIB
LINK_MBIT = 400


def sequential(report: Report, pair: Pair) -> None:
    cost = Cost([pair.reader.pid], [pair.holder.pid])

    def ours() -> float:
        done = cost.of(lambda: run_inside(pair.reader, "read_whole", f"/ks/{pair.fresh('large')}"))
        assert done["bytes"] == LARGE_BYTES
        return done["bytes"] / done["seconds"] / 1e6

    name = SEQUENTIAL
    with Streams(pair) as streams:
        speed, quic, tcp, blocks = alternate(
            report.rounds,
            ours,
            lambda: streams.speed("raw-quic"),
            lambda: streams.speed("raw-tcp"),
            lambda: streams.speed("blocks", "--out", "blocks"),
        )
        ping = streams.fetch("ping", "--count", "2000")
    report.add(name, speed, "MB/s", ("bare quinn stream", quic), ratio=(">=", 0.8))
    report.add(f"{name}, beside TCP", speed, "MB/s", ("bare TCP stream, not encrypted", tcp))
    report.add(f"{name}, beside blocks alone", speed, "MB/s", ("verified blocks into a file, no mount", blocks))
    for side in cost.sides:
        report.add(f"{name}, {CPU} {side}", cost.per_gib(side), "s/GiB")
    report.add(QUESTION, ping["p50_microseconds"], "µs")


def first_byte(report: Report, pair: Pair) -> None:
    taken = []
    for _ in range(report.rounds):
        directory = f"/ks/{pair.fresh('first')}"
        taken.append(run_inside(pair.reader, "first_bytes", *(f"{directory}/{n}" for n in range(20)))["p50"])
    report.add("remote read, time to first byte, p50", statistics.median(taken) * 1e3, "ms", value_target=("<=", 3))


def random_reads(report: Report, pair: Pair) -> None:
    taken, moved = [], []
    for _ in range(report.rounds):
        before = pair.received()
        taken.append(run_inside(pair.reader, "read_random", f"/ks/{pair.fresh('random')}", RANDOM_READS))
        moved.append((pair.received() - before) / (RANDOM_READS * 4096))
    p50 = statistics.median(one["p50"] for one in taken)
    p99 = statistics.median(one["p99"] for one in taken)
    name = "remote read, cold, random 4 KiB"
    report.add(f"{name}, p50", p50 * 1e3, "ms", value_target=("<=", 0.3))
    if question := report.value_of(QUESTION):
        beside = ("question and answer", question / 1e3)
        report.add(f"{name}, p50, beside a bare round trip", p50 * 1e3, "ms", beside, ratio=("<=", 2))
    report.add(f"{name}, p99", p99 * 1e3, "ms")
    report.add(f"{name}, moved per asked", statistics.median(moved), "x", value_target=("<=", 5))


def hdf5(report: Report, pair: Pair) -> None:
    name = "h5ls -r, remote 1 GiB"
    taken, moved = [], []
    for _ in range(report.rounds):
        before = pair.received()
        taken.append(run_inside(pair.reader, "run", "h5ls", "-r", f"/ks/{pair.fresh('hdf')}")["seconds"])
        moved.append(pair.received() - before)
    local = run_inside(pair.holder, "run", "h5ls", "-r", pair.holder.datadir / "hdf0")["seconds"]
    report.add(name, statistics.median(taken), "s", ("on the file itself", local), value_target=("<=", 0.1))
    report.add(f"{name}, moved", statistics.median(moved) / 1e6, "MB", value_target=("<=", 4))


def small_files(report: Report, pair: Pair) -> None:
    rates = []
    for _ in range(report.rounds):
        done = run_inside(pair.reader, "read_files", f"/ks/{pair.fresh('small')}")
        rates.append(done["files"] / done["seconds"])
    report.add(SMALL, statistics.median(rates), "/s", value_target=(">=", 3000))


def listing_rate(node, directory) -> float:
    done = run_inside(node, "run", "ls", "-l", directory)
    assert done["lines"] == LISTED_FILES + 1
    return LISTED_FILES / done["seconds"]


def listings(report: Report, pair: Pair) -> None:
    name = "ls -l of 10,000 files"
    cold, warm, moved, local = [], [], [], []
    for _ in range(report.rounds):
        directory = pair.fresh("listed")
        cold.append(listing_rate(pair.reader, f"/ks/{directory}"))
        before = pair.received()
        warm.append(listing_rate(pair.reader, f"/ks/{directory}"))
        moved.append(pair.received() - before)
        local.append(listing_rate(pair.holder, pair.holder.datadir / directory))
    beside = ("without /ks", statistics.median(local))
    report.add(f"{name}, cold", statistics.median(cold), "/s", beside, value_target=(">=", 50_000))
    report.add(f"{name}, warm", statistics.median(warm), "/s", beside, value_target=(">=", 250_000))
    report.add(f"{name}, warm, moved", statistics.median(moved) / 1e3, "kB")


def two_holders(report: Report) -> None:
    """The same links: one holder's, and those of two."""
    name = f"remote read, cold, sequential, two holders with links of {LINK_MBIT} Mbit/s"
    if not report.wants(name):
        return
    with Cluster(3) as cluster:
        reader, first, second = cluster.nodes
        for turn in range(report.rounds):
            for kind in ("one", "two"):
                write_noise(first.datadir / f"{kind}{turn}", LINK_BYTES, seed=turn)
        cluster.start()
        for turn in range(report.rounds):
            second.ks("fetch", f"/ks/two{turn}", timeout=120)
        for node in (first, second):
            cluster.hosts.rate(node.number, LINK_MBIT)
        turns = {"one": itertools.count(), "two": itertools.count()}

        def speed(kind: str) -> float:
            done = run_inside(reader, "read_whole", f"/ks/{kind}{next(turns[kind])}")
            assert done["bytes"] == LINK_BYTES
            return done["bytes"] / done["seconds"] / 1e6

        two, one = alternate(report.rounds, lambda: speed("two"), lambda: speed("one"))
        report.add(name, two, "MB/s", ("one holder", one), ratio=(">=", 1.3))


def fill_page_cache(directory: Path) -> None:
    """A virtual machine gets its memory from the machine below when it is touched for the first time, which is slower
    than a network. So the page cache is filled with a file of holes: from then on pages are used again, by us and by
    what we are compared with."""
    holes = directory / "holes"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with holes.open("wb") as file:
        file.truncate(min(memory, PAGE_CACHE_BYTES_MAX))
    block = bytearray(MIB)
    with holes.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def measure(report: Report) -> None:
    with Cluster(2) as cluster:
        pair = Pair(cluster, report.rounds)
        fill_page_cache(pair.holder.home)
        pair.fill()
        cluster.start()
        pair.wait_until_hashed()
        for step in (sequential, first_byte, random_reads, hdf5, small_files, listings, beside_sshfs, beside_glusterfs):
            try:
                step(report, pair)
            except AssertionError as error:
                report.failed(step.__name__, error)
        at_rest(report, pair.reader, "after remote reads")
    try:
        two_holders(report)
    except AssertionError as error:
        report.failed(two_holders.__name__, error)
