"""What is used wrongly or is missing: one clear line, a status that is not 0, and nothing left behind."""

import os
import subprocess
import time

import pytest

from harness import Cluster, wait_for
from harness.node import PROGRAM, PYTHON, need_running

FAIL_WITHIN_S = 30

# Appends line after line; tells, when it is ended, how many were acknowledged.
GOES_ON_WRITING = """
import os, signal, sys, time
done = 0
def end(*_):
    print(done, flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    try:
        with open("/ks/log", "a") as file:
            file.write("x\\n")
        done += 1
    except OSError:
        pass
    time.sleep(0.001)
"""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes that run, and a third host where things go wrong."""
    need_running()
    with Cluster(3) as cluster:
        cluster[1].start("--num-workers", "1")
        cluster.copy_key(cluster[1], cluster[2])
        cluster.copy_key(cluster[1], cluster[3])
        cluster[2].start("--join", "host1", "--num-workers", "1")
        yield cluster


def refused(node, argv, *words, status=1, before=None):
    """The command fails in time, with one line that has all the words, and leaves the host as it was."""
    before = before if before is not None else node.leftovers()
    began = time.monotonic()
    done = node.exec(argv, check=False, timeout=FAIL_WITHIN_S + 10)
    assert time.monotonic() - began < FAIL_WITHIN_S, done
    assert done.status == status, done
    lines = [line for line in done.error.splitlines() if line.strip()]
    assert len(lines) == 1, f"one line was due: {done}"
    for word in words:
        assert word in lines[0], f"'{word}' is missing: {lines[0]}"
    assert "panicked" not in done.error and "Error {" not in done.error, done
    wait_for(lambda: node.leftovers() == before, 5, f"{node.leftovers()} is left")
    return lines[0]


def mount(node, *flags, mountpoint="/ks", datadir=None):
    return [PROGRAM, "mount", mountpoint, "--datadir", datadir or node.datadir, *flags]


HOLD_PORT = """
import socket, time
holder = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
holder.bind(("::", 6323))
time.sleep(60)
"""


def test_a_port_in_use(cluster):
    node = cluster[3]
    holder = node.spawn(["python3", "-c", HOLD_PORT])
    try:
        wait_for(lambda: ":18B3" in node.exec(["cat", "/proc/net/udp6"]).text, 10)
        refused(node, mount(node, "--join", "host1"), "6323", "in use")
    finally:
        holder.kill()
        holder.wait()


def test_no_dev_fuse(cluster):
    node = cluster[3]
    hide = 'mount -t tmpfs none /dev && for d in null zero random urandom; do touch /dev/$d; done; exec "$@"'
    refused(node, ["unshare", "-m", "bash", "-c", hide, "hide", *mount(node, "--join", "host1")], "/dev/fuse")


def test_no_redis_server(cluster):
    node = cluster[3]
    refused(node, ["env", f"PATH={PYTHON.parent}", *mount(node)], "redis-server", "install")


def test_a_mount_point_that_is_not_empty(cluster):
    node = cluster[3]
    node.shell("mkdir -p /full; touch /full/file")
    refused(node, mount(node, "--join", "host1", mountpoint="/full"), "/full", "empty")
    assert node.exec(["ls", "/full"]).text == "file\n"


def test_a_mount_point_that_cannot_be_made(cluster):
    refused(cluster[3], mount(cluster[3], "--join", "host1", mountpoint="/proc/nowhere"), "/proc/nowhere")


def test_a_mount_point_that_is_a_file(cluster):
    cluster[3].shell("touch /afile")
    refused(cluster[3], mount(cluster[3], "--join", "host1", mountpoint="/afile"), "/afile", "directory")


def test_a_tree_is_mounted_there_already(cluster):
    refused(cluster[2], mount(cluster[2], "--join", "host1"), "/ks", before=cluster[2].leftovers())
    assert cluster[2].status()["state"] == "running"


def test_a_dead_mount_is_cleared(make_cluster):
    cluster = make_cluster(1).start()
    cluster[1].kill9()
    assert "/ks" in cluster.hosts.mounts(1)
    cluster[1].restart()
    assert cluster.hosts.mounts(1) == ["/ks"]
    cluster[1].shell("echo alive > /ks/alive")


def test_a_dead_mount_keeps_programs_out_until_it_is_replaced(make_cluster):
    """A program that goes on writing gets errors, and does not fill the bare directory where nobody looks."""
    node = make_cluster(1).start()[1]
    writer = node.spawn(["python3", "-c", GOES_ON_WRITING], stdout=subprocess.PIPE)
    try:
        wait_for(lambda: int(node.shell("wc -l < /ks/log || echo 0").text) > 10, 10, "lines")
        for _ in range(3):
            node.kill9()
            node.restart()
        writer.terminate()
        acknowledged = int(writer.communicate(timeout=10)[0])
    finally:
        writer.kill()
        writer.wait()
    # In the moment between the two mounts a line may still go astray.
    assert acknowledged - int(node.shell("wc -l < /ks/log").text) <= 3 * 20


def test_a_data_directory_that_two_nodes_share(cluster):
    node = cluster[3]
    refused(node, mount(node, "--join", "host1", datadir=cluster[2].datadir), str(cluster[2].datadir), "another node")
    assert cluster[2].status()["state"] == "running"


def test_a_data_directory_that_cannot_be_made(cluster):
    refused(cluster[3], mount(cluster[3], "--join", "host1", datadir="/proc/data"), "/proc/data")


def test_a_data_directory_in_the_tree(cluster):
    refused(cluster[3], mount(cluster[3], "--join", "host1", datadir="/ks/data"), "/ks/data", status=2)


def test_a_redis_that_is_not_there(cluster):
    refused(cluster[3], mount(cluster[3], "--redis", "redis://host1:6399"), "host1:6399")


def test_a_redis_url_that_is_none(cluster):
    done = cluster[3].exec(mount(cluster[3], "--redis", "mysql://host1"), check=False)
    assert done.status == 2 and "mysql" in done.error


OLD_REDIS = """
import socketserver
class Old(socketserver.StreamRequestHandler):
    def handle(self):
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                self.rfile.readline()
                words.append(self.rfile.readline().strip().decode().upper())
            if words[0] == "INFO":
                text = b"# Server\\r\\nredis_version:5.0.7\\r\\n"
                self.wfile.write(b"$%d\\r\\n%s\\r\\n" % (len(text), text))
            elif words[0] in ("PING", "SELECT", "CLIENT", "AUTH"):
                self.wfile.write(b"+OK\\r\\n")
            else:
                self.wfile.write(b"-ERR unknown command `%s`\\r\\n" % words[0].encode())
socketserver.ThreadingTCPServer(("127.0.0.1", 6400), Old).serve_forever()
"""


def test_a_redis_that_is_too_old(cluster):
    node = cluster[3]
    server = node.spawn(["python3", "-c", OLD_REDIS])
    try:
        wait_for(lambda: ":1900 " in node.exec(["cat", "/proc/net/tcp"]).text, 10)
        line = refused(node, mount(node, "--redis", "redis://127.0.0.1:6400"), "127.0.0.1:6400")
        assert "old" in line or "7." in line, line
    finally:
        server.kill()
        server.wait()


def test_no_redis_and_none_given(cluster):
    line = refused(cluster[3], mount(cluster[3], "--no-redis"), "--redis", status=2)
    assert "--join" in line


def test_a_node_name_that_is_taken(cluster):
    refused(cluster[3], mount(cluster[3], "--join", "host1", "--node-name", "host2"), "host2", "taken")
    assert cluster[1].status()["nodes"]["alive"] == 2


def test_a_host_to_join_that_is_not_there(cluster):
    refused(cluster[3], mount(cluster[3], "--join", "nosuchhost"), "nosuchhost")
    refused(cluster[3], mount(cluster[3], "--join", "10.66.0.77"), "10.66.0.77")


def test_a_key_file_that_is_no_key(cluster):
    bad = cluster[3].home / "bad.key"
    bad.write_text("this is no key\n")
    bad.chmod(0o600)
    refused(cluster[3], mount(cluster[3], "--join", "host1", "--cluster-key", bad), str(bad))
    assert bad.read_text() == "this is no key\n"


def test_a_client_key_where_the_clusters_is_needed(cluster):
    visitor = cluster[3].home / "visitor.key"
    cluster[3].ks("key", "client", "visitor", "--output", visitor)
    joining = mount(cluster[3], "--join", "host1", "--cluster-key", visitor)
    refused(cluster[3], joining, str(visitor), "client key", "cluster's key")
    done = cluster[3].ks("key", "client", "other", "--cluster-key", visitor, check=False)
    assert done.status == 1 and "client key" in done.error, done


def test_a_name_for_a_client_key_that_is_a_path(cluster):
    for name in ("a/b", "a\nb", ""):
        done = cluster[3].ks("key", "client", name, check=False)
        assert done.status == 2 and "client's name" in done.error and "-o FILE" in done.error, done
    assert not os.path.exists("a")


def test_a_data_directory_in_another_nodes_tree(cluster):
    inside = "/ks/inside"
    other = cluster[1].home / "other"
    other.mkdir()
    done = cluster[1].ks("mount", other, "--datadir", inside, check=False)
    assert done.status == 2 and f"{inside} lies in the tree" in done.error, done
    assert not cluster[1].shell(f"ls -d {inside}", check=False).text.strip()


def test_something_else_for_a_key_file(cluster):
    for wrong in ("/etc", "/etc/passwd"):
        line = refused(cluster[3], mount(cluster[3], "--join", "host1", "--cluster-key", wrong), wrong)
        assert "chmod" not in line


def test_joining_without_a_key(cluster):
    absent = cluster[3].home / "absent.key"
    refused(cluster[3], mount(cluster[3], "--join", "host1", "--cluster-key", absent), str(absent), "scp host1:")
    assert not absent.exists(), "a key of its own joins nobody"


def test_an_address_that_is_not_this_machines(cluster):
    line = refused(cluster[3], mount(cluster[3], "--join", "host1", "--listen", "192.0.2.1:6323"), "192.0.2.1")
    assert "address of this machine" in line


def test_a_key_file_that_others_can_read(cluster):
    open_key = cluster[3].home / "open.key"
    open_key.write_bytes((cluster[3].home / ".config/ks/cluster.key").read_bytes())
    open_key.chmod(0o644)
    refused(cluster[3], mount(cluster[3], "--join", "host1", "--cluster-key", open_key), str(open_key), "chmod")


@pytest.mark.parametrize("command", ["where", "fetch"])
def test_a_path_outside_the_tree(cluster, command):
    refused(cluster[1], [PROGRAM, command, "/etc/hostname"], "/etc/hostname", before=cluster[1].leftovers())


@pytest.mark.parametrize("command", ["where", "fetch"])
def test_a_path_that_is_not_there(cluster, command):
    refused(cluster[1], [PROGRAM, command, "/ks/no/such/file"], "no/such/file", before=cluster[1].leftovers())


MOUNT = ["mount", "/ks", "--datadir", "/data"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["mount"],
        ["mount", "/ks"],
        ["dance"],
        ["where"],
        ["key", "client"],
        [*MOUNT, "--num-workers", "x"],
        [*MOUNT, "--join", ""],
        [*MOUNT, "--join", "host1:abc"],
        [*MOUNT, "--advertise", "x y"],
        [*MOUNT, "--advertise", "host3:99999"],
        [*MOUNT, "--listen", ":99999"],
        [*MOUNT, "--queue", "a b"],
        [*MOUNT, "--node-name", "a/b"],
        [*MOUNT, "--memory-limit", "1M"],
        [*MOUNT, "--memory-limit", "99999999999999999999G"],
        [*MOUNT, "--python", "old=/no/such/python"],
    ],
)
def test_wrong_use_is_status_2(cluster, arguments):
    done = cluster[3].ks(*arguments, check=False)
    assert done.status == 2 and done.error


def test_nothing_is_mounted(cluster):
    for arguments in (["status"], ["nodes"], ["umount", "/ks"], ["where", "/ks/x"]):
        done = cluster[3].ks(*arguments, check=False)
        assert done.status == 1 and len(done.error.splitlines()) == 1, done


def test_no_node_on_this_machine_for_a_client(cluster):
    code = """
        from kitchensink import Client, errors
        try:
            Client().ping()
        except errors.ConnectionFailed as error:
            reply(str(error))
    """
    done = cluster[3].python(code)
    assert "ks mount" in done.text, done


def test_a_function_that_cannot_be_pickled(cluster):
    code = """
        import threading
        lock = threading.Lock()
        try:
            c.call(lambda: lock)
        except errors.NotSerializable as error:
            reply(str(error))
    """
    assert "lock" in cluster[1].ask(code)
    assert cluster[1].ask("reply(c.call(abs, -1, _async=False))") == 1


def test_a_result_that_cannot_be_pickled(cluster):
    code = """
        import threading
        try:
            c.call(lambda: threading.Lock(), _async=False)
        except errors.NotSerializable as error:
            reply(str(error))
    """
    assert "lock" in cluster[1].ask(code)


def test_an_argument_that_cannot_be_unpickled_there(cluster):
    """A module that only the caller has, by reference: the error says which."""
    module = cluster[1].home / "only_here"
    module.mkdir(exist_ok=True)
    code = """
        class Stubborn:
            def __reduce__(self):
                return (eval, ("__import__('no_such_module_anywhere')",))
        try:
            c.call(lambda x: 1, Stubborn(), _async=False)
        except Exception as error:
            reply([type(error).__name__, str(error)])
    """
    name, text = cluster[1].ask(code)
    assert "no_such_module_anywhere" in text, (name, text)


def test_a_full_cycle_leaves_nothing(make_cluster):
    """After `ks umount`: no mount, no process, no socket; the files and what is needed to start again stay."""
    cluster = make_cluster(1).start(workers=2)
    node = cluster[1]
    node.shell("echo kept > /ks/kept")
    node.client("assert c.call(abs, -1, _async=False) == 1")
    node.stop()
    wait_for(lambda: not node.leftovers(), 5)
    assert (node.datadir / "kept").read_text() == "kept\n"
    left = [path for path in node.datadir.rglob("*") if path.is_socket()]
    assert not left, left
    assert os.listdir(node.datadir) in (["kept", ".ks"], [".ks", "kept"])
