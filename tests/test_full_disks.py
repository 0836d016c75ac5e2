"""A disk that is full, at a file's home and at a node that fetches: what was acknowledged stays, readers go on, and
when there is space again everything works."""

import hashlib
import json

import pytest

from harness import wait_for
from harness.data import MIB, noise
from harness.disk import give_small_disk

DISK_MIB = 48
LARGE_BYTES = 80 * MIB


@pytest.fixture
def cluster(make_cluster):
    """Three nodes; the third one's data directory is a small disk of its own."""
    cluster = make_cluster(3)
    cluster[3].exec(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "small", cluster[3].datadir])
    cluster[1].put("large", noise(LARGE_BYTES, seed=3))
    return cluster.start()


# Fills the disk, and says which files were closed without an error and how it ended.
FILL = """
    import errno, hashlib
    from os import urandom
    kept, size = {{}}, 1 << 20
    ended = None
    began = time.monotonic()
    for number in range({count}):
        path = f"{directory}/{{number}}"
        data = urandom(size)
        try:
            with open(path, "{mode}") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            kept[path] = hashlib.sha256(data).hexdigest()
        except OSError as error:
            ended = errno.errorcode[error.errno]
            break
    reply([kept, ended, time.monotonic() - began])
"""
CHECK = """
    import hashlib
    kept = json.load(open({file!r}))
    reply([path for path, digest in kept.items() if hashlib.sha256(open(path, "rb").read()).hexdigest() != digest])
"""


def wrong(cluster, node, kept):
    file = cluster[1].home / "kept.json"
    file.write_text(json.dumps(kept))
    return node.ask(CHECK.format(file=str(file)), timeout=120)


@pytest.mark.parametrize("writer", [3, 1], ids=["where it runs", "from another node"])
def test_the_disk_of_the_home_is_full(cluster, writer):
    names = " ".join(f"/ks/full/{number}" for number in range(2 * DISK_MIB))
    # Made on the node with the small disk: that is their home.
    cluster[3].shell(f"mkdir /ks/full; touch {names}")
    fill = FILL.format(directory="/ks/full", count=2 * DISK_MIB, mode="r+b")
    kept, ended, seconds = cluster[writer].ask(fill, timeout=170)
    assert ended == "ENOSPC" and len(kept) > DISK_MIB / 2, (ended, len(kept))
    for node in cluster.nodes:
        assert wrong(cluster, node, kept) == []
    # Other nodes' files can be written and read, here too; and there is space again when something goes.
    cluster[1].shell("echo fine >/ks/fine")
    assert cluster[3].exec(["cat", "/ks/fine"]).text == "fine\n"
    gone = [path for path in kept if int(path.rsplit("/", 1)[1]) % 2]
    cluster[2].exec(["rm", *gone])
    rest = {path: digest for path, digest in kept.items() if path not in gone}
    cluster[3].shell("for try in $(seq 40); do head -c 1M /dev/zero >/ks/full/new && exit; sleep 0.5; done; exit 1")
    for node in cluster.nodes:
        assert wrong(cluster, node, rest) == []
        assert node.exec(["stat", "-c", "%s", "/ks/full/new"]).text == f"{MIB}\n"
    print(f"\nfault disk full at home: {len(kept)} MiB acknowledged, bytes lost 0, ENOSPC after {seconds:.1f} s")


def test_the_disk_of_a_node_that_fetches_is_full(cluster):
    """It reads a file that is larger than its disk, again and again, and keeps what it can."""
    cluster[3].shell("mkdir /ks/own; head -c 4M /dev/urandom >/ks/own/file")
    own = cluster[3].exec(["sha256sum", "/ks/own/file"]).text
    expected = hashlib.sha256(noise(LARGE_BYTES, seed=3)).hexdigest()
    slowest_s = 0.0
    for _ in range(2):
        done = cluster[3].exec(["sha256sum", "/ks/large"], timeout=100)
        assert expected in done.text
        slowest_s = max(slowest_s, done.seconds)
    for number in range(6):
        cluster[1].shell(f"head -c 20M /dev/urandom >/ks/more{number}")
        done, same = (node.exec(["sha256sum", f"/ks/more{number}"], timeout=100) for node in (cluster[3], cluster[1]))
        assert done.text == same.text
        slowest_s = max(slowest_s, done.seconds)
    assert cluster[3].exec(["sha256sum", "/ks/own/file"]).text == own
    assert cluster[1].exec(["sha256sum", "/ks/own/file"]).text == own
    print(f"\nfault disk full where it is fetched: bytes lost 0, the slowest whole read took {slowest_s:.1f} s")


def test_arguments_that_find_no_room_where_the_call_is_to_run(cluster):
    refused = cluster[1].ask(
        f"""
        from kitchensink import Client, PayloadError
        try:
            Client().call(len, os.urandom({2 * DISK_MIB} << 20), _node="host3", _async=False)
        except PayloadError as error:
            reply(str(error))
        """,
        timeout=100,
    )
    assert "host3" in refused and "no space" in refused, refused
    assert cluster[1].ask("""reply(Client().call(len, b"1234", _node="host3", _async=False))""") == 4


# Writes one file as fast as it can; how it ended.
WRITE_AT_ONCE = """
    import errno
    block, ended = os.urandom(1 << 20), None
    try:
        with open("{path}", "{mode}", buffering=0) as file:
            for number in range({count}):
                file.write(block)
    except OSError as error:
        ended = errno.errorcode[error.errno]
    reply([ended, os.stat("{path}").st_size])
"""


@pytest.mark.parametrize("writer", [2, 1], ids=["where it runs", "from another node"])
def test_fetched_copies_give_way_to_what_is_written(make_cluster, writer):
    """A disk that is full of fetched copies takes what is written there at once, as far as they can make room."""
    cluster = make_cluster(2)
    give_small_disk(cluster[2], 128 * MIB)
    for number in range(11):
        cluster[1].put(f"far/{number}", noise(9 * MIB, seed=number))
    cluster.start("--cache-limit", "1G", "--keep-free", "4M")
    cluster[2].ks("fetch", *(f"/ks/far/{number}" for number in range(11)))
    wait_for(lambda: cluster[2].status()["disk"]["free_bytes"] < 30 * MIB, 10, "the disk is full of copies")
    cluster[2].shell("touch /ks/near /ks/reserved")
    assert cluster[writer].ask(WRITE_AT_ONCE.format(path="/ks/near", mode="r+b", count=60)) == [None, 60 * MIB]
    cluster[writer].exec(["fallocate", "-l", "30M", "/ks/reserved"])
    assert cluster[writer].ask(WRITE_AT_ONCE.format(path="/ks/near", mode="ab", count=5)) == [None, 65 * MIB]
    # More than there is, whoever gives way.
    ended, size = cluster[writer].ask(WRITE_AT_ONCE.format(path="/ks/near", mode="ab", count=100))
    assert ended == "ENOSPC" and size < 128 * MIB
    for number in range(11):
        assert cluster[1].exec(["cat", f"/ks/far/{number}"]).stdout == noise(9 * MIB, seed=number)
