"""Which Redis: one that the node starts, looks after and ends, or one that is given."""

import json
import os
import re
import shutil

import pytest

from harness import wait_for
from harness.data import MIB, noise
from harness.disk import fill, give_small_disk

PORT = 6400
PASSWORD = "not-a-secret"
URLS = [
    f"redis://:{PASSWORD}@host1:{PORT}",
    f"redis://:{PASSWORD}@host1:{PORT}/3",
    f"tcp://:{PASSWORD}@host1:{PORT}?db=9",
]


def start_redis(node):
    """A Redis that is not the node's: on a port, with a password."""
    argv = [
        "redis-server",
        "--port",
        PORT,
        "--bind",
        "0.0.0.0",
        "--requirepass",
        PASSWORD,
        "--save",
        "",
        "--dir",
        node.home,
    ]
    process = node.spawn(["redis-server", *map(str, argv[1:])], stdout=open(node.home / "redis.log", "w"))
    wait_for(lambda: redis(node, "ping").text == "PONG\n", 10)
    return process


def redis(node, *words, database=0):
    command = ["redis-cli", "-p", PORT, "--no-auth-warning", "-a", PASSWORD, "-n", database, *words]
    return node.exec([str(word) for word in command], check=False)


@pytest.mark.parametrize("url", URLS)
def test_a_redis_that_is_given(make_cluster, url):
    cluster = make_cluster(2)
    server = start_redis(cluster[1])
    try:
        cluster[1].start("--redis", url, "--num-workers", "1")
        cluster.copy_key(cluster[1], cluster[2])
        cluster[2].start("--redis", url, "--no-redis", "--num-workers", "1")
        cluster[2].shell("echo two > /ks/two")
        assert cluster[1].exec(["cat", "/ks/two"]).text == "two\n"
        assert cluster[1].ask("reply(c.call(lambda p: open(p).read(), '/ks/two', _async=False))") == "two\n"
        database = re.search(r"(\d+)$", url.replace(str(PORT), "0"))[1]
        assert int(redis(cluster[1], "dbsize", database=database).text) > 0
        others = [line for line in redis(cluster[1], "info", "keyspace").text.splitlines() if line.startswith("db")]
        assert [line.split(":")[0] for line in others] == [f"db{database}"]
        for node in (cluster[2], cluster[1]):
            node.stop()
        assert server.poll() is None, "a Redis that is given is not ours to end"
    finally:
        server.kill()
        server.wait(timeout=10)


def test_payloads_do_not_go_through_redis(make_cluster):
    cluster = make_cluster(2)
    server = start_redis(cluster[1])
    try:
        cluster[1].start("--redis", URLS[0], "--num-workers", "1")
        cluster.copy_key(cluster[1], cluster[2])
        cluster[2].start("--redis", URLS[0], "--num-workers", "1")
        cluster[2].exec(["tee", "/ks/big"], input=noise(8 * MIB))
        cluster[1].exec(["cat", "/ks/big"])
        answer = cluster[1].ask("reply(len(c.call(lambda b: b * 2, bytes(4_000_000), _node='host2', _async=False)))")
        assert answer == 8_000_000
        received = re.search(r"total_net_input_bytes:(\d+)", redis(cluster[1], "info", "stats").text)[1]
        assert int(received) < MIB, "what went into Redis"
        for key in redis(cluster[1], "--scan").text.split():
            size = redis(cluster[1], "memory", "usage", key, "samples", "0").text
            assert int(size.strip() or 0) < 256 * 1024, (key, size)
    finally:
        for node in (cluster[2], cluster[1]):
            if node.pid:
                node.stop()
        server.kill()
        server.wait(timeout=10)


def private_redis(cluster, number=1):
    return [pid for pid, line in cluster.hosts.processes(number).items() if "redis-server" in line]


def test_the_private_redis_lives_and_ends_with_its_node(make_cluster):
    cluster = make_cluster(2).start()
    assert len(private_redis(cluster, 1)) == 1
    assert not private_redis(cluster, 2), "a node that joins starts none"
    assert list((cluster[1].datadir / ".ks/redis").rglob("*.aof*")), "it keeps an append-only file"
    assert cluster[1].status()["redis"]["private"] and not cluster[2].status()["redis"]["private"]
    cluster[2].stop()
    cluster[1].stop()
    wait_for(lambda: not private_redis(cluster), 5)


def test_the_private_redis_is_ended_with_a_killed_node(make_cluster):
    cluster = make_cluster(1).start()
    (pid,) = private_redis(cluster)
    cluster[1].kill9()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 5)


def test_nodes_get_into_a_redis_that_lost_everything(make_cluster):
    cluster = make_cluster(2).start()
    cluster[1].stop()
    shutil.rmtree(cluster[1].datadir / ".ks/redis")
    cluster[1].restart()
    wait_for(lambda: cluster[2].status()["redis"]["connected"], 20)
    wait_for(lambda: cluster[2].status()["nodes"].get("alive") == 2, 20)


def test_several_join_by_way_of_a_node_that_joined(make_cluster):
    cluster = make_cluster(3)
    cluster[1].start("--num-workers", "1")
    cluster.copy_key(cluster[1], cluster[2])
    cluster.copy_key(cluster[1], cluster[3])
    cluster[2].start("--join", "host1:6323", "--num-workers", "1")
    cluster[3].start("--join", "host2", "--num-workers", "1")
    cluster[3].shell("echo three > /ks/three")
    assert cluster[1].exec(["cat", "/ks/three"]).text == "three\n"
    assert json.dumps(cluster[3].ks_json("nodes")).count('"alive": true') == 3


def test_a_redis_without_its_password_says_how_to_give_it(make_cluster):
    (node,) = make_cluster(1).nodes
    server = start_redis(node)
    try:
        for user in ("", ":wrong@"):
            url = f"redis://{user}host1:{PORT}"
            refused = node.exec(node.mount_command("--redis", url, "--num-workers", "1"), check=False)
            assert refused.status == 1 and "redis://:PASSWORD@HOST:PORT" in refused.error, refused
    finally:
        server.kill()
        server.wait()


def test_files_can_be_removed_when_the_disk_of_redis_is_full(make_cluster):
    """Redis refuses changes while it cannot write its append-only file: what was kept aside makes room."""
    cluster = make_cluster(2)
    first, second = cluster.nodes
    give_small_disk(first, 1024 * MIB)
    cluster.start("--keep-free", "0")

    def kept_aside():
        return int(first.exec(["stat", "-c", "%s", first.datadir / ".ks" / "redis" / "ballast"]).text)

    wait_for(lambda: kept_aside() == 32 * MIB, 20, "space kept aside")
    first.shell("head -c 20M /dev/urandom > /ks/junk")
    fill(first)
    wait_for(lambda: kept_aside() < 32 * MIB, 30, "space given back")
    wait_for(lambda: second.exec(["rm", "-f", "/ks/junk"], check=False).status == 0, 60, "the end of a file")
    wait_for(lambda: first.shell("echo more > /ks/more", check=False).status == 0, 30, "room for another")
    assert second.exec(["cat", "/ks/more"]).text == "more\n"
