"""Calls, beside Python's own ProcessPoolExecutor, which stays on one machine and in one process's hands."""

import json
import textwrap

from harness import Cluster
from harness.data import MIB, noise
from harness.node import REPLY

from .files import at_rest
from .report import Report, alternate

FILES = 100
FILE_BYTES = MIB

COMMON = """
def percentiles(seconds):
    ordered = sorted(seconds)
    return [ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]]
def timed(function, count):
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return percentiles(taken)
def nothing(*_):
    return None
def same(value):
    return value
def count(array):
    return array.nbytes
"""

OURS = """
def one(function, *arguments):
    return c.call(function, *arguments, _async=False)
def many(function, items):
    for item in items:
        c.bc(function, item)
    c.execute()
    return c.br()
for _ in range(100):
    one(nothing)
"""

# The functions have to be in a module that the pool's processes can import.
THEIRS = """
from concurrent.futures import ProcessPoolExecutor
pool = ProcessPoolExecutor(2)
def one(function, *arguments):
    return pool.submit(function, *arguments).result()
def many(function, items):
    return list(pool.map(function, items))
for _ in range(100):
    one(nothing)
"""

LATENCY = "reply(timed(lambda: one(nothing), 2000))"
LATENCY_1K = "reply(timed(lambda: one(same, bytes(1024)), 2000))"
BULK = """
many(nothing, range(1000))
began = time.perf_counter()
assert len(many(nothing, range(10_000))) == 10_000
reply(10_000 / (time.perf_counter() - began))
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
for _ in range(4):
    one(count, array)
reply(timed(lambda: one(count, array), 20)[0])
"""
SCATTERED_AGAIN = """
import numpy
handle = c.scatter(numpy.ones(8 << 20))
for _ in range(4):
    one(count, handle)
reply(timed(lambda: one(count, handle), 100)[0])
"""
REMOTE = "one = lambda: c.call(nothing, _node='host2', _async=False)\none()\nreply(timed(one, 1000))"
DEATH = """
def die(path):
    import os, signal, time
    with open(path, "w") as file:
        file.write(repr(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)
taken = []
for turn in range(5):
    path = f"/ks/death{turn}"
    try:
        c.call(die, path, _async=False)
    except errors.WorkerCrashed:
        taken.append(time.time() - float(open(path).read()))
reply(percentiles(taken)[0])
"""
WHERE_FILES_ARE = """
def size(path):
    return len(open(path, "rb").read())
jobs = [c.call(size, f"/ks/host{number % 3 + 1}/{number}") for number in range(100)]
assert {c.result(job, timeout=60) for job in jobs} == {1 << 20}
reply([job.placement.node == f"host{number % 3 + 1}" for number, job in enumerate(jobs)].count(True))
"""


def theirs(node, code: str):
    """The same code over a ProcessPoolExecutor, in the node's host."""
    body = textwrap.indent(THEIRS + code, "    ")
    return ask_plain(node, COMMON + "if __name__ == '__main__':\n" + body)


def ask_plain(node, code: str):
    done = node.python(code, timeout=120)
    (line,) = [line for line in done.text.splitlines() if line.startswith(REPLY)]
    return json.loads(line[len(REPLY) :])


def ours(node, code: str):
    return node.ask(COMMON + OURS + code, timeout=120)


def compare(report: Report, name: str, code: str, scale: float, unit: str, pick=lambda value: value, **target) -> None:
    """One figure: the same code over our calls and over theirs, in turns."""
    if not report.wants(name):
        return
    try:
        mine, other = alternate(
            report.rounds,
            lambda: pick(ours(report.node, code)) * scale,
            lambda: pick(theirs(report.node, code)) * scale,
        )
        report.add(name, mine, unit, ("ProcessPoolExecutor", other), **target)
    except AssertionError as error:
        report.failed(name, error)


def on_one_node(report: Report) -> None:
    with Cluster(1) as cluster:
        report.node = cluster.start(workers=2)[1]
        compare(report, "no-op call, p50", LATENCY, 1e6, "µs", lambda pair: pair[0], ratio=("<=", 2))
        compare(report, "no-op call, p99", LATENCY, 1e6, "µs", lambda pair: pair[1])
        compare(report, "call with 1 KiB there and back, p50", LATENCY_1K, 1e6, "µs", lambda pair: pair[0])
        compare(report, "10,000 no-op calls in bulk", BULK, 1, "/s", ratio=(">=", 1))
        compare(report, "64 MiB array to a worker", ARRAY, 1e3, "ms", value_target=("<=", 32))
        compare(report, "64 MiB array to a worker, again", ARRAY_AGAIN, 1e3, "ms", value_target=("<=", 1))
        if report.wants("64 MiB scattered, used again"):
            again = ours(report.node, SCATTERED_AGAIN) * 1e3
            report.add("64 MiB scattered, used again", again, "ms", value_target=("<=", 1))
        at_rest(report, report.node, "after calls")


def over_the_network(report: Report) -> None:
    with Cluster(3) as cluster:
        for number in range(FILES):
            cluster[number % 3 + 1].put(f"host{number % 3 + 1}/{number}", noise(FILE_BYTES, seed=number))
        cluster.start(workers=2)
        node = cluster[1]
        p50, p99 = ours(node, REMOTE)
        report.add("no-op call on another node, p50", p50 * 1e6, "µs")
        report.add("no-op call on another node, p99", p99 * 1e6, "µs")
        report.add("wait after a worker's death", ours(node, DEATH) * 1e3, "ms", value_target=("<=", 50))
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
