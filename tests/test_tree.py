"""One tree over three nodes: what one node does, every node sees, as if they were one machine."""

import os
import random

import pytest

from harness import Cluster
from harness.data import MIB, noise
from harness.node import need_running


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        for node in cluster.nodes:
            node.put(f"before/{node.name}.txt", f"put on {node.name}\n")
            node.put(f"before/deep/{node.name}/a/b/c.bin", noise(100_000, seed=node.number))
        cluster[1].put("before/empty", b"")
        yield cluster.start()


def on_all(cluster, argv):
    """Runs a command on every node; they all have to say the same, which is returned."""
    said = {node.name: node.exec(argv).text for node in cluster.nodes}
    assert len(set(said.values())) == 1, said
    return said["host1"]


def test_what_was_there_before_appears_everywhere(cluster):
    listing = on_all(cluster, ["bash", "-c", "cd /ks/before && find . | sort"]).split()
    assert "./host1.txt" in listing and "./host2.txt" in listing and "./host3.txt" in listing
    assert "./deep/host3/a/b/c.bin" in listing
    assert on_all(cluster, ["cat", "/ks/before/host2.txt"]) == "put on host2\n"
    assert on_all(cluster, ["cat", "/ks/before/empty"]) == ""
    for number in (1, 2, 3):
        path = f"before/deep/host{number}/a/b/c.bin"
        for node in cluster.nodes:
            assert node.exec(["cat", f"/ks/{path}"]).stdout == noise(100_000, seed=number)


def test_attributes_are_the_same_everywhere(cluster):
    cluster[2].shell(
        "cd /ks; echo hello > attr; chmod 640 attr; chown 12:34 attr; touch -d '2001-02-03 04:05:06.7' attr"
    )
    cluster[2].shell("mkdir -m 1750 /ks/attrdir; ln -s ../attr /ks/attrdir/link")
    told = on_all(cluster, ["stat", "-c", "%n %F %a %u %g %s %y %i", "/ks/attr", "/ks/attrdir/link"])
    assert "/ks/attr regular file 640 12 34 6 2001-02-03 04:05:06.700000000" in told
    assert on_all(cluster, ["stat", "-c", "%F %a", "/ks/attrdir"]) == "directory 1750\n"
    assert on_all(cluster, ["readlink", "/ks/attrdir/link"]) == "../attr\n"
    assert on_all(cluster, ["cat", "/ks/attrdir/link"]) == "hello\n"


def test_a_closed_file_is_seen_by_the_next_open_anywhere(cluster):
    for turn in range(30):
        writer, reader = random.Random(turn).sample(cluster.nodes, 2)
        text = f"turn {turn}: " + "x" * (turn * 997)
        writer.exec(["tee", "/ks/turns"], input=text.encode())
        assert reader.exec(["cat", "/ks/turns"]).text == text


def test_names_change_everywhere_at_once(cluster):
    cluster[1].shell("mkdir -p /ks/names/d/e; echo 1 > /ks/names/d/e/f; echo 2 > /ks/names/g")
    assert on_all(cluster, ["cat", "/ks/names/d/e/f"]) == "1\n"
    cluster[2].shell("mv /ks/names/d /ks/names/moved")
    assert on_all(cluster, ["ls", "/ks/names"]) == "g\nmoved\n"
    assert on_all(cluster, ["cat", "/ks/names/moved/e/f"]) == "1\n"
    cluster[3].shell("mv /ks/names/g /ks/names/moved/e/f")
    assert on_all(cluster, ["cat", "/ks/names/moved/e/f"]) == "2\n"
    cluster[1].shell("rm /ks/names/moved/e/f; rmdir /ks/names/moved/e")
    assert on_all(cluster, ["find", "/ks/names"]) == "/ks/names\n/ks/names/moved\n"


def test_a_directory_that_is_not_empty_is_not_removed(cluster):
    cluster[1].shell("mkdir /ks/full; echo 1 > /ks/full/file")
    refused = cluster[2].exec(["rmdir", "/ks/full"], check=False)
    assert refused.status == 1 and "not empty" in refused.error
    assert cluster[3].exec(["cat", "/ks/full/file"]).text == "1\n"


def test_writing_a_little_into_a_remote_file_moves_a_little(cluster):
    data = bytearray(noise(64 * MIB, seed=9))
    cluster[1].exec(["tee", "/ks/large"], input=bytes(data))
    before = cluster.link_bytes()
    cluster[3].shell("printf 'here it is' | dd of=/ks/large bs=1 seek=30000000 conv=notrunc,fsync status=none")
    assert cluster.link_bytes() - before < MIB
    data[30_000_000:30_000_010] = b"here it is"
    for node in cluster.nodes:
        assert node.exec(["cat", "/ks/large"]).stdout == data, node.name


def test_several_nodes_append_to_one_file(cluster):
    cluster[1].shell("touch /ks/appended")
    script = "for i in $(seq 50); do echo $HOSTNAME-$i >> /ks/appended; done"
    writers = [node.spawn(["bash", "-c", script]) for node in cluster.nodes]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    lines = on_all(cluster, ["cat", "/ks/appended"]).split()
    assert sorted(lines) == sorted(f"host{n}-{i}" for n in (1, 2, 3) for i in range(1, 51))


def test_names_are_bytes(cluster):
    names = ["with space", "umlaut-ä-\N{SNOWMAN}", "new\nline", "x" * 255, "-dash", "%41", "quo'te\"s", "back\\slash"]
    code = f"""
        for name in {names!r}:
            open(os.path.join("/ks/odd", name), "w").write(name)
        open(b"/ks/odd/not-utf8-\\xff\\xfe", "wb").write(b"raw")
    """
    cluster[1].exec(["mkdir", "/ks/odd"])
    cluster[1].python(code)
    check = f"""
        assert sorted(os.listdir(b"/ks/odd")) == sorted([n.encode() for n in {names!r}] + [b"not-utf8-\\xff\\xfe"])
        for name in {names!r}:
            assert open(os.path.join("/ks/odd", name)).read() == name
        assert open(b"/ks/odd/not-utf8-\\xff\\xfe", "rb").read() == b"raw"
        try:
            open("/ks/odd/" + "y" * 256, "w")
        except OSError as error:
            assert error.errno == 36, error
        else:
            assert False, "a name of 256 bytes was taken"
    """
    for node in cluster.nodes:
        node.python(check)


def test_the_programs_own_files_are_not_in_the_tree(cluster):
    for node in cluster.nodes:
        assert ".ks" not in node.exec(["ls", "-a", "/ks"]).text.split()
        assert node.exec(["stat", "/ks/.ks"], check=False).status == 1


def test_df_tells_the_disk(cluster):
    for node in cluster.nodes:
        size, free = map(int, node.exec(["df", "-B1", "--output=size,avail", "/ks"]).text.split("\n")[1].split())
        assert 0 < free <= size


def test_df_tells_all_disks_from_the_first_moment(make_cluster):
    cluster = make_cluster(3).start()
    for node in reversed(cluster.nodes):
        size = int(node.exec(["df", "-B1", "--output=size", "/ks"]).text.split("\n")[1])
        disk = os.statvfs(node.datadir)
        assert size > 2.9 * disk.f_blocks * disk.f_frsize, node.name


def test_everyday_programs_work(cluster):
    cluster[1].shell("mkdir /ks/project; cd /ks/project; printf 'a needle\\n' > one; mkdir sub; seq 5000 > sub/two")
    cluster[2].shell("cp -a /ks/project /ks/copy; diff -r /ks/project /ks/copy")
    cluster[3].shell(
        "cd /ks; tar cf archive.tar project; mkdir out; tar xf archive.tar -C out; diff -r project out/project"
    )
    assert cluster[1].shell("cd /ks; grep -rl needle out copy | sort").text == "copy/one\nout/project/one\n"
    cluster[2].shell("cd /ks/copy; sed -i s/needle/thread/ one; sort -rn sub/two -o sub/two")
    assert cluster[3].shell("cat /ks/copy/one; head -n1 /ks/copy/sub/two").text == "a thread\n5000\n"
    cluster[3].shell(
        "cd /ks; git init -q repo; cd repo; cp ../project/one .; git add .; "
        "git -c user.name=n -c user.email=e commit -qm first; git fsck --strict"
    )
    assert (
        cluster[1].shell("git config --global --add safe.directory '*'; git -C /ks/repo log --oneline").text.count("\n")
        == 1
    )


def test_an_unlinked_file_stays_readable_while_it_is_open(cluster):
    cluster[1].python("""
        with open("/ks/unlinked", "w+") as file:
            file.write("still here")
            file.flush()
            os.unlink("/ks/unlinked")
            file.seek(0)
            assert file.read() == "still here"
        assert not os.path.exists("/ks/unlinked")
    """)
    assert cluster[2].exec(["ls", "/ks/unlinked"], check=False).status == 2


def test_the_files_are_plain_files_of_the_node(cluster):
    cluster[3].shell("mkdir -p /ks/plain/dir; echo mine > /ks/plain/dir/file")
    assert (cluster[3].datadir / "plain/dir/file").read_text() == "mine\n"


def test_the_tree_is_the_same_after_all_nodes_were_away(make_cluster):
    cluster = make_cluster(3)
    cluster[2].put("old/file", "from before\n")
    cluster.start()
    cluster[1].shell("mkdir /ks/new; echo one > /ks/new/file; ln -s file /ks/new/link; chmod 600 /ks/new/file")
    cluster[3].shell("mv /ks/old /ks/new/old; echo more >> /ks/new/old/file")
    survey = ["bash", "-c", "cd /ks; find . -printf '%p %y %m %s %l\\n' | sort; cat new/old/file"]
    before = on_all(cluster, survey)
    assert "from before\nmore\n" in before
    for node in reversed(cluster.nodes):
        node.stop()
        assert not node.leftovers()
    cluster[1].restart()
    cluster[3].restart()
    cluster[2].restart()
    assert on_all(cluster, survey) == before
