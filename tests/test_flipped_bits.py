"""A flipped bit in each kind of file that a node keeps for itself: whatever was kept there is thrown away and made
anew, or refused with a message that names it; no byte of a user's file is lost or wrong."""

import hashlib

import pytest

from harness import Cluster, wait_for
from harness.data import MIB, noise
from harness.node import need_running

FILES = {"own": 3 * MIB, "small": 1000, "copy": 3 * MIB, "partial": 6 * MIB}
# Which files below `.ks/`. Not Redis's append-only file, which has no checksum of its own.
KINDS = {
    "node": ["node"],
    "unreadable-node": ["node"],
    "pins": ["pins"],
    "trees": ["trees/**/*"],
    "partial": ["partial/*"],
    "blobs": ["blobs/**/*"],
    "password": ["redis/password"],
}


def flip(path, bit=1):
    """A bit of the byte in the middle, the lowest or another."""
    data = bytearray(path.read_bytes())
    if not data:
        return False
    data[len(data) // 2] ^= bit
    path.write_bytes(data)
    return True


def restart(node):
    """An identity that is none is refused, and the cure is what the message says."""
    try:
        node.restart()
    except AssertionError as refused:
        identity = node.datadir / ".ks/node"
        assert f"{identity}: not a node's identity" in str(refused) and "remove it" in str(refused)
        identity.unlink()
        node.restart()


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(2) as cluster:
        yield cluster.start()


def names(kind, node):
    """What `prepare` makes: file -> (path, size, seed)."""
    for seed, (name, size) in enumerate(FILES.items()):
        below = "d-" + kind + "/" if name == "small" else ""
        yield name, (f"/ks/{below}{name}-{kind}-{node.name}", size, seed + 10 * node.number)


def prepare(cluster, kind):
    """Files of every kind: a node's own, copied, in part, pinned; and results of calls."""
    cluster[1].exec(["mkdir", f"/ks/d-{kind}"])
    for node in cluster.nodes:
        for path, size, seed in dict(names(kind, node)).values():
            node.exec(["tee", path], input=noise(size, seed=seed))
    for node, other in ((cluster[1], cluster[2]), (cluster[2], cluster[1])):
        theirs = dict(names(kind, other))
        node.ks("fetch", theirs["copy"][0])
        node.ks("pin", theirs["copy"][0])
        node.shell(f"dd if={theirs['partial'][0]} of=/dev/null bs=4096 count=2 skip=700 status=none")
        call(node)


def call(node):
    """With an argument and a result that are files."""
    assert node.ask("reply(len(c.call(lambda b: b * 2, bytes(200_000), _async=False)))") == 400_000


def check_all(cluster, kind):
    made = [row for node in cluster.nodes for row in dict(names(kind, node)).values()]
    expected = {path: hashlib.sha256(noise(size, seed=seed)).hexdigest() for path, size, seed in made}
    for node in cluster.nodes:

        def whole(node=node):
            lines = node.exec(["sha256sum", *expected], check=False, timeout=100).text.splitlines()
            assert {line.split()[1]: line.split()[0] for line in lines} == expected
            return True

        wait_for(whole, 40, f"the files on {node.name}", every_s=0.5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_flipped_bit_in(cluster, kind):
    """On both nodes at once, in all files of the kind."""
    prepare(cluster, kind)
    for node in reversed(cluster.nodes):
        node.stop()
    counts = []
    for node in cluster.nodes:
        kept = node.datadir / ".ks"
        found = [path for pattern in KINDS[kind] for path in kept.glob(pattern) if path.is_file()]
        counts.append(sum(flip(path, 128 if kind.startswith("unreadable") else 1) for path in found))
    assert counts[0] > 0, "there is a file of this kind"
    for node in cluster.nodes:
        restart(node)
    check_all(cluster, kind)
    for node in cluster.nodes:
        call(node)
    print(f"\nfault flipped bit in {sum(counts)} of .ks/{kind}: bytes lost 0")
