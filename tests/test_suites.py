"""Other people's test programs on `/ks`: fsx, fio, dbench, pjdfstest; on the node that is the files' home, and on
one that is not."""

import textwrap

import pytest

from harness.hosts import REPOSITORY
from harness.tools import crate

FSX_SHORT, FSX_LONG = 3_000, 100_000
TURNS_SHORT, TURNS_LONG = 12, 250
OPERATIONS_PER_TURN = 400
EXERCISER = REPOSITORY / "tests" / "harness" / "exerciser.py"
# Everything that fsx can do on Linux. Not many opens: its maps of a file outlive its closing it, and they add up.
FSX_SETTINGS = """
    [weights]
    close_open = 0.2
    invalidate = 1
    mapread = 1
    mapwrite = 1
    read = 1
    write = 1
    truncate = 1
    fsync = 0.2
    fdatasync = 0.2
    posix_fallocate = 0.5
    punch_hole = 0.5
    sendfile = 0.5
    posix_fadvise = 0.5
    copy_file_range = 0.5
"""
# Who does it, on files of node 1.
PLACES = pytest.mark.parametrize("number", [1, 2], ids=["home", "forwarding"])

pytestmark = [pytest.mark.timeout(600), pytest.mark.long_timeout(3600)]


def directory_of_host1(trio, name, files=()):
    """A directory in the tree with files that live on node 1."""
    path = f"/ks/{name}"
    trio[1].shell(f"mkdir -p {path}" + "".join(f"; : >{path}/{file}" for file in files))
    return path


def home_of(node, path):
    return node.exec(["python3", "-c", f"import os; print(os.getxattr({path!r}, 'user.ks.home').decode())"]).text


@PLACES
def test_fsx(trio, long_run, number):
    fsx = crate("fsx", "0.3.2")
    node = trio[number]
    path = directory_of_host1(trio, f"fsx-{number}", ["file"])
    settings = node.home / "fsx.toml"
    settings.write_text(textwrap.dedent(FSX_SETTINGS))
    operations = FSX_LONG if long_run else FSX_SHORT
    argv = [fsx, "-N", operations, "-S", "7", "-f", settings, "-P", node.home, f"{path}/file"]
    done = node.exec(argv, timeout=3000 if long_run else 170)
    assert home_of(node, f"{path}/file") == "host1\n"
    print(f"\nfsx on host{number}: {operations} operations in {done.seconds:.1f} s")


def test_two_nodes_in_turn(trio, long_run):
    """What one closed, the other opens: compared whole at each turn, and every operation by itself."""
    path = f"{directory_of_host1(trio, 'turns')}/file"
    model = trio[1].home / "model"
    model.write_bytes(b"")
    turns = TURNS_LONG if long_run else TURNS_SHORT
    for turn in range(turns):
        node = trio[turn % 2 + 1]
        node.exec(["python3", EXERCISER, path, model, turn, OPERATIONS_PER_TURN], timeout=120)
    assert trio[3].exec(["cat", path]).stdout == model.read_bytes()


@PLACES
def test_fio_verifies_what_it_wrote(trio, long_run, number):
    path = directory_of_host1(trio, f"fio-{number}")
    size_mib = 256 if long_run else 16
    # As large as it is to be: a shorter one fio would make anew, where it runs.
    trio[1].shell(f"head -c {size_mib}M /dev/zero >{path}/file")
    common = ["fio", "--name=verified", f"--filename={path}/file", f"--size={size_mib}m", "--verify=crc32c"]
    random = [*common, "--rw=randwrite", "--bsrange=4k-128k", "--verify_fatal=1", "--do_verify=1", "--randseed=3"]
    mixed = [*common, "--rw=randrw", "--bs=4k", "--verify_fatal=1", "--verify_backlog=256", "--randseed=4"]
    for argv in (random, [*random, "--ioengine=mmap"], mixed):
        done = trio[number].exec(argv, timeout=600)
        assert "err= 0" in done.text, done
    assert home_of(trio[number], f"{path}/file") == "host1\n"


@PLACES
def test_dbench(trio, long_run, number):
    path = directory_of_host1(trio, f"dbench-{number}")
    seconds = 60 if long_run else 5
    argv = ["dbench", "-c", "/usr/share/dbench/client.txt", "-D", path, "-t", seconds, "8"]
    done = trio[number].exec(argv, timeout=seconds + 100)
    assert "Throughput" in done.text and "failed" not in done.text, done
    print(f"\ndbench on host{number}: {done.text.strip().splitlines()[-1]}")


# Everything that Linux has; users and groups that Debian has.
PJDFSTEST_SETTINGS = """
    [features]
    [features.posix_fallocate]
    [features.utimensat]
    [features.rename_ctime]
    [settings]
    naptime = 0.05
    allow_remount = false
    [dummy_auth]
    entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
"""


@PLACES
def test_pjdfstest(trio, number):
    pjdfstest = crate("pjdfstest", "0.2.0")
    node = trio[number]
    path = directory_of_host1(trio, f"pjdfstest-{number}")
    settings = node.home / "pjdfstest.toml"
    settings.write_text(textwrap.dedent(PJDFSTEST_SETTINGS))
    done = node.exec([pjdfstest, "-c", settings, "-p", path], check=False, timeout=300)
    failed = [line for line in done.text.splitlines() if line.endswith("FAILED")]
    assert done.status == 0 and not failed and "Summary: 0 failed" in done.text, (failed, done)
    print(f"\npjdfstest on host{number}: {done.text.strip().splitlines()[-1]} in {done.seconds:.1f} s")
