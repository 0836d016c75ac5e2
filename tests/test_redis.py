"""Which Redis: one that the node starts, looks after and ends, or one that is given."""

import json
import os
import re
import shutil
import time

import pytest

from harness import wait_for
from harness.data import MIB, noise
from harness.disk import fill, give_small_disk
from harness.given_redis import PASSWORD, PORT, GivenRedis

URLS = [
    f"redis://:{PASSWORD}@host1:{PORT}",
    f"redis://:{PASSWORD}@host1:{PORT}/3",
    f"tcp://:{PASSWORD}@host1:{PORT}?db=9",
]


@pytest.mark.parametrize("url", URLS)
def test_a_redis_that_is_given(make_cluster, url):
    cluster = make_cluster(2)
    first, second = cluster.nodes
    with GivenRedis(cluster) as redis:
        redis.start([first], url=url)
        redis.start([second], "--no-redis", url=url)
        second.shell("echo two > /ks/two")
        assert first.exec(["cat", "/ks/two"]).text == "two\n"
        assert first.ask("reply(c.call(lambda p: open(p).read(), '/ks/two', _async=False))") == "two\n"
        daemons = [line for line in cluster.hosts.processes(1).values() if " mount " in line]
        assert daemons and not any(PASSWORD in line for line in daemons), "everybody can read command lines"
        assert first.ask("reply(c.call(lambda: dict(os.environ), _async=False))").get("KS_REDIS") is None
        database = re.search(r"(\d+)$", url.replace(str(PORT), "0"))[1]
        assert int(redis.ask("dbsize", database=database)) > 0
        others = [line for line in redis.ask("info", "keyspace").splitlines() if line.startswith("db")]
        assert [line.split(":")[0] for line in others] == [f"db{database}"]
        for node in (second, first):
            node.stop()
        assert redis.process.poll() is None, "a Redis that is given is not ours to end"


def test_payloads_do_not_go_through_redis(make_cluster):
    cluster = make_cluster(2)
    first, second = cluster.nodes
    with GivenRedis(cluster) as redis:
        redis.start(cluster.nodes)
        second.exec(["tee", "/ks/big"], input=noise(8 * MIB))
        first.exec(["cat", "/ks/big"])
        answer = first.ask("reply(len(c.call(lambda b: b * 2, bytes(4_000_000), _node='host2', _async=False)))")
        assert answer == 8_000_000
        received = re.search(r"total_net_input_bytes:(\d+)", redis.ask("info", "stats"))[1]
        assert int(received) < MIB, "what went into Redis"
        redis.ask("config", "set", "min-replicas-to-write", "1")
        for node in cluster.nodes:
            found = node.ks("doctor", check=False)
            assert found.status == 1 and "no name in the cluster can change: NOREPLICAS" in found.text, found
            assert "REFUSES CHANGES: NOREPLICAS" in node.ks("status").text
        redis.ask("config", "set", "min-replicas-to-write", "0")
        assert "no name in the cluster can change" not in second.ks("doctor", check=False).text
        for key in redis.ask("--scan").split():
            size = redis.ask("memory", "usage", key, "samples", "0")
            assert int(size.strip() or 0) < 256 * 1024, (key, size)


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


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_the_others_go_on_as_soon_as_the_first_node_is_back(make_cluster, how):
    """However long it was away: who asks for something meanwhile finds it at once, and is soon told where it is not."""
    cluster = make_cluster(3).start()
    if how == "ended":
        cluster[1].stop()
    else:
        cluster[1].kill9()
    wait_for(lambda: not cluster[2].status()["redis"]["connected"], 15)
    time.sleep(9)
    # One asks all the time, of the other nobody asks anything.
    refused = cluster[2].exec(["mkdir", "/ks/away"], check=False)
    assert refused.status == 1 and refused.seconds < 2, refused
    asking = cluster[2].spawn(["bash", "-c", "until mkdir /ks/back; do sleep 0.05; done; date +%s.%N"], stdout=-1)
    cluster[1].restart()
    back = time.time()
    assert cluster[3].exec(["mkdir", "/ks/other"], check=False).status == 0
    done, _ = asking.communicate(timeout=20)
    assert float(done) - back < 4, "how long after the first node was back"


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
    cluster = make_cluster(1)
    (node,) = cluster.nodes
    with GivenRedis(cluster):
        for user in ("", ":wrong@"):
            url = f"redis://{user}host1:{PORT}"
            refused = node.exec(node.mount_command("--redis", url, "--num-workers", "1"), check=False)
            assert refused.status == 1 and "redis://:PASSWORD@HOST:PORT" in refused.error, refused


@pytest.mark.parametrize("size", [120 * MIB, 1024 * MIB])
def test_files_can_be_removed_when_the_disk_of_redis_is_full(make_cluster, size):
    """Redis refuses changes while it cannot write its append-only file: what was kept aside makes room."""
    cluster = make_cluster(2)
    first, second = cluster.nodes
    give_small_disk(first, size)
    cluster.start("--keep-free", "0")

    def kept_aside():
        return int(first.exec(["stat", "-c", "%s", first.datadir / ".ks" / "redis" / "ballast"]).text)

    wait_for(lambda: kept_aside() > size // 40, 20, "space kept aside")
    whole = kept_aside()
    first.shell("head -c 20M /dev/urandom > /ks/junk")
    fill(first)
    wait_for(lambda: kept_aside() < whole, 10, "space given back")
    wait_for(lambda: second.exec(["rm", "-f", "/ks/junk"], check=False).status == 0, 20, "the end of a file")
    wait_for(lambda: first.shell("echo more > /ks/more", check=False).status == 0, 30, "room for another")
    assert second.exec(["cat", "/ks/more"]).text == "more\n"
