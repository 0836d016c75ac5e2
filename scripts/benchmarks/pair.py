"""Two hosts with a node each, bare streams between them, and what CPU time reading takes."""

import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Callable

from harness import REPOSITORY, Cluster, wait_for
from harness.data import MIB, noise, write_hdf5, write_noise

GIB = 1024 * MIB
LARGE_BYTES = 512 * MIB
SMALL_FILES = 2000
LISTED_FILES = 10_000
STREAM_PORT = 7100
RANDOM_READS = 500
# What other measurements are told beside.
SEQUENTIAL = "remote read, cold, sequential"
CPU = "CPU of the"
SMALL = "2,000 remote files of 16 KiB, cold"
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
