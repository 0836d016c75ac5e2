"""Jobs take a bounded part of Redis's memory, however many wait and whatever they carry: beyond it arguments and
results are files, submissions wait, and are refused in the end with what helps. Nothing that was accepted is lost."""

import re
import subprocess

import pytest

from harness import wait_for
from harness.given_redis import GivenRedis

KIB, MIB = 1024, 1024 * 1024
SHORT, LONG = 8_000, 50_000
ARGUMENT_BYTES = 20 * KIB
# Of bodies and of ends (`queue/limits.rs`), and what a record takes beside them.
BUDGET_BYTES = 64 * MIB
RECORD_BYTES = 2 * KIB
BATCH_BYTES = 16 * MIB
MAX_QUEUED = 200


def private_redis(node):
    """Asks the private Redis of a node."""
    directory = node.datadir / ".ks/redis"
    socket = re.search(r'^unixsocket "([^"]+)"', (directory / "redis.conf").read_text(), re.M)[1]
    password = (directory / "password").read_text().strip()

    def ask(*words):
        command = ["redis-cli", "-s", socket, "--no-auth-warning", "-a", password, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    return ask


def used_bytes(ask):
    return int(re.search(r"^used_memory:(\d+)", ask("info", "memory"), re.M)[1])


@pytest.mark.long_timeout(600)
def test_large_arguments_and_results_of_many_calls(make_cluster, long_run):
    """Sent while nobody can run them; then two workers do, and all have their right results, by their ids, too."""
    count = LONG if long_run else SHORT
    cluster = make_cluster(2)
    first, second = cluster.nodes
    first.start("--num-workers", "0")
    ask = private_redis(first)
    before = used_bytes(ask)
    limit = BUDGET_BYTES + BATCH_BYTES + count * RECORD_BYTES
    first.ask(
        f"""
        noise = os.urandom({ARGUMENT_BYTES})
        def turned(data):
            return data[::-1]
        arguments = [noise[:-8] + number.to_bytes(8, "little") for number in range({count})]
        jobs = [c.call(turned, one) for one in arguments]
        c.ping()
        with open("{first.home}/ids", "w") as ids:
            ids.write(noise.hex() + "\\n" + "\\n".join(map(str, jobs)))
        reply(len(jobs))
    """,
        timeout=400,
    )
    queued = used_bytes(ask) - before
    assert int(ask("zcard", "ks:jobs")) == count
    cluster.copy_key(first, second)
    second.start("--join", first.name, "--num-workers", "2")
    wrong = first.ask(
        f"""
        noise, *jobs = open("{first.home}/ids").read().split()
        noise = bytes.fromhex(noise)
        wrong = 0
        for number, job in enumerate(jobs):
            expected = noise[:-8] + number.to_bytes(8, "little")
            wrong += c.result(job, timeout=120) != expected[::-1]
        reply(wrong)
    """,
        timeout=400,
    )
    assert wrong == 0
    wait_for(lambda: int(ask("zcard", "ks:jobs")) == 0, 20)
    ended = used_bytes(ask) - before
    print(f"\n{count} calls of {ARGUMENT_BYTES} bytes: Redis {queued >> 20} MiB queued, {ended >> 20} MiB ended")
    assert queued < limit and ended < limit
    assert int(ask("get", "ks:bodies") or 0) == 0


def test_more_calls_than_may_wait(make_cluster):
    """They are taken as others end; where none ends, they are refused, at the call, with what helps."""
    cluster = make_cluster(2)
    first, second = cluster.nodes
    first.start("--num-workers", "0", "--max-queued", MAX_QUEUED)
    ask = private_redis(first)
    refused = first.ask(
        f"""
        jobs = [c.call(abs, -number) for number in range({MAX_QUEUED} + 50)]
        began = time.monotonic()
        error = jobs[-1].exception(timeout=60)
        going = [str(job) for job in jobs if not job.done()]
        reply([type(error).__name__, str(error), time.monotonic() - began, going])
    """,
        timeout=90,
    )
    kind, message, seconds, going = refused
    assert kind == "TooManyJobs" and "--max-queued" in message and "ks cancel" in message
    assert 15 < seconds < 40 and len(going) == MAX_QUEUED == int(ask("zcard", "ks:jobs"))
    cluster.copy_key(first, second)
    second.start("--join", first.name, "--num-workers", "2")
    # What was accepted runs; and many times more than may wait go through, a little slower.
    code = f"""
        ended = [c.result(job, timeout=60) for job in {going!r}]
        many = c.map(abs, [-number for number in range({MAX_QUEUED} * 10)])
        reply([ended, many == list(range({MAX_QUEUED} * 10))])
    """
    ended, right = first.ask(code, timeout=120)
    assert sorted(ended) == list(range(MAX_QUEUED)) and right


def test_a_redis_with_no_memory_left(make_cluster):
    """It refuses what would take more of it (`maxmemory`): calls are refused by name, those that run end."""
    cluster = make_cluster(1)
    (node,) = cluster.nodes
    with GivenRedis(cluster) as redis:
        redis.start([node])
        slow = node.ask("reply(str(c.call(lambda: time.sleep(4) or 'ended')))")
        wait_for(lambda: any(row["state"] == "busy" for row in node.status()["calls"]["workers"]), 10)
        redis.ask("config", "set", "maxmemory", "1mb")
        try:
            kind, message = node.ask(
                """
                try:
                    reply(["", c.result(c.call(abs, -1), timeout=60)])
                except Exception as error:
                    reply([type(error).__name__, str(error)])
            """,
                timeout=90,
            )
            assert kind == "TooManyJobs" and "maxmemory" in message
            found = node.ks("doctor", check=False)
            assert found.status == 1 and "OOM" in found.text and "raise maxmemory" in found.text
            assert node.ask(f"reply(c.result({slow!r}, timeout=30))") == "ended"
        finally:
            redis.ask("config", "set", "maxmemory", "0")
        assert node.ask("reply(c.result(c.call(abs, -2), timeout=30))") == 2
