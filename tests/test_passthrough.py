"""Local files are read at the speed of the disk: the kernel reads them, the node does not hear of it."""

import pytest

from harness import Cluster
from harness.data import MIB, noise
from harness.node import need_running

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(1) as cluster:
        cluster[1].put("local", noise(32 * MIB))
        yield cluster.start()


@pytest.fixture
def node(cluster):
    return cluster[1]


def needs_passthrough(node):
    before = node.read_counters()["opens_passthrough"]
    node.exec(["head", "-c", "1", "/ks/local"])
    if node.read_counters()["opens_passthrough"] == before:
        pytest.skip("no kernel passthrough here (it needs Linux 6.9 and CAP_SYS_ADMIN)")


def test_reads_do_not_reach_the_daemon(node):
    needs_passthrough(node)
    before = node.read_counters()
    assert node.exec(["cat", "/ks/local"]).stdout == noise(32 * MIB)
    after = node.read_counters()
    assert after["reads"] == before["reads"] and after["read_bytes"] == before["read_bytes"]
    assert after["opens_passthrough"] > before["opens_passthrough"]


def test_a_mapping_reads_the_file(node):
    code = """
        import mmap, hashlib
        with open("/ks/local", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[12345678:12345700] == open("{local}", "rb").read()[12345678:12345700]
    """
    node.python(code.format(local=node.datadir / "local"))


def test_opens_of_every_kind_at_the_same_time(node):
    """One inode cannot be open in cached mode and in passthrough at once: all opens have to succeed all the same."""
    node.python("""
        with open("/ks/modes", "wb") as file:
            file.write(b"1" * 10000)
        readers = [open("/ks/modes", "rb") for _ in range(3)]
        writer = open("/ks/modes", "r+b")
        readers += [open("/ks/modes", "rb") for _ in range(3)]
        appender = open("/ks/modes", "ab")
        writer.write(b"2" * 5000)
        writer.flush()
        appender.write(b"3" * 5000)
        appender.flush()
        expected = b"2" * 5000 + b"1" * 5000 + b"3" * 5000
        for reader in readers:
            assert reader.read() == expected
        writer.close()
        appender.close()
        assert open("/ks/modes", "rb").read() == expected
    """)


def test_a_mapping_that_is_written(node):
    node.python("""
        import mmap
        with open("/ks/written", "wb") as file:
            file.write(bytes(100_000))
        with open("/ks/written", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[50_000:50_005] = b"hello"
            mapped.flush()
        assert open("/ks/written", "rb").read()[50_000:50_005] == b"hello"
    """)


def test_rights_are_those_of_the_user(node):
    node.shell("cd /ks; echo open > open; chmod 644 open; echo closed > closed; chmod 600 closed; mkdir -m 777 free")
    assert node.exec([*NOBODY, "cat", "/ks/open"]).text == "open\n"
    refused = node.exec([*NOBODY, "cat", "/ks/closed"], check=False)
    assert refused.status == 1 and "Permission denied" in refused.error
    assert node.exec([*NOBODY, "bash", "-c", "echo x > /ks/open"], check=False).status == 1
    node.exec([*NOBODY, "bash", "-c", "echo mine > /ks/free/mine"])
    assert node.exec(["stat", "-c", "%u", "/ks/free/mine"]).text == "65534\n"


def test_without_passthrough_everything_is_the_same(make_cluster):
    cluster = make_cluster(2)
    cluster[1].put("local", noise(8 * MIB))
    cluster.start("--no-passthrough")
    for node in cluster.nodes:
        assert node.exec(["cat", "/ks/local"]).stdout == noise(8 * MIB)
        assert node.read_counters()["opens_passthrough"] == 0
    cluster[1].shell("echo changed > /ks/local")
    assert cluster[2].exec(["cat", "/ks/local"]).text == "changed\n"
