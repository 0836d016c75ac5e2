"""Calls, beside Python's own ProcessPoolExecutor, which stays on one machine and in one process's hands, and beside the
libraries that people use for this today."""

import time

from harness import Cluster
from harness.data import MIB, noise, write_noise

from .files import at_rest
from .pair import LARGE_BYTES, Pair, Streams
from .peers import COMMON, LIBRARIES, PING_PONG, POOL, WARM
from .report import Report, alternate

FILES = 100
FILE_BYTES = MIB

OURS = """
from kitchensink.errors import WorkerCrashed as workers_die
keep = c.scatter
def one(function, *arguments):
    return c.call(function, *arguments, _async=False)
def many(function, items):
    for item in items:
        c.bc(function, item)
    c.execute()
    return c.br()
"""

LATENCY = "reply(timed(lambda: one(nothing), 2000))\n"
LATENCY_1K = "reply(timed(lambda: one(same, bytes(1024)), 2000))\n"
BULK = """
many(nothing, range(1000))
began = time.perf_counter()
assert len(many(nothing, range(10_000))) == 10_000
reply(10_000 / (time.perf_counter() - began))
"""
BULK_1K = """
items = [bytes([number % 256]) * 1024 for number in range(10_000)]
many(same, items[:1000])
began = time.perf_counter()
assert many(same, items) == items
reply(10_000 / (time.perf_counter() - began))
"""
# The rates of 10,000 and of 100,000 calls, and the client's memory (KiB) at its largest.
QUEUED = """
import re
rates = []
for calls in (10_000, 100_000):
    began = time.perf_counter()
    assert len(many(nothing, range(calls))) == calls
    rates.append(calls / (time.perf_counter() - began))
# Not getrusage: a process starts with the peak of the one that started it.
peak = re.search("VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())
reply([*rates, int(peak[1])])
"""
ARRAY = """
import numpy
array = numpy.ones(8 << 20)
one(count, array[:10])
taken = []
for turn in range(5):
    array[0] = turn
    began = time.perf_counter()
    assert one(count, array) == 64 << 20
    taken.append(time.perf_counter() - began)
reply(percentiles(taken)[0])
"""
ARRAY_AGAIN = """
import numpy
array = numpy.ones(8 << 20)
kept = keep(array) if "keep" in globals() else array
for _ in range(4):
    one(count, kept)
reply(timed(lambda: one(count, kept), 20)[0])
"""
REMOTE = "one = lambda: c.call(nothing, _node='host2', _async=False)\none()\nreply(timed(one, 1000))\n"
# Seconds from each death to the error, and how often a killed call ran.
DEATH = """
taken, ran = [], []
for turn in range(3):
    path = f"{directory}/death{turn}-{os.getpid()}"
    try:
        one(die, path)
    except workers_die:
        deaths = [float(line) for line in open(path)]
        taken.append(time.time() - deaths[0])
        ran.append(len(deaths))
reply([percentiles(taken)[0], max(ran)])
"""
WHERE_FILES_ARE = """
def size(path):
    return len(open(path, "rb").read())
jobs = [c.call(size, f"/ks/host{number % 3 + 1}/{number}") for number in range(100)]
assert {c.result(job, timeout=60) for job in jobs} == {1 << 20}
reply([job.placement.node == f"host{number % 3 + 1}" for number, job in enumerate(jobs)].count(True))
"""
FIRST_RESULT = "reply(c.call(abs, -1, _async=False))"


def ours(node, code: str):
    return node.ask(COMMON + OURS + WARM + code, timeout=120)


def first(values):
    return values[0]


def second(values):
    return values[1]


def itself(value):
    return value


# Name, code, what of its answer, scale, unit, and what has to hold.
ROWS = [
    ("no-op call, p50", LATENCY, first, 1e6, "µs", {"ratio": ("<=", 2)}),
    ("no-op call, p99", LATENCY, second, 1e6, "µs", {}),
    ("call with 1 KiB there and back, p50", LATENCY_1K, first, 1e6, "µs", {}),
    ("10,000 no-op calls in bulk", BULK, itself, 1, "/s", {"ratio": (">=", 1)}),
    ("10,000 calls in bulk, 1 KiB there and back", BULK_1K, itself, 1, "/s", {}),
    ("64 MiB array to a worker", ARRAY, itself, 1e3, "ms", {"value_target": ("<=", 32)}),
    ("64 MiB array to a worker, again", ARRAY_AGAIN, itself, 1e3, "ms", {"value_target": ("<=", 1)}),
]
# What a whole library is asked once: its answers take long.
BESIDE = ROWS[0], ROWS[3], ROWS[5], ROWS[6]


def beside_the_pool(report: Report, node) -> None:
    """The same code over our calls and over theirs, in turns."""
    for name, code, pick, scale, unit, target in ROWS:
        if not report.wants(name):
            continue
        try:
            mine, other = alternate(
                report.rounds,
                lambda code=code, pick=pick: pick(ours(node, code)),
                lambda code=code, pick=pick: pick(POOL.ask(node, code)),
            )
            report.add(name, mine * scale, unit, (POOL.name, other * scale), **target)
        except AssertionError as error:
            report.failed(name, error)
    bulk, small = (report.value_of(ROWS[row][0]) for row in (3, 4))
    if bulk and small:
        report.add("1 KiB calls in bulk, beside no-op calls", small, "/s", ("no-op", bulk), ratio=(">=", 0.8))
    report.add("bare ping-pong over a socket, p50", PING_PONG.ask(node, LATENCY)[0] * 1e6, "µs")


def beside_libraries(report: Report, node) -> None:
    for peer in LIBRARIES:
        if not report.wants(peer.name):
            continue
        try:
            peer.install()
            for name, code, pick, scale, unit, _ in BESIDE:
                known = report.value_of(name)
                against = ("KitchenSink", known) if known is not None else None
                report.add(f"{peer.name}: {name}", pick(peer.ask(node, code)) * scale, unit, against)
            if "workers_die" in peer.preamble:
                waited, ran = peer.ask(node, f"directory = {str(node.home)!r}\n{DEATH}")
                report.add(f"{peer.name}: wait after a worker's death", waited * 1e3, "ms")
                report.add(f"{peer.name}: times that the killed call ran", ran, "")
        except (AssertionError, OSError) as error:
            report.failed(peer.name, error)


def queued(report: Report, node) -> None:
    name = "100,000 calls in bulk"
    if report.wants(name):
        few, many, memory = ours(node, QUEUED)
        report.add(name, many, "/s", ("10,000 of them", few), ratio=(">=", 0.8))
        report.add(f"{name}, the client's memory", memory / 1024, "MiB", value_target=("<=", 300))


def on_one_node(report: Report) -> None:
    with Cluster(1) as cluster:
        began = time.monotonic()
        node = cluster.start(workers=2)[1]
        node.ask(FIRST_RESULT)
        report.add("from ks mount to the first result", time.monotonic() - began, "s", value_target=("<=", 2))
        for step in (beside_the_pool, queued, beside_libraries):
            try:
                step(report, node)
            except AssertionError as error:
                report.failed(step.__name__, error)
        at_rest(report, node, "after calls")


def array_over_the_network(report: Report, cluster: Cluster) -> None:
    """To a worker of another node, beside a bare stream between the same hosts."""
    name = "64 MiB array to a worker of another node"
    if not report.wants(name):
        return
    code = (
        "def one(function, *arguments):\n    return c.call(function, *arguments, _node='host2', _async=False)\n" + ARRAY
    )
    with Streams(Pair(cluster, 1)) as streams:
        seconds, bare = alternate(report.rounds, lambda: ours(cluster[1], code), lambda: streams.speed("raw-quic"))
    report.add(name, 64 * MIB / seconds / 1e6, "MB/s", ("bare quinn stream", bare), ratio=(">=", 0.8))


def over_the_network(report: Report) -> None:
    with Cluster(3) as cluster:
        for number in range(FILES):
            cluster[number % 3 + 1].put(f"host{number % 3 + 1}/{number}", noise(FILE_BYTES, seed=number))
        write_noise(cluster[2].datadir / "large0", LARGE_BYTES)
        cluster.start(workers=2)
        node = cluster[1]
        p50, p99 = ours(node, REMOTE)
        report.add("no-op call on another node, p50", p50 * 1e6, "µs")
        report.add("no-op call on another node, p99", p99 * 1e6, "µs")
        waited, ran = ours(node, f"directory = '/ks'\n{DEATH}")
        report.add("wait after a worker's death", waited * 1e3, "ms", value_target=("<=", 50))
        report.add("times that the killed call ran", ran, "", value_target=("<=", 1))
        array_over_the_network(report, cluster)
        before = cluster.link_bytes()
        there = ours(node, WHERE_FILES_ARE)
        moved = (cluster.link_bytes() - before) / (FILES * FILE_BYTES)
        report.add("100 files on 3 nodes: calls where the file is", there, "of 100", value_target=(">=", 95))
        report.add("100 files on 3 nodes: bytes moved", moved * 100, "%", value_target=("<=", 1))


def measure(report: Report) -> None:
    for step in (on_one_node, over_the_network):
        try:
            step(report)
        except AssertionError as error:
            report.failed(step.__name__, error)
