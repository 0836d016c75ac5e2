"""Registered functions on a real cluster, and a node that runs nothing else; a node started as the seeds start one."""

import subprocess

import pytest

from harness import Cluster, wait_for
from harness.node import MOUNTPOINT, PYTHON, need_running

MODULE = """
import socket
from kitchensink.rpc import RPC
rpc = RPC("analysis")

@rpc.register_function
def add(x, y):
    return x + y

@rpc.register_function
def size(path):
    return socket.gethostname(), len(open(path, "rb").read())

def secret():
    return "not registered"
"""


@pytest.fixture(scope="module")
def cluster():
    """host2 runs registered functions only."""
    need_running()
    with Cluster(2) as cluster:
        first, second = cluster.nodes
        second.put("data/x", b"x" * 1000)
        for node, flags in (
            (first, ["--module", "analysis_module"]),
            (second, ["--join", "host1", "--module", "analysis_module", "--registered-only"]),
        ):
            if node is second:
                cluster.copy_key(first, second)
            (node.home / "analysis_module.py").write_text(MODULE)
            node.exec(["env", f"PYTHONPATH={node.home}", *node.mount_command("--num-workers", 1, *flags)], timeout=45)
            node.pid = node.status()["pid"]
        yield cluster


def test_by_name_in_any_format(cluster):
    code = """
        answers = []
        for fmt in ("cloudpickle", "json"):
            far = Client("ks://host2:6323", fmt=fmt, rpc_name="analysis")
            answers.append(far.call("add", 1, 2, _async=False, _node="host2"))
            answers.append(far.call("analysis:size", "/ks/data/x", _async=False))
        reply(answers)
    """
    assert cluster[1].ask(code) == [3, ["host2", 1000]] * 2


@pytest.mark.parametrize("what", ["lambda: 1", "'analysis_module:secret'", "'os:getcwd'", "'nothing'"])
def test_nothing_else_runs_there(cluster, what):
    code = f"""
        try:
            c.call({what}, _node="host2", _async=False)
        except errors.NotRegistered as error:
            reply(str(error))
    """
    assert "host2" in cluster[1].ask(code)


def test_no_shell_commands_either(cluster):
    done = cluster[1].ks("run", "--node", "host2", "--", "true", check=False)
    assert done.status != 0 and "registered functions only" in done.error
    assert cluster[1].ks("run", "--node", "host1", "--", "true").status == 0


def test_a_name_that_is_not_registered_says_what_is(cluster):
    code = """
        try:
            c.call("subtract", 1, 2, _rpc_name="analysis", _node="host1", _async=False)
        except errors.NotRegistered as error:
            reply(str(error))
    """
    text = cluster[1].ask(code)
    assert "analysis:subtract is not registered on host1" in text and "analysis:add" in text


def test_a_node_started_as_the_seeds_start_one(make_cluster):
    cluster = make_cluster(1)
    node = cluster[1]
    command = [PYTHON, "-m", "kitchensink.scripts.start", "--datadir", node.datadir, "--num-workers", "1"]
    command += ["--node-url=http://host1:6330/", "--node-name", "seed"]
    process = node.spawn(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: node.shell(f"mountpoint -q {MOUNTPOINT}", check=False).status == 0, 30, "the mount")
        code = """
            from kitchensink import client, setup_client, settings
            setup_client("http://host1:6330/")
            def where():
                from kitchensink import settings
                return settings.host_name, settings.host_url
            reply([client().cs(where), settings.host_name, client().hosts()])
        """
        hosts = {"seed": "http://host1:6330/"}
        assert node.ask(code) == [["seed", "http://host1:6330/"], "seed", hosts]
        node.stop()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
