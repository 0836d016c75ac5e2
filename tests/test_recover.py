"""Redis loses the tree, in all the ways it can: the nodes rebuild it whole."""

import json
import os
import random
import shutil
import subprocess
import time

import pytest

from harness import wait_for
from harness.data import MIB, noise
from harness.given_redis import GivenRedis

REBUILT_WITHIN_S = 60

# All that a program can see of the tree, as JSON.
TREE = """
import hashlib, json, os, sys
top = sys.argv[1]
seen = {}
for directory, directories, files in os.walk(top):
    for name in [""] + directories + files:
        path = os.path.join(directory, name).rstrip("/")
        stat = os.lstat(path)
        said = [stat.st_ino, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_size, stat.st_mtime_ns]
        if os.path.islink(path):
            said.append(os.readlink(path))
        else:
            own = [n for n in os.listxattr(path) if n.startswith("user.") and not n.startswith("user.ks.")]
            said.append({n: os.getxattr(path, n).hex() for n in sorted(own)})
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, "rb") as file:
                said.append(hashlib.sha256(file.read()).hexdigest())
        seen[os.path.relpath(path, top)] = said
print(json.dumps(seen, sort_keys=True))
"""

# Something of everything.
MAKE = """
import os
os.makedirs("/ks/a/b/c")
os.mkdir("/ks/empty", 0o750)
open("/ks/a/one", "wb").write(os.urandom(3_000_000))
open("/ks/a/b/two", "w").write("two")
os.link("/ks/a/b/two", "/ks/two again")
os.symlink("a/b/two", "/ks/link")
os.chmod("/ks/a/one", 0o4711)
os.chown("/ks/a/b/two", 12, 34)
os.setxattr("/ks/a/one", "user.kind", b"noise")
os.setxattr("/ks/empty", "user.of", b"a directory")
os.utime("/ks/a/b/two", ns=(10**18, 10**18 + 7))
os.mkdir("/ks/before")
open("/ks/before/in", "w").write("moved")
os.rename("/ks/before", "/ks/a/after")
os.mkfifo("/ks/fifo", 0o600)
open("/ks/gone", "w").write("gone")
os.unlink("/ks/gone")
"""

# Writes files until a file tells it to stop; says which writes were acknowledged and how long the longest took.
LOAD = """
import json, os, sys, time
acknowledged, longest, failed = [], 0.0, 0
os.makedirs("/ks/load", exist_ok=True)
number = 0
while not os.path.exists(sys.argv[1]):
    number += 1
    began = time.monotonic()
    try:
        with open(f"/ks/load/{number}", "w") as file:
            file.write(str(number))
        acknowledged.append(number)
    except OSError:
        failed += 1
    longest = max(longest, time.monotonic() - began)
print(json.dumps([acknowledged, longest, failed]))
"""

CHECK = """
import json, sys
for number in json.load(sys.stdin):
    assert open(f"/ks/load/{number}").read() == str(number), number
"""


def tree(node):
    done = node.exec(["python3", "-c", TREE, "/ks"], check=False)
    return json.loads(done.text) if done.text else done.error


def await_tree(node, expected):
    last = []

    def is_there():
        last[:] = [tree(node)]
        return last[0] == expected

    try:
        wait_for(is_there, REBUILT_WITHIN_S, every_s=0.3)
    except AssertionError:
        found = last[0]
        assert isinstance(found, dict), found
        other = {path: (found.get(path), said) for path, said in expected.items() if found.get(path) != said}
        more = sorted(set(found) - set(expected))
        raise AssertionError(f"other than it was: {dict(list(other.items())[:10])}, more: {more[:10]}") from None


def test_redis_is_emptied_under_load(make_cluster):
    cluster = make_cluster(2)
    with GivenRedis(cluster) as redis:
        redis.start(cluster.nodes)
        cluster[1].python(MAKE)
        cluster[2].exec(["tee", "/ks/a/of two"], input=noise(MIB))
        cluster[2].exec(["cat", "/ks/a/one"])
        expected = tree(cluster[1])
        await_tree(cluster[2], expected)
        holders = cluster[1].holders("a/one")
        stop = cluster[1].home / "stop"
        loads = []
        for node in (cluster[1], cluster[2]):
            load = LOAD.replace("/ks/load", f"/ks/load{node.number}")
            loads.append(node.spawn(["python3", "-c", load, stop], stdout=subprocess.PIPE, text=True))
        time.sleep(1)
        redis.ask("flushall")
        time.sleep(12)
        stop.touch()
        for number, load in zip((1, 2), loads):
            output, _ = load.communicate(timeout=60)
            acknowledged, longest_s, failed = json.loads(output)
            print(f"host{number}: {len(acknowledged)} written, {failed} failed, the longest took {longest_s:.1f} s")
            assert len(acknowledged) > 10
            assert longest_s < 30
            for node in (cluster[1], cluster[2]):
                check = CHECK.replace("/ks/load", f"/ks/load{number}")
                node.exec(["python3", "-c", check], input=json.dumps(acknowledged).encode(), timeout=120)
        for node in (cluster[1], cluster[2]):
            node.shell("rm -rf /ks/load1 /ks/load2" if node is cluster[1] else "true")
        without_root = {path: said for path, said in expected.items() if path != "."}
        wait_for(lambda: {p: s for p, s in tree(cluster[2]).items() if p != "."} == without_root, REBUILT_WITHIN_S)
        wait_for(lambda: cluster[1].holders("a/one") == holders, 30)


def test_redis_data_is_deleted_and_all_nodes_start_again(make_cluster):
    cluster = make_cluster(2).start()
    cluster[1].python(MAKE)
    cluster[2].exec(["tee", "/ks/a/of two"], input=noise(MIB))
    cluster[2].exec(["cat", "/ks/a/one"])
    expected = tree(cluster[1])
    await_tree(cluster[2], expected)
    cluster[2].stop()
    cluster[1].stop()
    shutil.rmtree(cluster[1].datadir / ".ks/redis")
    cluster[1].restart()
    cluster[2].restart()
    for node in (cluster[1], cluster[2]):
        await_tree(node, expected)


def test_nodes_are_killed_while_they_rebuild(make_cluster):
    cluster = make_cluster(2)
    dice = random.Random(5)
    with GivenRedis(cluster) as redis:
        for number in (1, 2):
            for file in range(1500):
                cluster[number].put(f"many{number}/{file % 30}/{file}", f"{number} {file}")
        redis.start(cluster.nodes)
        cluster[1].python(MAKE)
        expected = tree(cluster[1])
        await_tree(cluster[2], expected)
        for _ in range(4):
            redis.ask("flushall")
            for _ in range(2):
                time.sleep(dice.uniform(0.1, 5))
                node = cluster[dice.choice([1, 2])]
                node.kill9()
                node.restart()
        for node in (cluster[1], cluster[2]):
            await_tree(node, expected)


def test_a_caller_hears_that_its_job_is_lost(make_cluster):
    cluster = make_cluster(1)
    with GivenRedis(cluster) as redis:
        redis.start(cluster.nodes)
        code = "import time, kitchensink\nc = kitchensink.Client()\n"
        code += "job = c.call(time.sleep, 120)\nprint('sent', flush=True)\n"
        code += "try:\n    c.result(job)\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        caller = cluster[1].spawn(["python3", "-c", code], stdout=subprocess.PIPE, text=True)
        assert caller.stdout.readline() == "sent\n"
        time.sleep(1)
        redis.ask("flushall")
        output, _ = caller.communicate(timeout=40)
        assert "lost" in output.lower() or "gone" in output.lower(), output
        assert cluster[1].ask("reply(c.call(abs, -3, _async=False))") == 3


def test_a_damaged_catalog_is_rebuilt_on_demand(make_cluster):
    cluster = make_cluster(2)
    with GivenRedis(cluster) as redis:
        redis.start(cluster.nodes)
        cluster[1].python(MAKE)
        expected = tree(cluster[1])
        await_tree(cluster[2], expected)
        numbers = {path: said[0] for path, said in expected.items()}
        redis.ask("del", f"ks:i:{numbers['a/one']}", f"ks:d:{numbers['a/b']}")
        redis.ask("set", f"ks:i:{numbers['link']}", "nonsense")
        recovered = cluster[1].ks_json("recover")
        assert recovered["whole"] and recovered["done"]
        assert {row["node"] for row in recovered["nodes"] if row["done"]} == {"host1", "host2"}
        assert all(row["told"]["conflicts"] == [] for row in recovered["nodes"])
        for node in (cluster[1], cluster[2]):
            await_tree(node, expected)
        cluster[2].stop()
        alone = cluster[1].ks("recover", check=False)
        assert alone.status == 1 and "not there" in alone.text
        cluster[2].restart()
        for node in (cluster[1], cluster[2]):
            await_tree(node, expected)


def test_a_redis_that_forgot_its_last_moments_is_told_them_again(make_cluster):
    """As after a power failure at the first node: its append-only file ends earlier than what was acknowledged."""
    cluster = make_cluster(3).start()
    first, second, third = cluster.nodes
    second.shell("mkdir /ks/kept; echo base > /ks/kept/grows; echo base > /ks/kept/goes; echo base > /ks/kept/here")
    third.shell("cat /ks/kept/*")
    file = first.datadir / ".ks" / "redis" / "appendonlydir"
    copy = first.home / "earlier"
    wait_for(lambda: third.exec(["ls", "/ks/kept"]).text.split() == ["goes", "grows", "here"], 10)
    shutil.copytree(file, copy)
    second.shell("echo changed >> /ks/kept/grows; mkdir /ks/new; rm /ks/kept/goes; mv /ks/kept/here /ks/kept/there")
    second.exec(["tee", "/ks/new/file"], input=noise(100_000))
    second.shell("sync /ks/new/file /ks/kept/grows")
    expected = tree(second)
    first.kill_all()
    wait_for(lambda: not first.hosts.processes(1), 10, "the end of host 1")
    shutil.rmtree(file)
    shutil.copytree(copy, file)
    first.restart()
    for node in cluster.nodes:
        await_tree(node, expected)
    assert (second.datadir / "new" / "file").read_bytes() == noise(100_000)


def test_a_version_that_redis_forgot_is_told_again(make_cluster):
    """Nothing but the content of a file changed: no event is missing, and yet something was forgotten."""
    cluster = make_cluster(2).start()
    first, second = cluster.nodes
    second.shell("echo base > /ks/grows")
    assert first.exec(["cat", "/ks/grows"]).text == "base\n"
    file = first.datadir / ".ks" / "redis" / "appendonlydir"
    copy = first.home / "earlier"
    shutil.copytree(file, copy)
    second.shell("echo changed >> /ks/grows; sync /ks/grows")
    expected = tree(second)
    first.kill_all()
    wait_for(lambda: not first.hosts.processes(1), 10, "the end of host 1")
    shutil.rmtree(file)
    shutil.copytree(copy, file)
    first.restart()
    for node in cluster.nodes:
        await_tree(node, expected)
    assert second.exec(["cat", "/ks/grows"]).text == "base\nchanged\n"


@pytest.mark.parametrize("how", ["older", "removed"])
def test_the_first_node_starts_on_another_past_while_the_others_run(make_cluster, how):
    """Its Redis forgot some or all of the tree, and it looks first: the others bring their part when they can."""
    cluster = make_cluster(3).start()
    first = cluster[1]
    first.shell("mkdir /ks/shared; echo base > /ks/shared/base")
    file = first.datadir / ".ks" / "redis" / "appendonlydir"
    copy = first.home / "earlier"
    shutil.copytree(file, copy)
    for node in cluster.nodes:
        files = f"/ks/of{node.number}/$n /ks/shared/{node.number}-$n"
        node.shell(f"mkdir /ks/of{node.number}; for n in $(seq 20); do echo {node.number} $n | tee {files}; done")
    expected = tree(cluster[2])
    # Named, not read: the first node has no copies of the others' files.
    wait_for(lambda: len(first.exec(["find", "/ks", "-type", "f"]).text.splitlines()) == 121, 20, "all names")
    first.stop()
    shutil.rmtree(file)
    if how == "older":
        shutil.copytree(copy, file)
    first.restart()
    for node in cluster.nodes:
        await_tree(node, expected)
    for node in cluster.nodes:
        for number in range(1, 21):
            assert (node.datadir / f"of{node.number}" / str(number)).read_text() == f"{node.number} {number}\n"


def test_files_of_several_names_are_one_file_whoever_found_them(make_cluster):
    """Names that were there before the first mount, and such as come while the node is away."""
    cluster = make_cluster(2)
    first, second = cluster.nodes

    def link(number):
        at = second.datadir / "p"
        for below in ("x", "y"):
            (at / below).mkdir(parents=True, exist_ok=True)
        (at / "x" / str(number)).write_text(f"keep {number}")
        for name in (f"x/L{number}", f"y/{number}"):
            os.link(at / "x" / str(number), at / name)

    def contents(node, root):
        code = f"""
            paths = [os.path.join(above, name) for above, _, names in os.walk({str(root)!r}) for name in names]
            reply(sorted([os.path.relpath(path, {str(root)!r}), open(path).read()] for path in paths))
        """
        return node.ask(code)

    for number in range(20):
        link(number)
    cluster.start()
    for number in (20, 21):
        second.stop()
        link(number)
        second.restart()
        expected = sorted(
            [name, f"keep {kept}"] for kept in range(number + 1) for name in (f"x/{kept}", f"x/L{kept}", f"y/{kept}")
        )
        assert contents(second, second.datadir / "p") == expected
        for node in cluster.nodes:
            assert contents(node, "/ks/p") == expected
    assert first.exec(["stat", "-c", "%h", "/ks/p/x/7"]).text == "3\n"
    first.ks("recover", timeout=60)
    for node in cluster.nodes:
        assert contents(node, "/ks/p") == expected
    second.shell("rm /ks/p/x/L*")
    left = [[name, text] for name, text in expected if "/L" not in name]
    assert contents(second, second.datadir / "p") == left
