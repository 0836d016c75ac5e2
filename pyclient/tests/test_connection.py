"""Connections: finding the node, losing it, forks, Ctrl-C, nonsense."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from fake_node import FakeNode, until

from kitchensink import Client, ConnectionFailed, ConnectionLost, _native, discovery, setup_client
from kitchensink import client as default_client

MOUNTINFO = r"""23 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
99 28 0:50 / /ks rw,nosuid,nodev shared:1 - fuse.ks ks:/data/with\040space/.ks/control.sock rw,user_id=0
98 28 0:51 / /mnt/other\040tree rw - fuse.ks ks:/run/other.sock rw
97 28 0:52 / /mnt/sshfs rw shared:9 - fuse.sshfs host:/data rw
"""


def test_the_mount_table_is_read():
    found = discovery.mounts(MOUNTINFO)
    assert found == [("/ks", "/data/with space/.ks/control.sock"), ("/mnt/other tree", "/run/other.sock")]
    assert discovery.choose(found, "/home") == found[0]
    assert discovery.choose(found, "/mnt/other tree/deep") == found[1]
    assert discovery.choose(found, "/mnt/other treex") == found[0]
    assert discovery.choose([], "/") is None


def test_addresses():
    assert discovery.parse("ks://host1") == (None, "host1:6323")
    assert discovery.parse("ks://[::1]:7000") == (None, "[::1]:7000")
    assert discovery.parse("/a/b.sock") == ("/a/b.sock", None)
    assert discovery.parse("unix:///a/b.sock") == ("/a/b.sock", None)
    assert discovery.parse("http://host1:6324/") == (None, "host1:6324")
    for wrong in ("host1", "ks://", "ftp://x", "ks://host:port"):
        with pytest.raises(ConnectionFailed, match="not a node's address"):
            discovery.parse(wrong)


def test_the_environment_names_the_node(node, monkeypatch):
    monkeypatch.setenv("KS_SOCKET", node.socket)
    with Client() as client:
        assert client.ping() == "fake"
    monkeypatch.delenv("KS_SOCKET")
    monkeypatch.setenv("KS_NODE", node.socket)
    with Client() as client:
        assert client.ping() == "fake"


def test_no_node_is_said_with_the_cure(monkeypatch, tmp_path):
    for name in ("KS_SOCKET", "KS_NODE"):
        monkeypatch.delenv(name, raising=False)
    if not discovery.mounts(open("/proc/self/mountinfo").read()):
        with pytest.raises(ConnectionFailed, match="ks mount"):
            Client()
    with pytest.raises(ConnectionFailed, match="does not run any more"):
        Client(str(tmp_path / "none.sock"))
    with pytest.raises(ConnectionFailed, match="no key file .*nokey"):
        Client("ks://127.0.0.1:1", key=tmp_path / "nokey")


def test_setup_client(node):
    made = setup_client(node.socket)
    assert default_client() is made
    again = setup_client(node.socket)
    assert default_client() is again
    with pytest.raises(ConnectionLost):
        made.ping()
    again.close()


def test_another_version_of_the_protocol_is_refused(node):
    node.greeting = lambda session, request: session.reply(request, {"Hello": node.hello(version=9)})
    try:
        with pytest.raises(ConnectionFailed, match="version 9 of the protocol, this package version 1"):
            Client(node.socket)
        refusal = {"kind": "ProtocolError", "message": "speaks 1, this node 9"}
        node.greeting = lambda session, request: session.reply(request, {"Failed": refusal})
        with pytest.raises(ConnectionFailed, match="did not greet back: speaks 1, this node 9"):
            Client(node.socket)
        node.greeting = lambda session, request: session.stream.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionFailed, match="did not greet back"):
            Client(node.socket)
    finally:
        node.greeting = None


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack("<I", 0),
        struct.pack("<IQ", 1, 1 << 60),
        struct.pack("<I", 70_000),
        struct.pack("<IQ", 1, 3) + b"\xc1\xc1\xc1",
        struct.pack("<IQ", 1, 1) + b"\x05",
        struct.pack("<IQ", 1, 100) + b"cut off",
    ],
)
def test_nonsense_ends_the_connection_and_nothing_else(node, nonsense):
    with Client(node.socket) as client:
        job = client.call(time.sleep, 0.2)
        session = node.sessions[-1]
        with session.lock:
            session.stream.sendall(nonsense)
            session.stream.shutdown(socket.SHUT_WR)
        # Asked for again on another connection; lost where nonsense stands for an answer.
        assert isinstance(job.exception(10), (type(None), ConnectionLost))
        assert client.ping() == "fake"


def test_a_broken_connection_is_made_again_and_nobody_notices(node):
    with Client(node.socket) as client:
        jobs = [client.call(time.sleep, 0.3) for _ in range(3)]
        results = []
        threads = [threading.Thread(target=lambda job=job: results.append(job.exception(10))) for job in jobs]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        node.drop_connections()
        for thread in threads:
            thread.join(10)
        assert results == [None] * 3


def test_jobs_hear_of_it_when_no_node_can_be_reached(node, monkeypatch):
    monkeypatch.setattr("kitchensink.session.AGAIN_ALONE_SECONDS", 0.3)
    with Client(node.socket) as client:
        job = client.call(time.sleep, 5)
        time.sleep(0.05)
        os.rename(node.socket, f"{node.socket}.gone")
        node.drop_connections()
        error = job.exception(10)
        os.rename(f"{node.socket}.gone", node.socket)
        assert isinstance(error, ConnectionLost) and "client.result(job.id)" in str(error)
        assert client.ping() == "fake", "the next use connects again"


def test_jobs_without_a_waiter_go_on_as_well(node):
    with Client(node.socket) as client:
        job = client.call(time.sleep, 0.3)
        time.sleep(0.05)
        node.drop_connections()
        until(job.done)
        assert job.exception() is None


def test_a_node_that_does_not_answer(node, client, monkeypatch):
    monkeypatch.setattr("kitchensink.session.Session.ask.__defaults__", (0.1, None))
    node.mute = True
    try:
        with pytest.raises(TimeoutError, match="no answer within 0.1 s"):
            client.ping()
    finally:
        node.mute = False
    assert client.call(abs, -1, _async=False) == 1


def test_close_ends_waits(node):
    client = Client(node.socket)
    job = client.call(time.sleep, 5)
    errors = []
    waiter = threading.Thread(target=lambda: errors.append(job.exception(20)))
    waiter.start()
    time.sleep(0.1)
    began = time.monotonic()
    client.close()
    waiter.join(5)
    assert isinstance(errors[0], ConnectionLost) and time.monotonic() - began < 2
    with pytest.raises(ConnectionLost, match="closed"):
        client.ping()
    client.close()


def test_a_forked_child_makes_its_own_connection(node, client):
    job = client.call(time.sleep, 0.3)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert client.call(abs, -2, _async=False) == 2
            with pytest.raises(ConnectionLost, match="forked"):
                job.result(5)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert job.result(10) is None and client.call(abs, -3, _async=False) == 3


def run_script(node, body, *, interrupt_after=None, timeout=60):
    """Runs a script in a Python of its own, with a client `c`."""
    # Whoever runs the tests in the background has SIGINT ignored, which a child inherits.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = (
        f"{heard}\nimport time, sys, threading, os\nfrom kitchensink import *\nc = Client({node.socket!r})\n{body}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        if interrupt_after is not None:
            line = process.stdout.readline()
            assert line == "ready\n", line
            time.sleep(interrupt_after)
            process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize(
    "wait",
    [
        "c.call(time.sleep, 30, _async=False)",
        "c.map(time.sleep, [30] * 10)",
        "[c.bc(time.sleep, 30) for _ in range(10)]; c.execute(); c.br()",
    ],
)
def test_ctrl_c_cancels_what_the_wait_started_and_says_so(node, wait):
    body = f"print('ready', flush=True)\ntry:\n    {wait}\nexcept KeyboardInterrupt:\n    print('interrupted')"
    status, out, err, seconds = run_script(node, body, interrupt_after=0.3)
    assert (status, out) == (0, "interrupted\n"), err
    assert "kitchensink: interrupted; 1" in err and err.count("\n") == 1
    assert seconds < 2
    until(lambda: not node.going)


def test_ctrl_c_in_result_leaves_the_job_alone(node):
    body = """
job = c.call(time.sleep, 1)
print('ready', flush=True)
try:
    job.result()
except KeyboardInterrupt:
    print(job.result())
"""
    status, out, err, _ = run_script(node, body, interrupt_after=0.2)
    assert (status, out, err) == (0, "None\n", "")


def test_ctrl_c_again_and_again_loses_nothing(node):
    body = """
import signal
armed = stop = False
def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
jobs = [c.call(abs, -n) for n in range(300)]
def pester():
    while not stop:
        time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=pester, daemon=True).start()
interrupts, results = 0, []
while len(results) < 300:
    try:
        armed = True
        value = jobs[len(results)].result(20)
        armed = False
    except KeyboardInterrupt:
        interrupts += 1
        continue
    results.append(value)
stop = True
assert results == list(range(300)), results
assert interrupts > 5, interrupts
"""
    status, _, err, _ = run_script(node, body)
    assert status == 0, err


@pytest.mark.parametrize("follows", [True, False])
def test_ctrl_c_is_seen_though_another_thread_took_the_signal(node, follows):
    # The same as one that comes just before a wait: nothing ends the wait, and whoever receives is another thread.
    body = f"""
jobs = [c.call(time.sleep, 20, _intermediate_results=False) for _ in range(2)]
if {follows}:
    threading.Thread(target=jobs[0].exception, daemon=True).start()
    time.sleep(0.3)
def press():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
began = time.monotonic()
try:
    jobs[1].result()
except KeyboardInterrupt:
    print('interrupted', time.monotonic() - began < 2)
c.cancel(jobs)
"""
    status, out, err, _ = run_script(node, body)
    assert (status, out) == (0, "interrupted True\n"), err
    until(lambda: not node.going)


def test_ctrl_c_at_any_moment_of_a_wait_is_seen_soon(node):
    body = """
import random
random.seed(3)
stop = False
def load():
    while not stop:
        sum(range(1000))
for _ in range(2):
    threading.Thread(target=load, daemon=True).start()
job, other = c.call(time.sleep, 60), c.call(time.sleep, 60)
threading.Thread(target=other.exception, daemon=True).start()
late = []
for turn in range(150):
    delay = random.choice([0, 0, 0.0005, 0.002, 0.006]) * random.random()
    seen = threading.Event()
    def press():
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=press)
    try:
        began = time.monotonic()
        thread.start()
        job.result(20)
        late.append(None)
    except KeyboardInterrupt:
        late.append(time.monotonic() - began)
    thread.join()
stop = True
assert None not in late and max(late) < 2, late
c.cancel([job, other])
"""
    status, _, err, _ = run_script(node, body)
    assert status == 0, err
    until(lambda: not node.going)


def test_a_process_ends_at_once_though_jobs_go_on(node):
    status, out, err, seconds = run_script(node, "c.call(time.sleep, 3)\nprint('end')")
    assert (status, out, err) == (0, "end\n", "") and seconds < 2.5
    until(lambda: not node.going)


def test_a_script_that_sends_and_ends_has_sent(node):
    before = len(node.calls)
    status, _, err, _ = run_script(node, "[c.call(abs, -n) for n in range(50)]")
    assert status == 0, err
    assert len(node.calls) == before + 50


def test_functions_of_main_and_of_project_modules_travel_by_value(tmp_path):
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("from .deep import twice\n")
    (tmp_path / "helpers" / "deep.py").write_text(
        "LIMIT = 5\ndef twice(x):\n    return min(2 * x, LIMIT)\n"
        "class Box:\n    def __init__(self, x):\n        self.x = x\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, helpers\nfrom helpers.deep import Box\nfrom kitchensink import Client\n"
        "def of_main(x):\n    return helpers.twice(x) + 1\n"
        "def boxed(box):\n    return Box(box.x + 1)\n"
        "c = Client(sys.argv[1])\n"
        "box = c.call(boxed, Box(4), _async=False)\n"
        "import cloudpickle\nassert not cloudpickle.list_registry_pickle_by_value()\n"
        "print(c.call(of_main, 2, _async=False), c.call(helpers.twice, 9, _async=False), box.x, isinstance(box, Box))\n"
    )
    with FakeNode() as node:
        ran = subprocess.run([sys.executable, str(script), node.socket], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("5 5 5 True\n", "")


def test_native_connections_check_what_they_are_given():
    with pytest.raises(ValueError):
        _native.adopt(1)
    with pytest.raises(OSError):
        _native.adopt(987)
    ours, theirs = socket.socketpair()
    connection = _native.adopt(ours.detach())
    with pytest.raises(TypeError):
        connection.send("text")
    with pytest.raises(TimeoutError):
        connection.recv(0.01)
    connection.wake()
    with pytest.raises(TimeoutError):
        connection.recv(10)
    theirs.sendall(struct.pack("<IQQ", 2, 3, 0) + b"ab")
    with pytest.raises(TimeoutError):
        connection.recv(0.01)
    theirs.sendall(b"c" + struct.pack("<IQ", 1, 1) + b"z")
    assert connection.recv(1) == [b"abc", b""] and connection.recv(1) == [b"z"]
    many = struct.pack("<I", 40_000) + struct.pack("<Q", 1) * 40_000 + b"x" * 40_000
    sender = threading.Thread(target=theirs.sendall, args=(many,))
    sender.start()
    assert len(connection.recv(5)) == 40_000
    sender.join()
    connection.close()
    assert connection.recv(1) is None and connection.closed
    theirs.close()


def test_blake3():
    assert _native.blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert _native.blake3(memoryview(bytes(100_000))) == _native.blake3(bytearray(100_000))
