"""What dies, what is cut off, and what is over within its deadline all the same."""

import errno
import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import wait_for
from harness.data import MIB, write_noise
from harness.disk import fill, give_small_disk, make_room
from harness.hosts import command_line

SLOW_MBIT = 200
LARGE_BYTES = 128 * MIB

# Reads a whole file and tells how that ended: its SHA-256, or the errno; and the seconds.
READER = """
import hashlib, json, sys, time
began = time.monotonic()
digest = hashlib.sha256()
try:
    with open(sys.argv[1], "rb", buffering=0) as file:
        print("open", flush=True)
        while block := file.read(1 << 20):
            digest.update(block)
    end = digest.hexdigest()
except OSError as error:
    end = error.errno
print(json.dumps([end, time.monotonic() - began]))
"""


class Reader:
    """A process in a host that reads one file."""

    def __init__(self, node, path):
        self.process = node.spawn(["python3", "-c", READER, path], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "open\n"

    def end(self, timeout):
        """[SHA-256 or errno, seconds] of the whole read."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
        finally:
            self.process.kill()
        return json.loads(output)


def fetched(node):
    return node.read_counters()["bytes_fetched"]


def start_slow_read(cluster, reader, holders, path="large"):
    """A read in full swing, with most of the file still to come."""
    for number in holders:
        cluster.hosts.rate(number, SLOW_MBIT)
    before = fetched(cluster[reader])
    running = Reader(cluster[reader], f"/ks/{path}")
    wait_for(lambda: fetched(cluster[reader]) - before > 8 * MIB, 30, "the read is under way")
    return running


def test_the_only_holder_dies_during_a_read(make_cluster):
    cluster = make_cluster(3)
    write_noise(cluster[3].datadir / "large", LARGE_BYTES)
    cluster.start()
    reader = start_slow_read(cluster, 1, [3])
    cluster[3].kill9()
    began = time.monotonic()
    end, _ = reader.end(timeout=40)
    assert end == errno.EIO
    assert time.monotonic() - began < 10
    assert "large" in cluster[1].log(), "the log names the file"
    # The rest of the tree is as it was, and the file is there again when its holder is.
    cluster[1].shell("echo alive > /ks/alive")
    cluster.hosts.rate(3, "off")
    cluster[3].restart()
    original = noise_sum(cluster[3].datadir / "large")
    wait_for(lambda: original in cluster[1].exec(["sha256sum", "/ks/large"], check=False).text, 30)


def noise_sum(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]


def timed_read(node, path):
    """(its text or None, seconds)."""
    done = node.exec(["cat", f"/ks/{path}"], check=False, timeout=35)
    return (done.text if done.status == 0 else None), done.seconds


def test_reads_of_what_only_a_dead_node_has_end_soon_and_work_when_it_is_back(make_cluster):
    cluster = make_cluster(3)
    for number in range(8):
        cluster[3].put(f"gone/{number}", f"text {number}" + "x" * 20_000)
    cluster.start()
    cluster[2].ks("fetch", "/ks/gone/0")
    wait_for(lambda: set(cluster[1].holders("gone/0")) == {"host2", "host3"}, 20)
    cluster[1].exec(["ls", "-l", "/ks/gone"])
    cluster[3].kill9()
    # Its heart-beat goes on for some seconds in everybody's eyes.
    text, seconds = timed_read(cluster[1], "gone/1")
    assert text is None and seconds < 7, seconds
    wait_for(lambda: cluster[1].status()["nodes"]["alive"] == 2, 15)
    text, seconds = timed_read(cluster[1], "gone/2")
    assert text is None and seconds < 3, seconds
    for number in range(2, 8):
        text, seconds = timed_read(cluster[1], f"gone/{number}")
        assert text is None and seconds < 1, (number, seconds)
    text, seconds = timed_read(cluster[1], "gone/0")
    assert text == "text 0" + "x" * 20_000 and seconds < 1, seconds
    cluster[3].restart()
    for number in range(1, 8):
        wait_for(lambda number=number: (timed_read(cluster[1], f"gone/{number}")[0] or "").startswith("text"), 5)


def test_one_of_two_holders_dies_during_a_read(make_cluster):
    cluster = make_cluster(3)
    sha256 = write_noise(cluster[2].datadir / "large", LARGE_BYTES)
    cluster.start()
    assert sha256 in cluster[3].exec(["sha256sum", "/ks/large"]).text
    wait_for(lambda: set(cluster[1].holders("large")) == {"host2", "host3"}, 20)
    reader = start_slow_read(cluster, 1, [2, 3])
    cluster[2].kill9()
    began = time.monotonic()
    end, _ = reader.end(timeout=60)
    assert end == sha256
    unhindered_s = LARGE_BYTES * 8 / (SLOW_MBIT * 1e6)
    assert time.monotonic() - began < unhindered_s + 10


def test_a_reader_that_waits_can_be_killed(make_cluster):
    cluster = make_cluster(2)
    write_noise(cluster[2].datadir / "large", LARGE_BYTES)
    cluster.start()
    reader = start_slow_read(cluster, 1, [2])
    cluster.hosts.cut(2)
    time.sleep(0.5)
    pids = [pid for pid, line in cluster.hosts.processes(1).items() if line.startswith("python3 -c")]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    wait_for(lambda: not command_line(pids[0]), 5, "the reader is gone")
    reader.process.wait(timeout=5)
    reader.process.stdout.close()
    cluster.hosts.mend(2)


def test_a_cut_link_ends_reads_and_a_mended_one_serves_them(make_cluster):
    cluster = make_cluster(3)
    sha256 = write_noise(cluster[3].datadir / "large", LARGE_BYTES)
    cluster[3].put("small", "small\n")
    cluster.start()
    reader = start_slow_read(cluster, 2, [3])
    cluster.hosts.cut(3)
    end, _ = reader.end(timeout=45)
    assert end == errno.EIO
    cluster[2].exec(["df", "/ks"], timeout=5)
    cluster[2].exec(["stat", "/ks/small"], timeout=5)
    cluster.hosts.mend(3)
    cluster.hosts.rate(3, "off")
    wait_for(lambda: cluster[2].exec(["cat", "/ks/small"], check=False, timeout=40).text == "small\n", 60)
    assert sha256 in cluster[2].exec(["sha256sum", "/ks/large"]).text


@pytest.mark.parametrize("victim", [1, 2])
def test_mounting_again_is_the_whole_repair(make_cluster, victim):
    cluster = make_cluster(2)
    cluster[victim].put("before", "put before\n")
    cluster.start()
    cluster[victim].shell("mkdir /ks/dir; echo written > /ks/dir/file; echo more >> /ks/before")
    cluster[victim].kill9()
    dead = cluster[victim].exec(["ls", "/ks"], check=False, timeout=10)
    assert dead.status != 0
    cluster[victim].restart()
    for node in cluster.nodes:
        wait_for(
            lambda node=node: (
                node.exec(["cat", "/ks/dir/file", "/ks/before"], check=False, timeout=40).text
                == "written\nput before\nmore\n"
            ),
            40,
            f"the files on {node.name}",
        )


def test_the_daemons_death_takes_its_processes_along(make_cluster):
    cluster = make_cluster(1).start(workers=2)
    cluster[1].client("assert c.call(lambda: 1, _async=False) == 1")
    cluster[1].kill9()
    wait_for(lambda: not cluster.hosts.processes(1), 10, "workers and redis-server are gone")


def test_what_was_closed_survives_the_death_of_everything(make_cluster):
    cluster = make_cluster(3).start()
    for node in cluster.nodes:
        node.shell(f"mkdir /ks/{node.name}; for i in $(seq 40); do echo $i > /ks/{node.name}/$i; done")
    cluster[1].shell("mv /ks/host2/7 /ks/host3/seven; rm /ks/host1/1; ln -s seven /ks/host3/link")
    for node in cluster.nodes:
        node.kill_all()
    for node in cluster.nodes:
        wait_for(lambda node=node: not cluster.hosts.processes(node.number), 10)
    cluster[1].restart()
    cluster[2].restart()
    cluster[3].restart()
    for node in cluster.nodes:
        assert len(node.exec(["ls", "/ks/host1"]).text.split()) == 39
        assert len(node.exec(["ls", "/ks/host2"]).text.split()) == 39
        assert node.exec(["cat", "/ks/host3/link"]).text == "7\n"
        assert node.shell("cat /ks/host*/* | sort -n | uniq -c | wc -l").text == "40\n"


def test_a_dead_redis_is_started_again(make_cluster):
    cluster = make_cluster(2).start()
    cluster[2].shell("echo one > /ks/one")
    for turn in range(2):
        (redis,) = [pid for pid, line in cluster.hosts.processes(1).items() if "redis-server" in line]
        os.kill(redis, signal.SIGKILL)
        wait_for(
            lambda turn=turn: cluster[2].shell(f"echo {turn} > /ks/after{turn}", check=False, timeout=40).status == 0,
            40,
        )
        assert cluster[1].exec(["cat", "/ks/one", f"/ks/after{turn}"], timeout=40).text == f"one\n{turn}\n"


def test_a_redis_that_paused_leaves_all_nodes_alive(make_cluster):
    cluster = make_cluster(3)
    cluster[3].put("there", "three")
    cluster.start()
    (redis,) = [pid for pid, line in cluster.hosts.processes(1).items() if "redis-server" in line]
    os.kill(redis, signal.SIGSTOP)
    try:
        # Longer than a command may take and a node may be silent; the free space changes meanwhile.
        for step in range(8):
            for node in cluster.nodes:
                (node.home / f"filler{step}").write_bytes(bytes(MIB))
            time.sleep(1)
    finally:
        os.kill(redis, signal.SIGCONT)
    for node in cluster.nodes:
        wait_for(lambda node=node: node.status()["nodes"].get("alive") == 3, 15, f"{node.name} sees three")
    assert cluster[1].exec(["cat", "/ks/there"]).text == "three"


def test_a_call_that_ran_while_redis_paused_is_not_told_to_be_lost(make_cluster):
    """Nobody could renew a lease meanwhile: who comes back first does not take the others for dead."""
    cluster = make_cluster(3).start()
    code = """
        def slow():
            with open("/tmp/ran", "a") as file:
                file.write("x")
            time.sleep(3)
            return "done"
        job = c.call(slow, _node="host3")
        print("sent", flush=True)
        reply(c.result(job, timeout=60))
    """
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(cluster[3].ask, code, timeout=90)
        wait_for(lambda: cluster[3].shell("cat /tmp/ran || true").text == "x", 20, "the call runs")
        (redis,) = [pid for pid, line in cluster.hosts.processes(1).items() if "redis-server" in line]
        stopped = [cluster[1].pid, redis]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(9)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert answer.result() == "done"
    assert cluster[3].shell("cat /tmp/ran").text == "x", "and ran once"


def test_the_first_node_goes_and_comes_back(make_cluster):
    """Redis goes with it: what needs the catalog ends with an error in time, and works again when it is back."""
    cluster = make_cluster(3).start()
    cluster[2].shell("echo two > /ks/two")
    code = """
        def slow():
            open("/tmp/runs", "w").close()
            time.sleep(18)
            return "done"
        reply(c.call(slow, _node="host3", _async=False))
    """
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(cluster[2].ask, code, timeout=90)
        wait_for(lambda: cluster[3].shell("ls /tmp/runs", check=False).status == 0, 20, "the call runs")
        cluster[1].kill9()
        began = time.monotonic()
        cluster[3].exec(["bash", "-c", "echo x > /ks/x"], check=False, timeout=35)
        assert time.monotonic() - began < 32
        cluster[3].exec(["df", "/ks"], timeout=5)
        found = cluster[2].ks("doctor", check=False)
        assert found.status == 1 and "umount" not in found.text, found
        assert "FAILED   redis" in found.text and "host1 carries it" in found.text, found
        # No heart-beat came through for longer than one lasts: that is not taken for the others' death.
        time.sleep(max(0, began + 9 - time.monotonic()))
        cluster[1].restart()
        assert {node["name"]: node["alive"] for node in cluster[1].ks_json("nodes")} == dict.fromkeys(
            ["host1", "host2", "host3"], True
        )
        assert answer.result() == "done"
    for node in cluster.nodes:
        wait_for(lambda node=node: node.exec(["cat", "/ks/two"], check=False, timeout=40).text == "two\n", 40)
    cluster[3].shell("echo three > /ks/three")
    assert cluster[2].exec(["cat", "/ks/three"]).text == "three\n"


def quick(node, *argv, seconds=2.0):
    began = time.monotonic()
    done = node.exec(list(argv), check=False, timeout=30)
    assert time.monotonic() - began < seconds, (argv, "took too long", done.text)
    return done


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_what_is_local_and_known_is_read_while_redis_is_away(make_cluster, how):
    cluster = make_cluster(2).start()
    cluster[2].shell(
        "mkdir /ks/d && echo mine > /ks/d/mine && ln -s mine /ks/d/link && ls -l /ks /ks/d && cat /ks/d/mine"
    )
    (server,) = [pid for pid, line in cluster.hosts.processes(1).items() if "redis-server" in line]
    if how == "killed":
        cluster[1].kill9()
    else:
        os.kill(server, signal.SIGSTOP)
    try:
        # The first one may be the one that finds out.
        assert quick(cluster[2], "cat", "/ks/d/mine", seconds=8).text == "mine\n"
        wait_for(lambda: not cluster[2].status()["redis"]["connected"], 10)
        time.sleep(1.5)
        for _ in range(3):
            assert quick(cluster[2], "cat", "/ks/d/mine").text == "mine\n"
            assert quick(cluster[2], "cat", "/ks/d/link").text == "mine\n"
            assert quick(cluster[2], "stat", "-c", "%s", "/ks/d/mine").text == "5\n"
            assert quick(cluster[2], "ls", "/ks/d").text.split() == ["link", "mine"]
            assert quick(cluster[2], "df", "/ks").status == 0
        wait_for(lambda: quick(cluster[2], "cat", "/ks/d/none", seconds=7).status != 0, 10)
        time.sleep(5)
        assert quick(cluster[2], "cat", "/ks/d/none").status != 0, "what is not known fails at once by now"
        refused = quick(cluster[2], "bash", "-c", "echo more >> /ks/d/mine")
        assert refused.status != 0, "nothing is written while the catalog is away"
    finally:
        if how == "killed":
            cluster[1].restart()
        else:
            os.kill(server, signal.SIGCONT)
    wait_for(
        lambda: cluster[2].exec(["bash", "-c", "echo more >> /ks/d/mine"], check=False, timeout=40).status == 0, 40
    )
    wait_for(lambda: cluster[1].exec(["cat", "/ks/d/mine"], check=False, timeout=40).text == "mine\nmore\n", 40)


# Appends through a handle that was opened before, and says how the close ended.
LATE_CLOSE = """
import sys
file = open(sys.argv[1], "a")
print("open", flush=True)
sys.stdin.readline()
file.write("during outage\\n")
try:
    file.close()
    print("closed")
except OSError as error:
    print(error.errno)
"""


def start_writer(node, path):
    writer = node.spawn(["python3", "-c", LATE_CLOSE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "open\n"
    return writer


def end_writer(writer):
    """It is told that what it wrote is not published."""
    output, _ = writer.communicate("go\n", timeout=30)
    assert output == f"{errno.EIO}\n"


@pytest.mark.parametrize("how", ["paused", "mounted again"])
def test_what_was_written_while_redis_was_away_is_published_when_it_is_back(make_cluster, how):
    cluster = make_cluster(3).start()
    cluster[3].shell("echo first > /ks/log && echo first > /ks/removed")
    assert cluster[1].exec(["cat", "/ks/log"]).text == "first\n"
    writers = [start_writer(cluster[3], path) for path in ("/ks/log", "/ks/removed")]
    (redis,) = [pid for pid, line in cluster.hosts.processes(1).items() if "redis-server" in line]
    if how == "paused":
        os.kill(redis, signal.SIGSTOP)
    else:
        cluster[1].stop()
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(end_writer, writers))
        status = cluster[3].status()["unpublished"]
        assert status["count"] == 2
        assert {"path": "/ks/log", "node": "host3"} in status["first"]
        assert "/ks/log on host3" in cluster[3].ks("status").text
    finally:
        if how == "paused":
            os.kill(redis, signal.SIGCONT)
        else:
            cluster[1].restart()
    both = "first\nduring outage\n"
    for node in cluster.nodes:
        wait_for(lambda node=node: node.exec(["cat", "/ks/log"], check=False, timeout=40).text == both, 20, node.name)
        wait_for(lambda node=node: node.shell("stat -c %s /ks/log").text.strip() == str(len(both)), 5, node.name)
    wait_for(lambda: cluster[3].status()["unpublished"]["count"] == 0, 10)
    assert "waiting" not in cluster[3].ks("status").text


def test_a_home_with_unpublished_bytes_is_not_given_away(make_cluster):
    cluster = make_cluster(3).start()
    cluster[3].shell("echo first > /ks/log")
    cluster[2].ks("fetch", "/ks/log")
    writer = start_writer(cluster[3], "/ks/log")
    (redis,) = [pid for pid, line in cluster.hosts.processes(1).items() if "redis-server" in line]
    os.kill(redis, signal.SIGSTOP)
    try:
        end_writer(writer)
    finally:
        os.kill(redis, signal.SIGCONT)
    both = "first\nduring outage\n"
    # At once: whoever is first, this or the task that publishes, the others' copies are old.
    refused = cluster[3].ks("drop", "/ks/log", check=False)
    assert refused.status != 0, refused
    assert (cluster[3].datadir / "log").read_text() == both
    wait_for(lambda: cluster[1].exec(["cat", "/ks/log"], check=False, timeout=40).text == both, 20)
    holders = cluster[1].holders("log")
    assert holders["host3"]["home"], holders
    assert not list(cluster[3].datadir.glob("*conflict*"))
    # With a copy of what is published now elsewhere, it goes.
    cluster[2].ks("fetch", "/ks/log")
    cluster[3].ks("drop", "/ks/log")
    assert cluster[1].exec(["cat", "/ks/log"]).text == both


def test_a_write_to_a_file_whose_home_is_gone_says_so(make_cluster):
    cluster = make_cluster(2).start()
    cluster[2].shell("echo kept > /ks/theirs")
    cluster[2].kill9()
    began = time.monotonic()
    refused = cluster[1].exec(["bash", "-c", "echo more >> /ks/theirs"], check=False, timeout=35)
    assert refused.status != 0 and time.monotonic() - began < 32
    cluster[2].restart()
    wait_for(lambda: cluster[1].exec(["cat", "/ks/theirs"], check=False).text == "kept\n", 40)


def test_random_kills_lose_nothing_that_was_acknowledged(make_cluster):
    """Nodes 2 and 3 write and fsync; now and then one of them is killed and mounted again."""
    cluster = make_cluster(3).start()
    dice = random.Random(7)
    acknowledged = {}
    for turn in range(24):
        node = cluster[dice.choice([2, 3])]
        if turn % 6 == 5:
            node.kill9()
            node.restart()
            continue
        path, text = f"/ks/kept{dice.randrange(6)}-{node.name}", f"turn {turn} " + "y" * dice.randrange(50_000)
        done = node.exec(["dd", f"of={path}", "conv=fsync", "status=none"], input=text.encode(), check=False)
        if done.status == 0:
            acknowledged[path] = text
    assert len(acknowledged) > 5
    for node in cluster.nodes:
        for path, text in acknowledged.items():
            got = wait_for(lambda node=node, path=path: node.exec(["cat", path], check=False, timeout=40), 60)
            assert got.text == text, (node.name, path)


def small_disk(node, size):
    """The node's data directory becomes an ext4 of its own, in the node's own view; gone with the host."""
    image = node.home / "disk.img"
    done = node.shell(
        f"truncate -s {size} {image} && mkfs.ext4 -q -m 0 {image} && mount -o loop {image} {node.datadir}", check=False
    )
    if done.status != 0:
        pytest.skip(f"no loop device here: {done.error}")


def test_a_full_disk_serves_readers_and_partial_files_make_room(make_cluster):
    cluster = make_cluster(2)
    large = write_noise(cluster[1].datadir / "large", 160 * MIB)
    small_disk(cluster[2], "96M")
    try:
        cluster.start()
        # More than the disk has: read whole, not kept, and the disk is not filled to its end.
        assert large in cluster[2].exec(["sha256sum", "/ks/large"], timeout=55).text
        free = cluster[2].status()["disk"]["free_bytes"]
        assert free > MIB, free
        fetching = cluster[2].ks("fetch", "/ks/large", check=False, timeout=40)
        assert fetching.status == 1 and "space" in fetching.error.lower(), fetching
        # What is here in part and read by nobody goes when somebody writes.
        script = "head -c 50M /dev/urandom | tee /ks/mine | sha256sum > /tmp/sum"
        wait_for(lambda: cluster[2].shell(script, check=False, timeout=40).status == 0, 60, "there is room again")
        assert cluster[1].exec(["sha256sum", "/ks/mine"]).text.split()[0] in cluster[2].exec(["cat", "/tmp/sum"]).text
        # The disk full to its last block, not by us.
        cluster[2].shell(f"dd if=/dev/zero of={cluster[2].datadir}/.ks/filler bs=64K status=none", check=False)
        assert large in cluster[2].exec(["sha256sum", "/ks/large"], timeout=55).text
        began = time.monotonic()
        refused = cluster[2].shell("head -c 1M /dev/urandom > /ks/more", check=False, timeout=30)
        assert refused.status != 0 and "space" in refused.error.lower() and time.monotonic() - began < 10
        cluster[2].shell(f"rm {cluster[2].datadir}/.ks/filler")
        assert cluster[1].exec(["sha256sum", "/ks/mine"]).text.split()[0] in cluster[2].exec(["cat", "/tmp/sum"]).text
        cluster[2].stop()
    finally:
        cluster[2].shell(f"umount {cluster[2].datadir}", check=False)


def test_a_name_whose_file_could_not_be_made_on_a_full_disk_is_free_again(make_cluster):
    """The file was made, but not its attribute, and stood in the way of every later one of that name."""
    cluster = make_cluster(2)
    small = cluster[2]
    give_small_disk(small, 64 * MIB)
    cluster.start("--keep-free", "0")
    fill(small)
    make = "for k in $(seq 200); do echo x > /ks/n$k; done 2>&1 | grep -c 'No space left' || true"
    assert int(small.shell(make, timeout=120).text) > 0
    make_room(small)
    small.shell("for k in $(seq 200); do echo y > /ks/n$k; done", timeout=120)
    assert cluster[1].shell("cat /ks/n* | sort | uniq -c").text.split() == ["200", "y"]
