"""Without the cluster key nobody gets in, and a log line says who tried."""

import re
import socket
import subprocess
import textwrap
import time

import pytest

from harness import Cluster, wait_for
from harness.cluster import KEY
from harness.node import PRELUDE, PYTHON, REPLY, need_running

SECRET = "a-string-that-is-nowhere-else-in-this-test-"


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(4) as cluster:
        cluster[2].put("secret", SECRET * 5000)
        for node in cluster.nodes[:3]:
            if node.number > 1:
                cluster.copy_key(cluster[1], node)
            node.start(*([] if node.number == 1 else ["--join", "host1"]), "--num-workers", "1")
        yield cluster


def test_the_key_is_made_for_its_user_alone(cluster):
    key = cluster[1].home / KEY
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) >= 32


def refused_in_handshake(cluster):
    """A line of host1's log names host 4 (one a minute for each address, so that a stranger cannot fill the disk)."""
    lines = wait_for(lambda: host4_lines(cluster[1].log()), 10, "a log line names 10.66.0.4")
    assert "refused" in lines


def host4_lines(text):
    return "\n".join(line for line in text.splitlines() if re.search(r"10\.66\.0\.4\b", line))


def mount_refused(stranger):
    """The stranger's `ks mount --join` fails in time, says it is the key, and leaves nothing."""
    began = time.monotonic()
    refused = stranger.exec(stranger.mount_command("--join", "host1"), check=False, timeout=40)
    assert refused.status == 1 and time.monotonic() - began < 30, refused
    assert "key" in refused.error, refused
    assert not stranger.leftovers()
    assert stranger.exec(["ls", "/ks"]).text == ""


def still_well(cluster):
    assert "host4" not in cluster[1].ks("nodes").text
    assert cluster[3].exec(["head", "-c", "9", "/ks/secret"]).text == SECRET[:9]


def test_a_node_without_the_key_does_not_join(cluster):
    (cluster[4].home / KEY).unlink(missing_ok=True)
    mount_refused(cluster[4])
    still_well(cluster)


@pytest.fixture
def stranger(cluster):
    """Host 4 with the key of a cluster of its own."""
    node = cluster[4]
    if not (node.home / KEY).exists():
        node.start("--num-workers", "0")
        node.stop()
        wait_for(lambda: not node.leftovers(), 5)
    return node


def test_a_node_of_another_cluster_does_not_join(cluster, stranger):
    mount_refused(stranger)
    refused_in_handshake(cluster)
    still_well(cluster)


def test_a_client_with_another_key_is_refused(cluster, stranger):
    code = """
        from kitchensink import Client, errors
        try:
            Client("ks://host1:6323").ping()
        except errors.ConnectionFailed as error:
            reply(str(error))
    """
    done = stranger.python(code, timeout=40)
    assert "host1" in done.text, done
    refused_in_handshake(cluster)


def test_redis_is_behind_the_node(cluster):
    """The private Redis listens on no port: every TCP listener of the host would be in this table."""
    for node in cluster.nodes[:3]:
        tables = node.shell("cat /proc/net/tcp /proc/net/tcp6").text
        assert not re.search(r":18EB .* 0A ", tables), "port 6379 is open"
        listening = [line for line in tables.splitlines() if re.search(r" 0A ", line)]
        assert not listening, listening


def test_the_control_socket_is_for_its_user(cluster):
    sockets = list((cluster[1].datadir / ".ks").rglob("*.sock"))
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0, path


def test_nothing_readable_crosses_the_network(cluster):
    """Everything on host3's wire while it reads a remote file: not one copy of what is in it, nor of its name."""
    capture = """
        import socket
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.settimeout(3)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        print("listening", flush=True)
        seen, needle, until = 0, b"{needle}", time.monotonic() + 4
        while time.monotonic() < until:
            try:
                packet = wire.recv(1 << 17)
            except socket.timeout:
                break
            seen += len(packet)
            assert needle not in packet and b"secret" not in packet
        reply(seen)
    """
    script = cluster[3].home / "capture.py"
    script.write_text(PRELUDE.format(marker=REPLY) + textwrap.dedent(capture).replace("{needle}", SECRET))
    process = cluster[3].spawn([PYTHON, script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "listening\n"
        assert cluster[3].exec(["cat", "/ks/secret"]).text == SECRET * 5000
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert int(output.split(REPLY)[1]) > len(SECRET) * 4000


@pytest.mark.parametrize("nonsense", [b"", b"\xff" * 4, b"\xff" * 100_000, b"GET / HTTP/1.1\r\n\r\n", bytes(64)])
def test_nonsense_on_the_control_socket_closes_that_connection_alone(cluster, nonsense):
    (path,) = [path for path in (cluster[1].datadir / ".ks").rglob("*.sock") if "redis" not in str(path)]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        try:
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert cluster[1].ask("reply(c.call(abs, -3, _async=False))") == 3


def test_nonsense_on_the_port_changes_nothing(cluster):
    code = """
        import random, socket
        dice = random.Random(1)
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for size in list(range(0, 1400, 7)) * 3:
            s.sendto(dice.randbytes(size), ("host1", 6323))
    """
    cluster[4].python(code)
    assert cluster[3].exec(["head", "-c", "9", "/ks/secret"]).text == SECRET[:9]
    assert cluster[3].ask("reply(Client('ks://host1:6323').call(abs, -3, _async=False))") == 3
