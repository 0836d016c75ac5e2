"""The way of a read: what is fetched is right, is fetched once, and no more of it than was asked for."""

import errno
import os
import random

import pytest

from harness import Cluster, wait_for
from harness.data import MIB, noise, write_hdf5, write_noise
from harness.node import need_running

GIB = 1024 * MIB
SIZES = [0, 1, 4095, 4096, 16383, 16384, 16385, 65536, 1_000_003, 4 * MIB + 1]


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        holder = cluster[3]
        cluster.sums = {
            name: write_noise(holder.datadir / name, size, seed)
            for seed, (name, size) in enumerate(
                [("gib", GIB), ("random", 256 * MIB), ("shared", 64 * MIB), ("mapped", 64 * MIB), ("twice", 48 * MIB)]
                + [("slow", 8 * MIB), ("damaged", 8 * MIB), ("resumed", 64 * MIB), ("asked", 32 * MIB)]
                + [("lone", 48 * MIB), ("both", 48 * MIB)]
            )
        }
        for size in SIZES:
            holder.put(f"sizes/{size}", noise(size, seed=size))
        write_hdf5(holder.datadir / "instrument.h5", datasets=256, dataset_bytes=2 * MIB)
        yield cluster.start()


def received(node, function):
    """What `function` returned, and the bytes that crossed the node's link meanwhile."""
    before = node.link_bytes()["received"]
    value = function()
    return value, node.link_bytes()["received"] - before


def wait_for_hash(cluster, path):
    wait_for(lambda: cluster[3].ks_json("where", f"/ks/{path}")[0]["blake3"], 60, f"the hash of {path}")


def test_a_file_that_is_being_hashed_is_read_at_once(make_cluster):
    cluster = make_cluster(2)
    sparse = cluster[2].datadir / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(60 * GIB)
        file.seek(50 * GIB)
        file.write(b"here it is")
    cluster.start()
    read = cluster[1].exec(["dd", "if=/ks/sparse", "bs=1M", f"skip={50 * 1024}", "count=1", "status=none"])
    assert read.stdout[:10] == b"here it is" and len(read.stdout) == MIB
    assert read.seconds < 8, "the hash of all of it takes longer"


def test_a_remote_gib_is_the_same_and_then_it_is_here(cluster):
    original = cluster[3].datadir / "gib"
    node = cluster[1]
    # Before that it is read, but not kept.
    wait_for_hash(cluster, "gib")
    compared, crossed = received(node, lambda: node.exec(["cmp", "/ks/gib", original], timeout=120))
    assert compared.stdout == b""
    assert GIB <= crossed < 1.1 * GIB
    wait_for(lambda: set(node.holders("gib")) == {"host1", "host3"}, 60, "host1 is a holder")
    before = node.read_counters()
    again, crossed = received(node, lambda: node.exec(["cmp", "/ks/gib", original], timeout=60))
    after = node.read_counters()
    assert again.stdout == b"" and crossed < MIB
    if after["opens_passthrough"] == before["opens_passthrough"]:
        pytest.skip("no kernel passthrough here (it needs Linux 6.9 and CAP_SYS_ADMIN)")
    assert after["reads"] == before["reads"]


def test_the_copy_is_a_plain_file(cluster):
    cluster[2].exec(["cat", "/ks/sizes/1000003"])
    wait_for(lambda: "host2" in cluster[2].holders("sizes/1000003"), 20)
    assert (cluster[2].datadir / "sizes/1000003").read_bytes() == noise(1_000_003, seed=1_000_003)


def test_every_size_is_right(cluster):
    for size in SIZES:
        assert cluster[1].exec(["cat", f"/ks/sizes/{size}"]).stdout == noise(size, seed=size), size


def test_listing_a_remote_hdf5_file_moves_next_to_nothing_of_it(cluster):
    size = (cluster[3].datadir / "instrument.h5").stat().st_size
    local = cluster[3].exec(["h5ls", "-r", cluster[3].datadir / "instrument.h5"])
    listed, crossed = received(cluster[1], lambda: cluster[1].exec(["h5ls", "-r", "/ks/instrument.h5"]))
    assert listed.stdout == local.stdout and listed.text.count("Dataset") == 256
    assert crossed < size / 100, f"{crossed} of {size} bytes"


def test_one_dataset_of_a_remote_hdf5_file(cluster):
    code = """
        import h5py
        with h5py.File("/ks/instrument.h5") as file:
            dataset = file["run007/channel11"]
            reply([int(dataset[...].astype("i8").sum()), int(dataset.attrs["channel"])])
    """
    answer, crossed = received(cluster[2], lambda: cluster[2].ask(code))
    assert answer == cluster[3].ask(code)
    assert 2 * MIB <= crossed < 16 * MIB


def test_random_reads_move_what_they_touch(cluster):
    count = 400
    offsets = [random.Random(5).randrange(0, 256 * MIB // 4096) * 4096 for _ in range(count)]
    code = f"""
        descriptor = os.open("/ks/random", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        reply([os.pread(descriptor, 4096, offset).hex()[:64] for offset in {offsets}])
    """
    heads, crossed = received(cluster[1], lambda: cluster[1].ask(code))
    with (cluster[3].datadir / "random").open("rb") as original:
        for offset, head in zip(offsets, heads):
            assert os.pread(original.fileno(), 4096, offset).hex()[:64] == head
    assert crossed <= 5 * 4096 * count + 300_000, f"{crossed / (4096 * count):.1f} times the bytes asked for"


def test_a_remote_file_can_be_mapped(cluster):
    code = """
        import hashlib, numpy
        array = numpy.memmap("/ks/mapped", mode="r")
        reply([int(array[33_000_000]), hashlib.sha256(array).hexdigest()])
    """
    original = (cluster[3].datadir / "mapped").read_bytes()
    assert cluster[2].ask(code, timeout=120) == [original[33_000_000], cluster.sums["mapped"]]


def test_many_readers_one_fetch(cluster):
    script = "for i in 1 2 3 4 5 6; do sha256sum /ks/shared & done; wait"
    summed, crossed = received(cluster[2], lambda: cluster[2].shell(script, timeout=120))
    assert summed.text.split().count(cluster.sums["shared"]) == 6
    assert crossed < 1.15 * 64 * MIB


def test_a_second_copy_may_come_from_any_holder(cluster):
    cluster[1].exec(["sha256sum", "/ks/twice"])
    wait_for(lambda: "host1" in cluster[1].holders("twice"), 20)
    assert cluster.sums["twice"] in cluster[2].exec(["sha256sum", "/ks/twice"]).text


def test_a_slow_link_is_waited_for(cluster):
    cluster.hosts.rate(3, 20)
    try:
        assert cluster.sums["slow"] in cluster[1].exec(["sha256sum", "/ks/slow"], timeout=90).text
    finally:
        cluster.hosts.rate(3, "off")


def test_two_holders_are_faster_than_one(cluster):
    cluster[2].ks("fetch", "/ks/both", timeout=60)
    wait_for(lambda: set(cluster[1].holders("both")) == {"host2", "host3"}, 20, "two holders")
    wait_for_hash(cluster, "lone")
    took = {}
    for number in (2, 3):
        cluster.hosts.rate(number, 100)
    try:
        for name in ("lone", "both"):
            original = cluster[3].datadir / name
            took[name] = cluster[1].exec(["cmp", f"/ks/{name}", original], timeout=60).seconds
    finally:
        for number in (2, 3):
            cluster.hosts.rate(number, "off")
    assert took["lone"] > 3.8, "the link was not limited"
    assert took["lone"] / took["both"] >= 1.3, took


def test_fetch_brings_a_file_here(cluster):
    done = cluster[2].ks("fetch", "/ks/asked")
    assert done.status == 0
    assert "host2" in cluster[2].holders("asked")
    summed, crossed = received(cluster[2], lambda: cluster[2].exec(["sha256sum", "/ks/asked"]))
    assert cluster.sums["asked"] in summed.text and crossed < MIB


def test_bytes_that_rotted_at_the_holder_are_never_read(cluster):
    """The file changes without its times: what comes over the network is not the version that was hashed."""
    wait_for_hash(cluster, "damaged")
    path = cluster[3].datadir / "damaged"
    good = path.read_bytes()
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(5_000_000)
        file.write(bytes(byte ^ 0xFF for byte in good[5_000_000:5_000_100]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    code = """
        try:
            reply([len(open("/ks/damaged", "rb").read()), 0])
        except OSError as error:
            reply([0, error.errno])
    """
    assert cluster[1].ask(code, timeout=60) == [0, errno.EIO]
    part = cluster[1].exec(["head", "-c", "1000000", "/ks/damaged"]).stdout
    assert part == good[:1_000_000]


def test_what_was_fetched_is_kept_over_a_crash(make_cluster):
    cluster = make_cluster(2)
    sha256 = write_noise(cluster[2].datadir / "resumed", 96 * MIB, seed=11)
    cluster.start()
    reader = cluster[1]
    reader.exec(["head", "-c", str(64 * MIB), "/ks/resumed"])
    cluster[1].hosts.run("exec", "1", "sync")
    reader.stop()
    reader.restart()
    summed, crossed = received(reader, lambda: reader.exec(["sha256sum", "/ks/resumed"]))
    assert sha256 in summed.text
    assert crossed < 64 * MIB, f"{crossed // MIB} MiB crossed for what was missing of 96 MiB"


def test_holes_of_a_remote_file_are_holes_in_the_copy(make_cluster):
    cluster = make_cluster(2)
    sparse = cluster[1].datadir / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(64 * MIB)
        for at in (5 * MIB, 40 * MIB):
            file.seek(at)
            file.write(noise(MIB, seed=at))
    cluster.start()
    expected = cluster[1].exec(["sha256sum", "/ks/sparse"]).text.split()[0]
    assert expected in cluster[2].exec(["sha256sum", "/ks/sparse"]).text
    copy = cluster[2].datadir / "sparse"
    wait_for(copy.exists, 20)
    assert copy.stat().st_size == 64 * MIB
    assert copy.stat().st_blocks * 512 < 3 * MIB
    script = """import os
f = os.open("/ks/sparse", os.O_RDONLY)
print(os.lseek(f, 0, os.SEEK_DATA), os.lseek(f, 6 << 20, os.SEEK_DATA))"""
    assert cluster[2].exec(["python3", "-c", script]).text.split() == [str(5 * MIB), str(40 * MIB)]
