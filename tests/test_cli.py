"""The program `ks`: what it prints, its `--json`, its exit status."""

import json
import os
import signal
import subprocess
import time

import pytest

from harness import Cluster, wait_for
from harness.data import MIB, noise, write_noise
from harness.hosts import command_line
from harness.node import PROGRAM, PYTHON, need_running


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        cluster[2].put("data/two.bin", noise(MIB))
        yield cluster.start()


def test_mount_returns_soon_and_the_mount_answers(make_cluster):
    cluster = make_cluster(1)
    began = time.monotonic()
    cluster[1].exec([*cluster[1].mount_command("--num-workers", "1")])
    assert time.monotonic() - began < 5
    cluster[1].exec(["ls", "/ks"], timeout=2)
    cluster[1].pid = cluster[1].status()["pid"]


def test_status(cluster):
    wait_for(lambda: cluster[1].status()["nodes"]["alive"] == 3, 10)
    status = cluster[1].status()
    assert status["node"] == "host1" and status["mountpoint"] == "/ks"
    assert command_line(status["pid"])
    assert "host1" in cluster[1].ks("status").text


def test_nodes(cluster):
    rows = cluster[2].ks_json("nodes")
    assert sorted(row["name"] for row in rows) == ["host1", "host2", "host3"]
    assert all(row["alive"] for row in rows)
    table = cluster[2].ks("nodes").text
    assert all(name in table for name in ("host1", "host2", "host3"))


def test_where(cluster):
    (row,) = cluster[1].ks_json("where", "/ks/data/two.bin")
    assert row["size"] == MIB and [copy["node"] for copy in row["copies"]] == ["host2"]
    assert "host2" in cluster[1].ks("where", "/ks/data/two.bin").text
    head, row = cluster[1].ks("where", "/ks").text.splitlines()
    assert row.index("directory") == head.lower().index("state"), f"{head}\n{row}"
    rows = cluster[1].ks_json("where", "/ks/data/two.bin", "/ks/data")
    assert len(rows) == 2


def test_where_takes_relative_paths(cluster):
    said = cluster[1].shell(f"cd /ks/data && {PROGRAM} where two.bin --json").stdout
    assert json.loads(said)[0]["size"] == MIB


def test_fetch_shows_progress_and_says_what_is_there(cluster):
    cluster[2].shell(f"head -c {4 * MIB} /dev/urandom > /ks/data/fetched")
    assert cluster[3].ks("fetch", "/ks/data/fetched").status == 0
    assert "host3" in cluster[3].holders("data/fetched")


def test_of_several_paths_the_good_ones_are_done(cluster):
    good, none = "/ks/data/two.bin", "/ks/none"
    for command in (
        ["where"],
        ["fetch"],
        ["pin"],
        ["pin", "--unpin"],
        ["verify"],
        ["push", "--to", "host3"],
        ["replicate", "-n1"],
    ):
        done = cluster[1].ks(*command, none, good, check=False)
        assert done.status == 1 and "none" in done.text + done.error and "no such file" in done.text + done.error, done
        assert "Traceback" not in done.error and len(done.error.splitlines()) <= 1, done
    assert set(cluster[1].holders("data/two.bin")) >= {"host1", "host2", "host3"}, "fetched and pushed all the same"
    found = cluster[1].ks("where", none, good, "--json", check=False)
    assert found.status == 1 and [row["path"] for row in json.loads(found.stdout)] == [good]
    dropped = cluster[1].ks("drop", none, good, "--json", check=False)
    assert {row["path"]: row["ok"] for row in json.loads(dropped.stdout)} == {none: False, good: True}
    alone = cluster[1].ks("where", none, check=False)
    assert alone.status == 1 and not alone.text


def test_json_tells_names_that_are_not_utf8(cluster):
    name = b"/ks/odd\xff"
    path = os.fsdecode(name)
    cluster[1].exec(["tee", path], input=b"x")
    (row,) = cluster[1].ks_json("where", path)
    assert bytes.fromhex(row["path_hex"]) == name
    (row,) = cluster[1].ks_json("verify", path)
    assert bytes.fromhex(row["path_hex"]) == name and row["ok"]
    head, row = cluster[1].ks("where", path).text.splitlines()
    assert row.startswith("/ks/odd\\xff ") and row.index("host1") == head.index("NODE"), f"{head}\n{row}"
    (row,) = cluster[1].ks_json("where", "/ks/data/two.bin")
    assert "path_hex" not in row


def test_what_came_before_an_interrupt_is_kept_and_told(make_cluster):
    cluster = make_cluster(2)
    write_noise(cluster[2].datadir / "large", 256 * MIB)
    cluster.start()
    wait_for(lambda: cluster[1].ks_json("where", "/ks/large")[0]["blake3"], 60)
    cluster.hosts.rate(2, 200)
    fetching = cluster[1].spawn([PROGRAM, "fetch", "/ks/large"], stderr=subprocess.DEVNULL)
    wait_for(lambda: cluster[1].read_counters()["bytes_fetched"] > 16 * MIB, 30)
    fetching.send_signal(signal.SIGINT)
    assert fetching.wait(10) == 1
    wait_for(lambda: "host1" in cluster[1].holders("large"), 5, "the part that is here")
    time.sleep(0.5)
    part = cluster[1].holders("large")["host1"]["bytes"]
    assert 8 * MIB < part < 256 * MIB
    before = cluster[1].read_counters()["bytes_fetched"]
    time.sleep(1)
    assert cluster[1].read_counters()["bytes_fetched"] - before < MIB, "nothing more comes"


def test_a_mount_that_fails_leaves_nothing(make_cluster):
    cluster = make_cluster(1).start()
    node = cluster[1]
    new = node.home / "new"
    for foreground in ([], ["--foreground"]):
        command = [
            PROGRAM,
            "mount",
            new / "a/mnt",
            "--datadir",
            new / "b/data",
            "--join",
            "127.0.0.1:1",
            "--listen",
            "127.0.0.1:7001",
        ]
        failed = node.exec([*command, *foreground], check=False)
        assert failed.status == 1 and "--join" in failed.error, failed
        assert not new.exists(), list(new.rglob("*"))
        inside = node.exec([PROGRAM, "mount", new / "mnt", "--datadir", "/ks/inside", *foreground], check=False)
        assert inside.status == 2 and "lies in the tree" in inside.error, inside
        within = node.exec([PROGRAM, "mount", new / "mnt", "--datadir", new, *foreground], check=False)
        assert within.status == 2 and "may not lie in one another" in within.error, within
        assert not new.exists()
    new.mkdir()
    (new / "mine").write_text("mine")
    failed = node.exec(
        [PROGRAM, "mount", new / "mnt", "--datadir", node.home / "other", "--join", "127.0.0.1:1"], check=False
    )
    assert failed.status == 1
    assert [path.name for path in new.iterdir()] == ["mine"] and not (node.home / "other").exists()


def test_fetch_of_a_directory(cluster):
    cluster[2].shell("mkdir -p /ks/data/dir/sub; seq 1000 > /ks/data/dir/a; seq 2000 > /ks/data/dir/sub/b")
    cluster[1].ks("fetch", "/ks/data/dir")
    assert "host1" in cluster[1].holders("data/dir/a") and "host1" in cluster[1].holders("data/dir/sub/b")


def test_run_near_a_file(cluster):
    cluster[2].exec(["tee", "/ks/data/near.bin"], input=noise(MIB, seed=7))
    done = cluster[1].ks(
        "run", "--near", "/ks/data/near.bin", "--", "bash", "-c", "hostname; pwd; echo oops >&2; exit 4", check=False
    )
    assert done.status == 4 and done.text.splitlines()[0] == "host2" and "oops" in done.error
    done = cluster[1].ks("run", "--node", "host3", "--", "hostname")
    assert done.text == "host3\n"
    done = cluster[1].ks("run", "--near", "/ks/data/near.bin", "--", "sha256sum", "/ks/data/near.bin")
    assert done.text.split()[0] == cluster[2].exec(["sha256sum", "/ks/data/near.bin"]).text.split()[0]


def test_run_passes_a_signal_as_a_status(cluster):
    done = cluster[1].ks("run", "--node", "host2", "--", "bash", "-c", "kill -9 $$", check=False)
    assert done.status != 0


def test_run_that_is_interrupted_ends_as_interrupted(cluster):
    client = cluster[1].spawn([PROGRAM, "run", "--node", "host2", "--", "sleep", "346"])
    wait_for(lambda: "sleep 346" in cluster.hosts.processes(2).values(), 20, "the command runs")
    client.send_signal(signal.SIGINT)
    assert client.wait(timeout=10) == 130
    assert "sleep 346" not in cluster.hosts.processes(2).values()


def test_counts_say_what_was_counted(cluster):
    cluster[2].shell("echo x > /ks/data/counted")
    assert cluster[1].ks("pin", "/ks/data/counted").text == "files pinned: 1 of 1\n"
    assert cluster[1].ks("pin", "--unpin", "/ks/data/counted").text == "files unpinned: 1 of 1\n"
    assert cluster[1].ks("push", "/ks/data/counted").text == "copies there: 3 of 3\n"
    assert cluster[1].ks("drop", "/ks/data/counted").text == "copies given up: 1 of 1\n"
    refused = cluster[1].ks("replicate", "/ks/data/counted", "-n", "99", check=False)
    assert refused.status == 1 and "3 is all that is possible" in refused.text and "-n 3" in refused.text, refused
    assert cluster[1].ks("replicate", "/ks/data/counted", "-n", "3").text == "files with enough copies: 1 of 1\n"


def test_run_ends_with_its_client(cluster):
    def sleepers():
        return [pid for pid, line in cluster.hosts.processes(2).items() if line == "sleep 345"]

    client = cluster[1].spawn([PROGRAM, "run", "--node", "host2", "--", "sleep", "345"])
    try:
        wait_for(sleepers, 20, "the command runs on host2")
    finally:
        client.kill()
        client.wait(timeout=5)
    wait_for(lambda: not sleepers(), 15, "the command ends with its client")


def test_run_loses_no_output_however_fast_it_comes(cluster):
    size = 60 * MIB
    done = cluster[1].ks("run", "--node", "host2", "--", "head", "-c", size, "/dev/zero")
    assert done.status == 0 and len(done.stdout) == size and not done.error


def test_run_in_a_directory_of_the_tree(cluster):
    done = cluster[1].shell(f"cd /ks/data && {PROGRAM} run -- wc -c two.bin")
    assert done.text.split() == [str(MIB), "two.bin"]
    missing = cluster[1].ks("run", "--near", "/ks/nope", "--", "hostname", check=False)
    assert missing.status == 1 and "/ks/nope" in missing.error


def test_doctor(cluster):
    done = cluster[1].ks("doctor", check=False)
    assert done.status in (0, 1) and done.text.strip()
    assert json.loads(cluster[1].ks("doctor", "--json", check=False).stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions(cluster, shell):
    assert "umount" in cluster[1].ks("completions", shell).text


def test_a_reader_who_goes_away_is_no_error(cluster):
    for command in ("nodes", "status", "doctor", "completions bash"):
        error = cluster[1].shell(f"{PROGRAM} {command} | true", check=False).error
        assert "panicked" not in error and "roken pipe" not in error, error


def test_a_client_key_calls_and_is_no_node(cluster):
    node = cluster[1]
    made = node.home / "alice.key"
    assert node.ks("key", "client", "alice", "--output", made).text == f"{made}\n"
    assert made.stat().st_mode & 0o777 == 0o600
    assert node.ks("key", "client", "alice", "--output", made, check=False).status == 1, "it is not overwritten"
    assert node.ks("key", "new", check=False).status == 1, "nor is a cluster key"
    code = "from kitchensink import Client\nprint(Client('ks://host1:6323').call(abs, -3, _async=False))"
    called = node.exec(["env", f"KS_CLUSTER_KEY={made}", PYTHON, "-c", code])
    assert called.text == "3\n"
    told = node.ks("key", "client", "--help").text
    assert "change and delete files by calls" in told and "only call" not in told
    join = [PROGRAM, "mount", "/tmp/t", "--datadir", "/tmp/d", "--join", "host1", "--cluster-key", made]
    assert node.exec(join, check=False).status == 1


def test_a_log_that_nobody_reads_ends_nothing(make_cluster):
    cluster = make_cluster(1)
    node = cluster[1]
    flags = ("--foreground", "--num-workers", "0")
    process = node.spawn(node.mount_command(*flags), stderr=subprocess.PIPE)
    process.stderr.close()
    wait_for(lambda: node.ks("status", check=False).status == 0, 30)
    (redis,) = [pid for pid, line in cluster.hosts.processes(1).items() if "redis-server" in line]
    os.kill(redis, signal.SIGKILL)
    wait_for(lambda: node.shell("echo x > /ks/x", check=False).status == 0, 20)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == 0


def test_help_and_version(cluster):
    assert "mount" in cluster[1].ks("--help").text
    assert cluster[1].ks("--version").text.startswith("ks ")


APPENDER = """
import sys
acknowledged = 0
while not sys.stdin.closed:
    try:
        with open("/ks/appended", "a") as file:
            file.write("x\\n")
        acknowledged += 1
    except OSError:
        pass
    if acknowledged % 50 == 0:
        print(acknowledged, flush=True)
"""


def test_nothing_is_written_beneath_a_mount_that_is_replaced(make_cluster):
    cluster = make_cluster(1).start()
    cluster.expect_clean = False
    node = cluster[1]
    node.shell("echo first > /ks/appended")
    log = node.log()
    second = node.exec([PROGRAM, "mount", node.home / "second", "--datadir", node.datadir], check=False)
    assert second.status == 1 and "its node runs already, mounted on /ks" in second.error, second
    assert node.log() == log and not (node.home / "second").exists()
    another = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if node.exec([*another, PROGRAM, "--version"], check=False).status == 0:
        refused = node.exec([*another, PROGRAM, "umount", "/ks"], check=False)
        assert refused.status == 1 and refused.error.startswith("ks umount: /ks: it was mounted by root"), refused
    count = node.home / "appends"
    writer = node.spawn([PYTHON, "-c", APPENDER], stdout=count.open("w"))
    try:
        for _ in range(3):
            before = count.stat().st_size
            wait_for(lambda before=before: count.stat().st_size > before, 20)
            node.kill9()
            node.restart()
    finally:
        writer.kill()
        writer.wait(timeout=5)
    acknowledged = int(count.read_text().split()[-1])
    assert (node.datadir / "appended").read_text().count("x") >= acknowledged > 0
    node.stop()
    assert node.shell("ls -A /ks").text == "" and not cluster.hosts.mounts(1)
    node.shell("touch /ks/stray")
    refused = node.exec(node.mount_command(), check=False)
    assert refused.status == 1 and "stray" in refused.error and "Move it" in refused.error, refused


def test_foreground_ends_in_order_on_sigterm(make_cluster):
    cluster = make_cluster(1)
    node = cluster[1]
    process = node.spawn(
        [*node.mount_command("--foreground", "--num-workers", "1")], stderr=open(node.home / "stderr", "w")
    )
    wait_for(lambda: "/ks" in cluster.hosts.mounts(1), 30)
    wait_for(lambda: node.ks("status", check=False).status == 0, 10)
    node.shell("echo x > /ks/x")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    wait_for(lambda: not node.leftovers(), 5)


def test_umount_while_files_are_open_says_so(make_cluster):
    cluster = make_cluster(1).start()
    node = cluster[1]
    node.shell("echo x > /ks/x")
    busy = node.spawn(["bash", "-c", "exec 3< /ks/x; sleep 60"])
    wait_for(lambda: any(line == "sleep 60" for line in node.hosts.processes(1).values()), 5)
    done = node.ks("umount", "/ks", check=False, timeout=30)
    if done.status != 0:
        assert "/ks" in done.error
    for pid, line in node.hosts.processes(1).items():
        if "sleep 60" in line:
            os.kill(pid, signal.SIGKILL)
    busy.wait(timeout=5)
    if done.status != 0:
        node.stop()
    node.pid = None
    wait_for(lambda: not node.leftovers(), 10)


def test_environment_and_file_are_flags_too(make_cluster):
    cluster = make_cluster(1)
    node = cluster[1]
    (node.home / "ks.toml").write_text("num_workers = 1\nnode_name = 'fromfile'\n")
    node.exec(["env", f"KS_DATADIR={node.datadir}", PROGRAM, "mount", "/ks"])
    status = node.status()
    node.pid = status["pid"]
    assert status["node"] == "fromfile"


def test_memory_at_rest(cluster):
    time.sleep(1)
    assert cluster[3].status()["memory_bytes"] < 100 * MIB


def test_umount_says_what_it_waits_for_and_force_ends_a_stopped_daemon(make_cluster):
    cluster = make_cluster(2).start()
    cluster.expect_clean = False
    cluster[2].shell("echo kept > /ks/kept")
    pid = cluster[2].pid
    memory_tier = f"/dev/shm/ks-{cluster[2].status()['id']}"
    cluster[2].exec(["test", "-d", memory_tier])
    os.kill(pid, signal.SIGSTOP)
    try:
        done = cluster[2].ks("umount", "/ks", "--force", check=False, timeout=20)
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
    assert done.status == 0 and done.seconds < 10, done
    assert f"process {pid}, is stopped" in done.error and "kill -CONT" in done.error, done
    assert not command_line(pid)
    cluster[2].exec(["test", "!", "-e", memory_tier])
    cluster[2].restart()
    assert cluster[2].exec(["cat", "/ks/kept"]).text == "kept\n"


def test_errors_name_files_as_the_user_sees_them(make_cluster):
    cluster = make_cluster(1).start()
    cluster[1].shell("echo x > /ks/only")
    for command in (["where", "/ks/none"], ["fetch", "/ks/none"], ["verify", "/ks/none"]):
        refused = cluster[1].ks(*command, check=False)
        assert refused.status == 1 and "/ks/none: no such file" in refused.error.lower(), refused
    refused = cluster[1].ks("drop", "/ks/only", check=False)
    assert refused.status == 1 and "run: ks fetch /ks/only\n" in refused.text, refused
    cluster[1].ks("pin", "/ks/only")
    refused = cluster[1].ks("drop", "/ks/only", check=False)
    assert refused.status == 1 and "run: ks pin --unpin /ks/only\n" in refused.text, refused
    assert cluster[1].ks("where", "/ks/only").text.splitlines()[1].startswith("/ks/only ")
    assert cluster[1].ks_json("where", "/ks/only")[0]["path"] == "/ks/only"


def test_a_number_is_no_data_directory(make_cluster):
    cluster = make_cluster(1)
    (cluster[1].home / "ks.toml").write_text("datadir = 5\n")
    refused = cluster[1].shell(f"KS_CONFIG={cluster[1].home}/ks.toml {PROGRAM} mount /ks", check=False)
    assert refused.status == 2 and "'datadir' must be a path in quotes, not 5" in refused.error, refused
