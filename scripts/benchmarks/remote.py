"""Remote files: the first read of them, beside a bare stream between the same hosts, and beside sshfs."""

import itertools
import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Callable

from harness import REPOSITORY, Cluster, wait_for
from harness.data import MIB, noise, write_hdf5, write_noise

from . import inside
from .files import at_rest, run_inside
from .report import Report, alternate

GIB = 1024 * MIB
LARGE_BYTES = 512 * MIB
PAGE_CACHE_BYTES_MAX = 32 * GIB
LINK_BYTES = 128 * MIB
LINK_MBIT = 400
SEQUENTIAL = "remote read, cold, sequential"
CPU = "CPU of the"
RANDOM_READS = 500
SMALL_FILES = 2000
LISTED_FILES = 10_000
STREAM_PORT = 7100
SFTP_PORT = 7200
SSHFS_MOUNT = "/tmp/sshfs"
THROUGHPUT = REPOSITORY / "target" / "release" / "examples" / "throughput"


class Pair:
    """Two hosts with a node each: host 2 holds, host 1 reads. Every cold read takes a file that was not read before."""

    def __init__(self, cluster: Cluster, rounds: int):
        self.cluster, self.rounds = cluster, rounds
        self.reader, self.holder = cluster[1], cluster[2]
        self.used: dict = {}

    def fill(self) -> None:
        """Everything that will be read, put there before the nodes start."""
        data = self.holder.datadir
        for turn in range(self.rounds):
            write_noise(data / f"large{turn}", LARGE_BYTES, seed=turn)
            write_noise(data / f"random{turn}", LARGE_BYTES // 4, seed=turn + 50)
            for number in range(SMALL_FILES):
                path = data / f"small{turn}" / str(number)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(os.urandom(16384))
            listed = data / f"listed{turn}"
            listed.mkdir()
            for number in range(LISTED_FILES):
                (listed / f"measurement-{number:05}.dat").touch()
            for number in range(20):
                self.holder.put(f"first{turn}/{number}", noise(65536, seed=number))
        write_hdf5(data / "hdf0", datasets=200, dataset_bytes=1024 * MIB // 200 // 65536 * 65536)
        for turn in range(1, self.rounds):
            shutil.copy(data / "hdf0", data / f"hdf{turn}")

    def fresh(self, name: str) -> str:
        """The path of the next file of that name, which nobody has read yet."""
        turn = self.used.get(name, 0)
        self.used[name] = turn + 1
        return f"{name}{turn}"

    def received(self) -> int:
        return self.reader.link_bytes()["received"]

    def wait_until_hashed(self) -> None:
        """What the holder still does in the background would be measured along."""
        for turn in range(self.rounds):
            for name in ("large", "random", "hdf"):
                path = f"/ks/{name}{turn}"
                wait_for(lambda path=path: self.holder.ks_json("where", path)[0]["blake3"], 120, f"the hash of {path}")


class Streams:
    """Bare streams from host 2 to host 1 (`transport/examples/throughput`), while the context lasts."""

    def __init__(self, pair: Pair):
        self.pair = pair
        self.common = [str(THROUGHPUT), "--key", ".config/ks/cluster.key"]

    def __enter__(self) -> "Streams":
        file = self.pair.holder.datadir / "large0"
        argv = [*self.common, "serve", "--listen", f"0.0.0.0:{STREAM_PORT}", "--file", file]
        self.server = self.pair.holder.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()

    def fetch(self, mode: str, *flags: str) -> dict:
        argv = [*self.common, "fetch", "--connect", f"{self.pair.holder.address}:{STREAM_PORT}", "--mode", mode, *flags]
        return json.loads(self.pair.reader.exec(argv).stdout)

    def speed(self, mode: str, *flags: str) -> float:
        return self.fetch(mode, "--count", str(LARGE_BYTES), *flags)["megabytes_per_second"]


def cpu_seconds(pids: list) -> float:
    """What these processes, all of their threads and the kernel on their behalf have used so far."""
    ticks = 0
    for pid in pids:
        # The second field is the name, which may have anything in it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Cost:
    """The CPU seconds that reading takes both sides: the processes that serve the reader, and the holder's."""

    def __init__(self, reader: list, holder: list):
        self.sides = {"reader's side": reader, "holder's side": holder}
        self.used: dict = {side: [] for side in self.sides}

    def of(self, read: Callable[[], dict]) -> dict:
        before = {side: cpu_seconds(pids) for side, pids in self.sides.items()}
        done = read()
        for side, pids in self.sides.items():
            self.used[side].append((cpu_seconds(pids) - before[side]) / (done["bytes"] / GIB))
        return done

    def per_gib(self, side: str) -> float:
        return statistics.median(self.used[side])


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
    report.add("question and answer between nodes, p50", ping["p50_microseconds"], "µs")


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
    report.add("2,000 remote files of 16 KiB, cold", statistics.median(rates), "/s", value_target=(">=", 3000))


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


def running(node, name: str) -> list:
    """The processes of that name in the node's host."""
    found = [pid for pid, line in node.hosts.processes(node.number).items() if line.startswith(name)]
    assert found, f"no process {name} in {node.name}"
    return found


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


def beside_sshfs(report: Report, pair: Pair) -> None:
    """The same reads through sshfs, without ssh: nothing is encrypted."""
    if not shutil.which("sshfs") or not os.path.exists("/usr/lib/openssh/sftp-server"):
        return

    def beside(name: str, ours: str, value: float, unit: str) -> None:
        report.add(f"sshfs, not encrypted: {name}", value, unit, ("KitchenSink", report.value_of(ours)))

    server = pair.holder.spawn(["python3", inside.__file__, "serve_sftp", str(SFTP_PORT)], stdout=subprocess.PIPE)
    reader = pair.reader
    try:
        server.stdout.readline()
        reader.exec(["mkdir", "-p", SSHFS_MOUNT])
        source = f"host2:{pair.holder.datadir}"
        reader.exec(["sshfs", "-o", f"directport={SFTP_PORT}", source, SSHFS_MOUNT])
        try:
            cost = Cost(running(reader, "sshfs "), running(pair.holder, "sftp-server"))
            speeds = []
            for turn in range(report.rounds):
                done = cost.of(lambda turn=turn: run_inside(reader, "read_whole", f"{SSHFS_MOUNT}/large{turn}"))
                speeds.append(done["bytes"] / done["seconds"] / 1e6)
            beside("read, cold, sequential", SEQUENTIAL, statistics.median(speeds), "MB/s")
            for side in cost.sides:
                ours = f"{SEQUENTIAL}, {CPU} {side}"
                beside(f"read, cold, sequential, {CPU} {side}", ours, cost.per_gib(side), "s/GiB")
            lone = run_inside(reader, "read_random", f"{SSHFS_MOUNT}/random0", RANDOM_READS)
            beside("read, cold, random 4 KiB, p50", "remote read, cold, random 4 KiB, p50", lone["p50"] * 1e3, "ms")
            before = pair.received()
            listed = run_inside(reader, "run", "h5ls", "-r", f"{SSHFS_MOUNT}/hdf0")
            beside("h5ls -r, 1 GiB", "h5ls -r, remote 1 GiB", listed["seconds"], "s")
            beside("h5ls -r, moved", "h5ls -r, remote 1 GiB, moved", (pair.received() - before) / 1e6, "MB")
            small = run_inside(reader, "read_files", f"{SSHFS_MOUNT}/small0")
            rate = small["files"] / small["seconds"]
            beside("2,000 files of 16 KiB, cold", "2,000 remote files of 16 KiB, cold", rate, "/s")
        finally:
            reader.exec(["umount", "-l", SSHFS_MOUNT])
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


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
        for step in (sequential, first_byte, random_reads, hdf5, small_files, listings, beside_sshfs):
            try:
                step(report, pair)
            except AssertionError as error:
                report.failed(step.__name__, error)
        at_rest(report, pair.reader, "after remote reads")
    try:
        two_holders(report)
    except AssertionError as error:
        report.failed(two_holders.__name__, error)
