"""A flipped bit is found on any holder, mended from another, and named when there is none."""

import hashlib
import json
import os

import pytest

from harness import Cluster, wait_for
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
    done = cluster[3].ks("verify", "/ks/lost", check=False)
    assert done.status == 1 and "/ks/lost" in done.text and "damaged" in done.text and "host1" in done.text, done
    assert (cluster[1].datadir / "lost").exists()
    wait_for(lambda: cluster[2].status()["damaged"]["first"] == [{"path": "/ks/lost", "node": "host1"}], 20)
    # It is not read any more, at its home neither.
    for node in cluster.nodes:
        refused = node.exec(["cat", "/ks/lost"], check=False, timeout=40)
        assert refused.status == 1 and "Input/output error" in refused.error and refused.stdout != data, refused
    assert "/lost: no node can give it now: the bytes in this node's data directory are damaged" in cluster[1].log()
    flip(cluster[1], "lost", 1_000_000)
    verify(cluster[2], "/ks/lost")
    for node in cluster.nodes:
        assert node.exec(["cat", "/ks/lost"]).stdout == data


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


@pytest.fixture
def scrubbing(make_cluster):
    """Three nodes whose scrub begins anew after a second or two."""
    return make_cluster(3).start("--scrub-days", "0.00002")


def test_the_scrub_mends_a_flipped_bit_by_itself(scrubbing):
    cluster, data = scrubbing, noise(5 * MIB, seed=21)
    cluster[1].exec(["tee", "/ks/rot"], input=data)
    cluster[2].ks("fetch", "/ks/rot")
    wait_for(lambda: set(cluster[3].holders("rot")) == {"host1", "host2"}, 20)
    for damaged in (2, 1):
        flip(cluster[damaged], "rot", 3_000_000)
        assert (cluster[damaged].datadir / "rot").read_bytes() != data
        wait_for(
            lambda damaged=damaged: (
                (cluster[damaged].datadir / "rot").exists() and (cluster[damaged].datadir / "rot").read_bytes() == data
            ),
            40,
            "it is mended",
        )
        assert "the scrub found bytes here" in cluster[damaged].log()
        wait_for(lambda damaged=damaged: cluster[damaged].status()["scrub"]["mended"] == 1, 20)
    assert set(cluster[3].holders("rot")) == {"host1", "host2"}
    assert cluster[3].exec(["cat", "/ks/rot"]).stdout == data


def test_the_scrub_names_a_file_without_a_good_copy_everywhere(scrubbing):
    cluster, data = scrubbing, noise(2 * MIB, seed=22)
    cluster[2].shell("mkdir /ks/d")
    cluster[2].exec(["tee", "/ks/d/lost"], input=data)
    verify(cluster[2], "/ks/d/lost")
    assert cluster[1].status()["damaged"] == {"count": 0, "first": []}
    flip(cluster[2], "d/lost", 1_000_000)
    for node in cluster.nodes:
        wait_for(lambda node=node: node.status()["damaged"]["count"] == 1, 40, "it is named")
        assert node.status()["damaged"]["first"] == [{"path": "/ks/d/lost", "node": "host2"}]
        assert "/ks/d/lost on host2" in node.ks("status").text
        doctor = node.ks("doctor", check=False)
        assert doctor.status == 1 and "/ks/d/lost on host2" in doctor.text, doctor
    # It is written anew: no trouble any more.
    cluster[3].exec(["tee", "/ks/d/lost"], input=data)
    wait_for(lambda: cluster[1].status()["damaged"]["count"] == 0, 60)


def test_a_restart_goes_on_with_the_scrub_where_it_was(make_cluster):
    cluster = make_cluster(1).start("--scrub-days", "1")
    for number in range(30):
        cluster[1].put(f"f{number:02}", noise(20_000, seed=number))
    wait_for(lambda: (cluster[1].datadir / ".ks/scrub").exists(), 20)
    before = (cluster[1].datadir / ".ks/scrub").read_bytes()
    cluster[1].stop()
    cluster[1].restart()
    assert (cluster[1].datadir / ".ks/scrub").read_bytes()[:4] == before[:4], "the same round"
    off = make_cluster(1).start("--scrub-days", "0")
    assert off[1].status()["scrub"] is None


def test_doctor_names_records_that_cannot_be_read(make_cluster):
    cluster = make_cluster(1).start()
    cluster[1].shell("mkdir /ks/d; echo x > /ks/d/file; echo x > /ks/other")
    ino = cluster[1].shell("stat -c %i /ks/d/file").text.strip()
    assert "records" in cluster[1].ks("doctor", check=False).text
    redis = cluster[1].datadir / ".ks/redis"
    password = (redis / "password").read_text().strip()
    command = ["redis-cli", "-s", redis / "redis.sock", "--no-auth-warning", "-a", password]
    assert cluster[1].exec([*command, "set", f"ks:i:{ino}", "nonsense"]).text == "OK\n"
    doctor = cluster[1].ks("doctor", check=False)
    assert doctor.status == 1 and "/ks/d/file: its record cannot be read" in doctor.text, doctor


def test_md5_is_computed_when_asked_for_and_kept_with_the_version(make_cluster):
    cluster, data = make_cluster(3).start(), noise(5 * MIB, seed=31)
    expected = hashlib.md5(data, usedforsecurity=False).hexdigest()
    cluster[1].exec(["tee", "/ks/summed"], input=data)
    (row,) = cluster[2].ks_json("where", "/ks/summed")
    assert row["md5"] is None, "nobody has asked for it"
    (row,) = cluster[2].ks_json("where", "--md5", "/ks/summed")
    assert row["md5"] == expected, "computed where the file is"
    assert not (cluster[2].datadir / "summed").exists()
    script = 'import os; print(os.getxattr("/ks/summed", "user.ks.md5").decode())'
    for node in cluster.nodes:
        assert node.exec(["python3", "-c", script]).text.strip() == expected
    # Fetched whole, and compared with it by the way.
    cluster[3].ks("fetch", "/ks/summed")
    assert (cluster[3].datadir / "summed").read_bytes() == data
    assert "MD5" not in cluster[3].log()
    # Another version has another.
    cluster[2].shell("printf more >> /ks/summed")
    (row,) = cluster[1].ks_json("where", "/ks/summed")
    assert row["md5"] is None
    again = hashlib.md5(data + b"more", usedforsecurity=False).hexdigest()
    assert cluster[2].exec(["python3", "-c", script]).text.strip() == again
    assert cluster[1].ask('reply(c.md5("summed"))')[0][1] == again
    cluster[1].exec(["touch", "/ks/empty"])
    (row,) = cluster[1].ks_json("where", "--md5", "/ks/empty")
    assert row["kind"] == "file"


def test_a_file_whose_only_copy_cannot_be_looked_at_is_not_well(make_cluster):
    cluster = make_cluster(2).start()
    cluster[2].shell("echo there > /ks/there")
    cluster[1].shell("echo here > /ks/here")
    cluster[2].stop()
    wait_for(lambda: cluster[1].status()["nodes"].get("alive") == 1, 20)
    there, here = sorted(verify(cluster[1], "/ks", status=1), key=lambda row: row["path"], reverse=True)
    assert not there["ok"] and not there["lost"] and there["copies"][0]["state"].startswith("not asked"), there
    assert here["ok"], here
