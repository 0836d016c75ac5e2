"""A flipped bit is found on any holder, mended from another, and named when there is none."""

import json
import os

import pytest

from harness import Cluster
from harness.data import MIB, noise
from harness.node import need_running


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        yield cluster.start()


def flip(node, name, offset):
    """Flips a bit on the disk, and leaves the file's times as they were: as rot does."""
    path = node.datadir / name
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
        file.flush()
        os.fsync(file.fileno())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def verify(node, *paths, status=0):
    done = node.ks("verify", *paths, "--json", check=False)
    assert done.status == status, done
    return json.loads(done.stdout)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_flipped_bit_is_mended_from_another_holder(cluster, damaged):
    name, data = f"rot{damaged}", noise(5 * MIB, seed=damaged)
    cluster[1].exec(["tee", f"/ks/{name}"], input=data)
    cluster[2].ks("fetch", f"/ks/{name}")
    (well,) = verify(cluster[3], f"/ks/{name}")
    assert well["ok"] and [copy["state"] for copy in well["copies"]] == ["good", "good"]
    flip(cluster[damaged], name, 3_000_000)
    (found,) = verify(cluster[3], f"/ks/{name}")
    states = {copy["node"]: (copy["state"], copy["mended"]) for copy in found["copies"]}
    assert states == {f"host{damaged}": ("damaged", True), f"host{3 - damaged}": ("good", False)}
    for number in (1, 2):
        assert (cluster[number].datadir / name).read_bytes() == data
    assert set(cluster[3].holders(name)) == {"host1", "host2"}


def test_a_file_without_a_good_copy_is_named_and_left_alone(cluster):
    data = noise(2 * MIB, seed=7)
    cluster[1].exec(["tee", "/ks/lost"], input=data)
    verify(cluster[1], "/ks/lost")
    flip(cluster[1], "lost", 1_000_000)
    done = cluster[1].ks("verify", "/ks/lost", check=False)
    assert done.status == 1 and "/ks/lost" in done.text and "damaged" in done.text and "host1" in done.text, done
    assert (cluster[1].datadir / "lost").exists()


def test_damaged_hash_trees_and_partial_files_are_thrown_away(cluster):
    data = noise(4 * MIB, seed=11)
    cluster[1].exec(["tee", "/ks/trees"], input=data)
    verify(cluster[1], "/ks/trees")
    for tree in (cluster[1].datadir / ".ks/trees").rglob("*"):
        if tree.is_file():
            tree.write_bytes(os.urandom(tree.stat().st_size))
    cluster[2].shell("dd if=/ks/trees of=/dev/null bs=4096 count=3 skip=300 status=none")
    verify(cluster[1], "/ks/trees")
    cluster[2].stop()
    for part in (cluster[2].datadir / ".ks/partial").iterdir():
        part.write_bytes(os.urandom(part.stat().st_size))
    cluster[2].restart()
    assert cluster[2].exec(["cat", "/ks/trees"]).stdout == data
