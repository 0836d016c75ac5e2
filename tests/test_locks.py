"""Locks on files across hosts: flock(1), fcntl, SQLite, h5py, filelock; and holders that die."""

import os
import select
import signal
import subprocess
import textwrap
import time

import pytest

from harness import wait_for

LOCKS_END_S = 30
# Far below the time between two looks of one who waits: woken by a push.
WOKEN_S = 3
# Takes a lock in a way of its own, says so, and keeps it until its input ends.
HOLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "r+b")
print(os.getpid(), flush=True)
if sys.argv[2] == "flock":
    fcntl.flock(file, fcntl.LOCK_EX)
else:
    fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
print("locked", flush=True)
sys.stdin.read()
"""
# Tells whether the lock is free: 0, or 11 (EAGAIN).
TRY = """
import errno, fcntl, sys
file = open(sys.argv[1], "r+b")
try:
    if sys.argv[2] == "flock":
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, int(sys.argv[3]), int(sys.argv[4]))
except OSError as error:
    sys.exit(error.errno)
"""
BUSY = 11


class Holder:
    """A process in a host that locks a file and keeps it locked."""

    def __init__(self, node, path, how):
        self.process = node.spawn(
            ["python3", "-c", HOLDER, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = int(self.process.stdout.readline())

    def has_locked(self):
        return self.process.stdout.readline() == "locked\n"

    def is_waiting(self):
        return self.process.poll() is None and not select.select([self.process.stdout], [], [], 0)[0]

    def kill9(self):
        os.kill(self.pid, signal.SIGKILL)

    def let_go(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=10) == 0


def hold(node, path, how):
    holder = Holder(node, path, how)
    assert holder.has_locked()
    return holder


def attempt(node, path, how, *part):
    return node.exec(["python3", "-c", TRY, path, how, *part], check=False).status


@pytest.mark.parametrize("how", ["flock", "fcntl"])
def test_a_lock_on_one_host_excludes_another_and_ends_with_its_process(trio, how):
    path = f"/ks/lock-{how}"
    trio[1].shell(f"echo content that is locked >{path}")
    holder = hold(trio[2], path, how)
    for node in (trio[1], trio[2], trio[3]):
        assert attempt(node, path, how, 10, 5) == BUSY
    if how == "fcntl":
        assert attempt(trio[3], path, how, 5, 0) == 0
        assert attempt(trio[3], path, how, 5, 10) == BUSY
        assert attempt(trio[3], path, "flock") == 0, "flock and fcntl do not see each other"
    waiter = Holder(trio[3], path, how)
    time.sleep(0.5)
    assert waiter.is_waiting()
    holder.kill9()
    began = time.monotonic()
    assert waiter.has_locked()
    assert time.monotonic() - began < WOKEN_S
    waiter.let_go()
    wait_for(lambda: attempt(trio[1], path, how, 10, 5) == 0, 5)


def test_a_waiter_can_be_interrupted(trio):
    trio[1].shell("echo x >/ks/interrupted")
    holder = hold(trio[1], "/ks/interrupted", "flock")
    for how, status in [("INT", [124]), ("KILL", [137, -9])]:
        waiter = ["timeout", "-s", how, "1", "flock", "/ks/interrupted", "true"]
        assert trio[2].exec(waiter, check=False, timeout=10).status in status
    holder.let_go()
    trio[2].shell("flock -w 5 /ks/interrupted true")


def test_the_flock_program_counts_on_three_hosts(trio):
    trio[1].shell("echo 0 >/ks/count; : >/ks/count.lock")
    script = (
        "for i in $(seq 20); do flock /ks/count.lock bash -c 'n=$(cat /ks/count); echo $((n + 1)) >/ks/count'; done"
    )
    processes = [node.spawn(["bash", "-c", script]) for node in trio.nodes]
    for process in processes:
        assert process.wait(timeout=60) == 0
    assert trio[3].shell("cat /ks/count").text == "60\n"


WRITER = """
import sqlite3, sys
connection = sqlite3.connect("/ks/numbers.db", timeout=30, isolation_level=None)
for number in range(int(sys.argv[1])):
    connection.execute("BEGIN IMMEDIATE")
    (top,) = connection.execute("SELECT coalesce(max(n), 0) FROM numbers").fetchone()
    connection.execute("INSERT INTO numbers VALUES (?, ?)", (top + 1, sys.argv[2]))
    connection.execute("COMMIT")
"""


def test_sqlite_written_by_two_nodes_under_its_own_locks_is_whole(trio):
    trio[1].python("""
        import sqlite3
        connection = sqlite3.connect("/ks/numbers.db")
        connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, who TEXT)")
        connection.commit()
    """)
    rows = 15
    writers = [node.spawn(["python3", "-c", WRITER, str(rows), node.name]) for node in (trio[1], trio[2])]
    for writer in writers:
        assert writer.wait(timeout=100) == 0
    for node in trio.nodes:
        said = node.shell("sqlite3 /ks/numbers.db 'PRAGMA integrity_check; SELECT count(*), max(n) FROM numbers'").text
        assert said.split() == ["ok", f"{2 * rows}|{2 * rows}"]


def test_sqlite_with_a_write_ahead_log_on_one_node(trio):
    said = (
        trio[2]
        .shell("""
        cd /ks
        sqlite3 wal.db 'PRAGMA journal_mode=WAL; CREATE TABLE t (n)'
        for i in $(seq 10); do sqlite3 -cmd '.timeout 20000' wal.db "INSERT INTO t VALUES ($i)" & done
        wait
        sqlite3 wal.db 'PRAGMA integrity_check; SELECT count(*) FROM t'
    """)
        .text
    )
    assert said.split() == ["wal", "ok", "10"]


def test_h5py_locks_its_files(trio):
    write = """
        import h5py
        with h5py.File("/ks/locked.h5", "{mode}") as file:
            file["{name}"] = list(range(1000))
            reply(sorted(file))
    """
    trio[1].python(write.format(mode="w", name="first"))
    trio[2].python(write.format(mode="a", name="second"))
    held = trio[1].spawn(
        [
            "python3",
            "-c",
            textwrap.dedent("""
            import h5py, sys
            file = h5py.File("/ks/locked.h5", "a")
            print("open", flush=True)
            sys.stdin.read()
        """),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout.readline() == "open\n"
    refused = trio[3].python("import h5py; h5py.File('/ks/locked.h5', 'a')", check=False)
    assert refused.status != 0 and "lock" in refused.error
    held.stdin.close()
    assert held.wait(timeout=10) == 0
    done = trio[3].python("import h5py; print(sorted(h5py.File('/ks/locked.h5', 'r')))")
    assert done.text == "['first', 'second']\n"


def test_the_filelock_library(trio):
    trio[1].shell("mkdir /ks/filelock")
    script = """
        import filelock, pathlib
        count = pathlib.Path("/ks/filelock/count")
        for _ in range(10):
            with filelock.FileLock("/ks/filelock/lock", timeout=30):
                count.write_text(str(int(count.read_text()) + 1))
    """
    trio[1].shell("printf 0 >/ks/filelock/count")
    processes = [node.spawn(["python3", "-c", textwrap.dedent(script)]) for node in trio.nodes]
    for process in processes:
        assert process.wait(timeout=60) == 0
    assert trio[2].shell("cat /ks/filelock/count").text == "30"


def test_locks_end_with_their_node(make_cluster):
    cluster = make_cluster(2).start()
    cluster.expect_clean = False
    cluster[1].shell("echo x >/ks/theirs")
    hold(cluster[2], "/ks/theirs", "fcntl")
    assert attempt(cluster[1], "/ks/theirs", "fcntl", 10, 5) == BUSY
    began = time.monotonic()
    cluster[2].kill_all()
    wait_for(lambda: attempt(cluster[1], "/ks/theirs", "fcntl", 10, 5) == 0, LOCKS_END_S, every_s=0.5)
    print(f"free after {time.monotonic() - began:.1f} s")


def test_locks_of_a_host_that_is_cut_off_end_and_it_is_told(make_cluster):
    cluster = make_cluster(2).start()
    cluster[1].shell("echo x >/ks/cut")
    holder = hold(cluster[2], "/ks/cut", "flock")
    cluster.hosts.cut(2)
    wait_for(lambda: attempt(cluster[1], "/ks/cut", "flock") == 0, LOCKS_END_S, every_s=0.5)
    other = hold(cluster[1], "/ks/cut", "flock")
    cluster.hosts.mend(2)
    wait_for(lambda: "a lock was lost" in cluster[2].log(), LOCKS_END_S, every_s=0.5)
    other.let_go()
    holder.let_go()
    wait_for(lambda: attempt(cluster[2], "/ks/cut", "flock") == 0, 10, every_s=0.5)
