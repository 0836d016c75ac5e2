"""Output that comes faster than it is read: a command is held up and loses nothing, a call is held up for a moment."""

import os
import signal
import subprocess
import textwrap
import time

import pytest

from harness import Cluster, wait_for
from harness.node import PROGRAM, PYTHON, need_running

MIB = 1 << 20
RESIDENT_BYTES_MAX = 200 * MIB


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(2) as cluster:
        yield cluster.start(workers=2)


@pytest.mark.parametrize("where", ["host1", "host2"])
def test_a_slow_reader_slows_the_command_down_and_gets_all_of_it(cluster, where):
    size = 96 * MIB
    script = f"{PROGRAM} run --node {where} -- head -c {size} /dev/zero | (sleep 2; md5sum; sleep 1)"
    reader = cluster[1].spawn(["bash", "-c", f"set -o pipefail; {script}"], stdout=subprocess.PIPE)
    most = 0
    while reader.poll() is None:
        most = max(most, *(node.status()["memory_bytes"] for node in cluster.nodes))
        time.sleep(0.3)
    digest = subprocess.run(
        ["bash", "-c", f"head -c {size} /dev/zero | md5sum"], capture_output=True, check=True
    ).stdout
    assert reader.stdout.read() == digest and reader.returncode == 0
    assert most < RESIDENT_BYTES_MAX


@pytest.mark.parametrize("where", ["host1", "host2"])
def test_a_reader_that_stops_for_ever_hangs_nobody_else(cluster, where):
    def running():
        return [job for node in cluster.nodes for job in node.ks_json("jobs") if "yes" in str(job)]

    stuck = cluster[1].spawn([PROGRAM, "run", "--node", where, "--", "yes", "output"], stdout=subprocess.PIPE)
    try:
        assert stuck.stdout.read(8 * MIB).startswith(b"output\n")
        time.sleep(3)
        began = time.monotonic()
        code = f"""
            def talk():
                print("heard")
                return os.getpid()
            reply([c.call(talk, _node="{where}", _async=False) > 0, c.call(abs, -1, _node="host1", _async=False)])
        """
        done = cluster[1].ask(code)
        assert done == [True, 1] and time.monotonic() - began < 10
        assert stuck.poll() is None
        stuck.send_signal(signal.SIGINT)
        assert stuck.wait(10) != 0
        wait_for(lambda: not running(), 15, "the command ends")
        wait_for(lambda: not yes(cluster, where), 15, "its processes end")
    finally:
        stuck.kill()
        stuck.wait()


def yes(cluster, where):
    return [line for line in cluster.hosts.processes(int(where[-1])).values() if line == "yes output"]


def test_a_burst_is_not_lost_while_its_reader_is_busy_for_a_moment(cluster):
    size = 7 * MIB
    code = f"""
        import subprocess
        def shout():
            for _ in range({size} // 1024):
                os.write(1, b"y" * 1023 + b"\\n")
            return 5
        busy = subprocess.Popen(["sh", "-c", f"kill -STOP {{os.getpid()}}; sleep 2; kill -CONT {{os.getpid()}}"])
        jobs = [c.call(shout, _node=node) for node in ("host1", "host2") for _ in range(2)]
        assert [c.result(job, timeout=40) for job in jobs] == [5] * 4
        busy.wait()
    """
    done = cluster[1].client(code, timeout=90)
    assert "kitchensink:" not in done.error, done.error[-500:]
    assert done.stdout.count(b"y") == 4 * (size // 1024) * 1023


@pytest.mark.parametrize("where", ["host1", "host2"])
def test_a_call_goes_on_though_its_caller_never_reads(cluster, where):
    code = f"""
        import signal
        from kitchensink import Client
        c = Client()
        def shout():
            import time
            time.sleep(1.5)
            for _ in range(16):
                os.write(1, b"y" * (1 << 20))
            open("/ks/shouted-{where}", "w").close()
        c.call(shout, _node="{where}", _async=True)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    script = cluster[1].home / f"stops-{where}.py"
    script.write_text("import os, time\n" + textwrap.dedent(code))
    client = cluster[1].spawn([PYTHON, script], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: cluster[1].shell(f"ls /ks/shouted-{where}", check=False).status == 0, 30, "the call's end")
    finally:
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
