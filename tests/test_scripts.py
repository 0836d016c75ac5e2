"""`scripts/hosts`: what the other tests stand on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import REPOSITORY, Hosts, processes_with, wait_for
from harness.hosts import SCRIPT


@pytest.fixture(scope="module")
def pair():
    hosts = Hosts(f"scripts-{os.getpid()}", 2)
    yield hosts
    hosts.down()


def run(hosts, number, *argv, timeout=20, **options):
    return subprocess.run(
        hosts.command(number, list(argv)),
        env=hosts.environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


RECEIVE = """\
import socket
listener = socket.create_server(("", 7000))
connection, _ = listener.accept()
count = 0
while data := connection.recv(65536):
    count += len(data)
print(count)
"""
SEND = "import socket, sys; s = socket.create_connection(('host1', 7000), 2); s.sendall(bytes(int(sys.argv[1])))"


def transfer(hosts, size):
    """Sends `size` bytes from host 2 to host 1 over TCP; returns the seconds, or None when there was no way."""
    receiver = subprocess.Popen(
        hosts.command(1, ["python3", "-c", RECEIVE]), env=hosts.environment, stdout=subprocess.PIPE
    )
    try:
        wait_for(lambda: ":1B58" in run(hosts, 1, "cat", "/proc/net/tcp").stdout, 10, "the receiver listens")
        began = time.monotonic()
        if run(hosts, 2, "python3", "-c", SEND, str(size)).returncode != 0:
            return None
        assert int(receiver.communicate(timeout=20)[0]) == size
        return time.monotonic() - began
    finally:
        receiver.kill()
        receiver.wait()
        receiver.stdout.close()


def test_hosts_differ_in_all_that_a_machine_has_of_its_own(pair):
    assert run(pair, 1, "hostname").stdout == "host1\n"
    assert run(pair, 2, "hostname").stdout == "host2\n"
    for place in ("/tmp", "/run", "/dev/shm", "/ks", "$HOME"):
        assert run(pair, 1, "bash", "-c", f"touch {place}/mine").returncode == 0
        assert run(pair, 2, "bash", "-c", f"test ! -e {place}/mine").returncode == 0, place
    assert not os.path.exists("/ks/mine") and not os.path.exists("/tmp/mine") and not os.path.exists("/dev/shm/mine")


def test_exec_passes_status_and_signals(pair):
    assert run(pair, 1, "sh", "-c", "exit 7").returncode == 7
    process = subprocess.Popen(pair.command(1, ["sleep", "60"]), env=pair.environment)
    wait_for(lambda: any("sleep 60" in line for line in pair.processes(1).values()), 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM


def test_exec_is_quick(pair):
    began = time.monotonic()
    for _ in range(20):
        assert run(pair, 1, "true").returncode == 0
    assert (time.monotonic() - began) / 20 < 0.1


def test_bytes_count_what_crosses_the_link(pair):
    before = pair.bytes(1), pair.bytes(2)
    assert transfer(pair, 2_000_000)
    received = pair.bytes(1)["received"] - before[0]["received"]
    sent = pair.bytes(2)["sent"] - before[1]["sent"]
    assert 2_000_000 < received < 2_200_000
    assert 2_000_000 < sent < 2_200_000


def test_a_cut_link_carries_nothing_and_a_mended_one_does(pair):
    pair.cut(2)
    assert transfer(pair, 10) is None
    pair.mend(2)
    wait_for(lambda: transfer(pair, 10), 30)


def test_rate_limits_the_link(pair):
    pair.rate(2, 40)
    try:
        slow = transfer(pair, 5_000_000)
    finally:
        pair.rate(2, "off")
    assert slow > 0.8
    # On a busy machine the start of the sender takes longer than the transfer.
    wait_for(lambda: transfer(pair, 5_000_000) < slow / 2, 20, "the limit is off")


def test_the_machines_fuse_mounts_are_not_a_hosts(pair):
    types = [
        line.split(" - ")[1].split()[0] for line in run(pair, 1, "cat", "/proc/self/mountinfo").stdout.splitlines()
    ]
    assert types and not [one for one in types if one == "fuse" or one.startswith("fuse.")]


def test_clusters_stand_side_by_side_and_leave_nothing():
    hosts = Hosts(f"scripts-{os.getpid()}-b", 1)
    straggler = subprocess.Popen(hosts.command(1, ["setsid", "sleep", "3599"]), env=hosts.environment)
    wait_for(lambda: processes_with("sleep 3599"), 5)
    directory = hosts.directory(1).parent
    hosts.down()
    straggler.wait(timeout=5)
    assert not processes_with("sleep 3599")
    assert not directory.exists()
    assert str(directory) not in open("/proc/self/mountinfo").read()
    assert not processes_with(str(directory))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["up"],
        ["up", "0"],
        ["up", "x"],
        ["dance"],
        ["--name"],
        ["--name", "a/b", "list"],
        ["exec", "x", "true"],
        ["rate", "1", "-4"],
    ],
)
def test_wrong_use_is_status_2(pair, arguments):
    done = subprocess.run([SCRIPT, *arguments], env=pair.environment, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2, done
    assert done.stderr


def test_a_second_up_under_the_same_name_is_refused(pair):
    done = subprocess.run([SCRIPT, "up", "1"], env=pair.environment, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert "already up" in done.stderr
    assert run(pair, 1, "true").returncode == 0


def test_hosts_that_died_with_their_machine_are_made_again():
    name = f"test-{os.getpid()}-dead"
    hosts = [SCRIPT, "--name", name]
    subprocess.run([*hosts, "up", "1"], check=True, capture_output=True, timeout=30)
    try:
        state = next(Path(os.environ.get("KS_HOSTS_DIR", "/tmp")).glob(f"ks-hosts-*-{name}"))
        holders = [int(file.read_text()) for file in state.glob("*.pid")]
        assert len(holders) == 2
        for pid in holders:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in holders), 5)
        again = subprocess.run([*hosts, "up", "2"], capture_output=True, text=True, timeout=30)
        assert again.returncode == 0 and "are gone" in again.stderr, again
    finally:
        subprocess.run([*hosts, "down"], check=True, capture_output=True, timeout=30)
    assert not state.exists()


def test_a_host_that_is_not_there_is_named(pair):
    done = subprocess.run(
        [SCRIPT, "exec", "9", "true"], env=pair.environment, capture_output=True, text=True, timeout=10
    )
    assert done.returncode == 1
    assert "no host 9" in done.stderr


def test_a_plain_user_has_hosts_in_a_user_namespace():
    hosts = f"{SCRIPT} --name user-{os.getpid()}"
    script = f"{hosts} up 2 && {hosts} exec 2 hostname; status=$?; {hosts} down; exit $status"
    done = subprocess.run(
        ["unshare", "-Urnm", "--setuid", "0", "bash", "-c", script], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "host2\n"), done


def test_list_is_a_table_and_json(pair):
    rows = json.loads(pair.run("list", "--json"))
    assert [row["name"] for row in rows] == ["host1", "host2"]
    assert pair.run("list").count("\n") == 2
    assert pair.name in pair.run("clusters").split()


@pytest.mark.parametrize("script", ["hosts", "setup", "test", "demo", "bench"])
def test_scripts_have_help(script):
    done = subprocess.run([REPOSITORY / "scripts" / script, "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert "Usage: scripts/" + script in done.stdout
