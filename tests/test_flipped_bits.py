"""A flipped bit in each kind of file that a node keeps for itself: whatever was kept there is thrown away and made
anew, or refused with a message that names it; no byte of a user's file is lost or wrong."""

import hashlib

import pytest

from harness import wait_for
from harness.data import MIB, noise

FILES = {"own": 3 * MIB, "small": 1000, "copy": 3 * MIB, "partial": 6 * MIB}
# Which files below `.ks/` of the node that has them.
KINDS = {
    "node": ["node"],
    "events": ["events/*"],
    "pins": ["pins"],
    "trees": ["trees/**/*"],
    "partial": ["partial/*"],
    "blobs": ["blobs/**/*"],
    "password": ["redis/password"],
    "redis": ["redis/appendonlydir/*.aof"],
}


def flip(path):
    """The lowest bit of the byte in the middle."""
    data = bytearray(path.read_bytes())
    if not data:
        return False
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return True


@pytest.fixture
def cluster(make_cluster):
    """Two nodes with files of every kind: of their own, copied, in part, pinned; and results of calls."""
    cluster = make_cluster(2).start()
    for seed, (name, size) in enumerate(FILES.items()):
        for node in cluster.nodes:
            node.exec(["tee", f"/ks/{name}-{node.name}"], input=noise(size, seed=seed + 10 * node.number))
    for node, other in ((cluster[1], cluster[2]), (cluster[2], cluster[1])):
        node.ks("fetch", f"/ks/copy-{other.name}")
        node.ks("pin", f"/ks/copy-{other.name}")
        node.shell(f"dd if=/ks/partial-{other.name} of=/dev/null bs=4096 count=2 skip=700 status=none")
        assert node.ask("reply(len(c.call(lambda b: b * 2, bytes(200_000), _async=False)))") == 400_000
        node.shell("mkdir -p /ks/d && mv /ks/small-$HOSTNAME /ks/d/")
    return cluster


def check_all(cluster):
    expected = {}
    for seed, (name, size) in enumerate(FILES.items()):
        for number in (1, 2):
            path = f"/ks/{'d/' if name == 'small' else ''}{name}-host{number}"
            expected[path] = hashlib.sha256(noise(size, seed=seed + 10 * number)).hexdigest()
    for node in cluster.nodes:

        def whole(node=node):
            lines = node.exec(["sha256sum", *expected], check=False, timeout=100).text.splitlines()
            assert {line.split()[1]: line.split()[0] for line in lines} == expected
            return True

        wait_for(whole, 40, f"the files on {node.name}", every_s=0.5)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_flipped_bit_in(cluster, kind, number):
    if number == 2 and kind in ("redis", "password"):
        pytest.skip("only the first node has a Redis")
    node = cluster[number]
    for one in reversed(cluster.nodes):
        one.stop()
    kept = node.datadir / ".ks"
    flipped = [path for pattern in KINDS[kind] for path in kept.glob(pattern) if path.is_file() and flip(path)]
    assert flipped, sorted(str(path.relative_to(kept)) for path in kept.rglob("*"))
    for one in cluster.nodes:
        one.restart()
    check_all(cluster)
    assert node.ask("reply(len(c.call(lambda b: b * 2, bytes(200_000), _async=False)))") == 400_000
    print(f"\nfault flipped bit in {len(flipped)} of .ks/{kind} on {node.name}: bytes lost 0")
