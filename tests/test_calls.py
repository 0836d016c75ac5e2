"""Calls run where the data is, and their callers hear everything: what is printed, logged, returned and raised."""

import hashlib
import json
import subprocess
import textwrap
import time

import pytest

from harness import Cluster, wait_for
from harness.data import MIB, noise
from harness.node import PYTHON, REPLY, need_running

MONTHS = range(1, 13)
MONTH_BYTES = 2 * MIB


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        for month in MONTHS:
            # Four a node: 1 to 4 on host1, 5 to 8 on host2, 9 to 12 on host3.
            cluster[(month - 1) // 4 + 1].put(f"months/{month:02}.bin", noise(MONTH_BYTES, seed=month))
        for node in cluster.nodes:
            node.put(f"where/{node.name}", noise(MIB, seed=node.number + 50))
        for name in ("hostage", "stays"):
            cluster[2].put(f"where/{name}", noise(MIB))
        yield cluster.start(workers=2)


def test_a_call_runs_where_its_file_is(cluster):
    code = """
        import socket
        def here(path, scale=1):
            return socket.gethostname(), len(open(path, "rb").read()) * scale
        answers = []
        for host in ("host1", "host2", "host3"):
            job = c.call(here, f"/ks/where/{host}", scale=2)
            answers.append([host, c.result(job, timeout=30), job.placement.node, job.placement.bytes_fetched])
        reply(answers)
    """
    for host, (ran_on, size), placed_on, fetched in cluster[1].ask(code):
        assert (ran_on, size, placed_on, fetched) == (host, 2 * MIB, host, 0)


@pytest.mark.parametrize(
    "call",
    [
        "c.call(f, {'deep': [('x', pathlib.Path('/ks/where/host3'))]})",
        "c.call(f, key=['/ks/where/host3'])",
        "c.call(f, 5, _locality=['/ks/where/host3'])",
    ],
)
def test_paths_are_found_where_they_are(cluster, call):
    code = f"""
        import pathlib, socket
        def f(*args, **kwargs):
            return socket.gethostname()
        reply(c.result({call}, timeout=30))
    """
    assert cluster[1].ask(code) == "host3"


def test_twelve_calls_over_twelve_files_run_on_their_holders(cluster):
    code = """
        import hashlib
        def digest(path):
            return hashlib.sha256(open(path, "rb").read()).hexdigest()
        paths = [f"/ks/months/{month:02}.bin" for month in range(1, 13)]
        jobs = [c.call(digest, path) for path in paths]
        reply([[c.result(job, timeout=60), job.placement.node, job.placement.bytes_local, job.placement.bytes_fetched]
               for job in jobs])
    """
    before = cluster.link_bytes()
    rows = cluster[1].ask(code, timeout=90)
    crossed = cluster.link_bytes() - before
    for month, (digest, node, local, fetched) in zip(MONTHS, rows):
        assert digest == hashlib.sha256(noise(MONTH_BYTES, seed=month)).hexdigest()
        assert node == f"host{(month - 1) // 4 + 1}", month
        assert (local, fetched) == (MONTH_BYTES, 0)
    assert crossed < 0.01 * MONTH_BYTES * 12, f"{crossed} bytes crossed"


def test_map_keeps_the_order(cluster):
    assert cluster[2].ask("reply(list(c.map(lambda x: x * x, range(50))))") == [x * x for x in range(50)]


def test_bulk_calls(cluster):
    code = """
        for x in range(30):
            c.bc(pow, x, 2)
        c.execute()
        reply(c.br())
    """
    assert cluster[3].ask(code) == [x * x for x in range(30)]


def test_what_a_call_prints_is_heard_as_it_happens(cluster):
    code = """
        def talk(path):
            import logging, os, subprocess, sys, time
            print("first line")
            sys.stdout.flush()
            time.sleep(2)
            print("to stderr", file=sys.stderr)
            logging.getLogger("my.logger").warning("a warning with %d", 42)
            subprocess.run(["echo", "from a child"])
            os.write(1, b"raw bytes\\n")
            return 7
        job = c.call(talk, "/ks/where/host2")
        assert c.result(job, timeout=30) == 7
        print("after the result", flush=True)
    """
    script = cluster[1].home / "talk.py"
    script.write_text("from kitchensink import Client\nc = Client()\n" + textwrap.dedent(code))
    process = cluster[1].spawn([PYTHON, "-u", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        first = process.stdout.readline()
        began = time.monotonic()
        assert "first line" in first
        rest = process.communicate(timeout=30)[0]
        assert time.monotonic() - began > 1, "the first line came while the call was running"
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, rest
    for heard in ("to stderr", "a warning with 42", "from a child", "raw bytes"):
        assert heard in rest and rest.index(heard) < rest.index("after the result"), rest


def test_an_exception_comes_back_as_itself(cluster):
    code = """
        import traceback
        class Trouble(ValueError):
            pass
        def inner():
            raise Trouble("about 42")
        def outer(path):
            inner()
        try:
            c.call(outer, "/ks/where/host3", _async=False)
        except Trouble as error:
            reply([str(error), isinstance(error, ValueError), "".join(traceback.format_exception(error))])
    """
    text, is_value_error, trace = cluster[1].ask(code)
    assert "about 42" in text and is_value_error
    assert "in inner" in trace and "host3" in trace


def test_a_call_cannot_spoil_the_workplace_of_the_next(cluster):
    code = """
    import os, sys
    def spoil(how):
        os.chdir("/tmp")
        if how == "descriptors":
            os.close(1); os.close(2)
        elif how == "streams":
            sys.stdout.close(); sys.stderr.close()
        elif how == "elsewhere":
            os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        return os.getpid()
    def work():
        print("heard")
        os.system("echo heard, too")
        return os.getcwd(), os.getpid()
    answers = []
    for how in ("descriptors", "streams", "elsewhere"):
        for _ in range(2):
            c.call(spoil, how, _node="host2", _async=False)
        answers += [c.call(work, _node="host2", _async=False)[0] for _ in range(4)]
    reply(answers)
    """
    done = cluster[1].client(code)
    lines = done.text.splitlines()
    assert lines.count("heard") == lines.count("heard, too") == 12, done
    (answers,) = [json.loads(line.removeprefix(REPLY)) for line in lines if line.startswith(REPLY)]
    assert answers == ["/"] * 12


def test_every_call_runs_once(cluster):
    cluster[1].shell("mkdir -p /ks/once")
    code = """
        def mark(number):
            import os
            with open(f"/ks/once/{number}", "a") as file:
                file.write("x")
            return os.uname().nodename
        reply(list(c.map(mark, range(90))))
    """
    ran_on = cluster[2].ask(code)
    assert cluster[3].shell("cat /ks/once/* | wc -c").text.strip() == "90"
    assert set(ran_on) <= {"host1", "host2", "host3"}


def test_arrays_travel(cluster):
    code = """
        import numpy
        array = numpy.arange(8 * 1024 * 1024, dtype="f8")
        job = c.call(lambda a: (a * 2, a.sum()), array, _node="host3")
        double, total = c.result(job, timeout=60)
        reply([bool((double == array * 2).all()), bool(total == array.sum()), double.nbytes, job.placement.node])
    """
    assert cluster[1].ask(code, timeout=90) == [True, True, 64 * MIB, "host3"]


def test_cancel_frees_the_worker(cluster):
    code = """
        def sleep(seconds):
            import time
            time.sleep(seconds)
            return "slept"
        jobs = [c.call(sleep, 60, _node="host2") for _ in range(4)]
        time.sleep(1)
        began = time.monotonic()
        for job in jobs:
            c.cancel(job)
        for job in jobs:
            try:
                c.result(job, timeout=20)
            except errors.JobCancelled:
                pass
            else:
                raise AssertionError("it was not cancelled")
        answer = c.call(sleep, 0, _node="host2", _async=False)
        reply([answer, time.monotonic() - began])
    """
    answer, seconds = cluster[1].ask(code)
    assert answer == "slept" and seconds < 15


def test_waiting_for_a_result_has_a_deadline_of_its_own(cluster):
    code = """
        job = c.call(lambda: time.sleep(3) or 9)
        began = time.monotonic()
        try:
            c.result(job, timeout=0.5)
        except TimeoutError:
            waited = time.monotonic() - began
        reply([waited, c.result(job, timeout=30)])
    """
    waited, answer = cluster[1].ask(code)
    assert 0.4 < waited < 2 and answer == 9


# Both workers of host2 are at work when this returns.
KEEP_BUSY = """
        def sleep_on(mark, seconds):
            open(mark, "w").close()
            time.sleep(seconds)
        def keep_busy(seconds):
            marks = [f"/ks/busy-{os.getpid()}-{number}" for number in range(2)]
            jobs = [c.call(sleep_on, mark, seconds, _node="host2") for mark in marks]
            while not all(map(os.path.exists, marks)):
                time.sleep(0.05)
            return jobs
"""


def test_a_busy_holder_does_not_hold_a_call_hostage(cluster):
    """Both workers of host2 are taken: a call whose file of 1 MiB is there runs elsewhere soon."""
    code = (
        KEEP_BUSY
        + """
        busy = keep_busy(20)
        began = time.monotonic()
        job = c.call(lambda path: len(open(path, "rb").read()), "/ks/where/hostage")
        size = c.result(job, timeout=30)
        waited = time.monotonic() - began
        for one in busy:
            c.cancel(one)
        reply([size, job.placement.node, waited])
    """
    )
    size, node, waited = cluster[1].ask(code)
    assert size == MIB and node in ("host1", "host3") and waited < 10


def test_a_call_that_was_claimed_ahead_and_waits_is_given_back(cluster):
    """Host2 has had short calls, so it claims ahead; for this one it fetches the function first."""
    cluster[2].exec(["tee", "/ks/where/ahead"], input=noise(MIB, seed=11))
    code = (
        KEEP_BUSY
        + """
        c.map(abs, range(500), _node="host2")
        busy = keep_busy(20)
        began = time.monotonic()
        large = os.urandom(200_000)
        job = c.call(lambda path: len(open(path, "rb").read() + large), "/ks/where/ahead")
        size = c.result(job, timeout=30)
        waited = time.monotonic() - began
        for one in busy:
            c.cancel(one)
        reply([size, job.placement.node, waited])
    """
    )
    size, node, waited = cluster[1].ask(code)
    assert size == MIB + 200_000 and node in ("host1", "host3") and waited < 15, (node, waited)


def test_too_far_over_the_threshold_is_not_placed_elsewhere(cluster):
    code = (
        KEEP_BUSY
        + """
        keep_busy(4)
        job = c.call(lambda path: 1, "/ks/where/stays", _data_threshold=1000)
        c.result(job, timeout=40)
        reply(job.placement.node)
    """
    )
    assert cluster[1].ask(code) == "host2"


def test_a_node_that_is_not_there_is_said_so(cluster):
    code = """
        try:
            c.call(abs, -1, _node="nowhere", _async=False)
        except errors.NotPlaceable as error:
            reply(str(error))
    """
    assert "nowhere" in cluster[1].ask(code)


def test_any_node_can_be_asked(cluster):
    code = """
        far = Client("ks://host3:6323")
        reply([far.call(lambda: 3, _async=False), sorted(far.hosts())])
    """
    answer, hosts = cluster[1].ask(code)
    assert answer == 3
    assert hosts == ["host1", "host2", "host3"]


@pytest.mark.parametrize("address", ["", "'ks://host2:6323'"], ids=["the own node", "another node"])
def test_everybody_who_asks_for_a_job_gets_its_result(cluster, address):
    code = f"""
        import io
        from contextlib import redirect_stdout
        clients = [Client({address}) for _ in range(3)]
        def slow():
            time.sleep(1)
            print("printed")
            time.sleep(0.2)
            return "value"
        heard = io.StringIO()
        with redirect_stdout(heard):
            job = clients[0].call(slow)
            attached = [client.call(abs, -1) and client.async_result(job.id) for client in clients[1:]]
            results = [clients[2].result(job.id, timeout=20), clients[0].result(job, timeout=20)]
            results += [clients[1].result(job.id, timeout=20), clients[0].result(job, timeout=20)]
        reply([results, heard.getvalue().count("printed")])
    """
    results, heard = cluster[1].ask(code)
    assert results == ["value"] * 4 and heard >= 1
    # One who asked has gone meanwhile.
    code = f"""
        one, other = Client({address}), Client({address})
        job = one.call(lambda: time.sleep(1.5) or "value")
        try:
            other.result(job.id, timeout=0.5)
        except Exception as error:
            assert type(error).__name__ in ("TimeoutError", "JobTimeout"), error
        other.close()
        reply(one.result(job, timeout=20))
    """
    assert cluster[1].ask(code) == "value"


def test_waiting_releases_the_interpreter_and_hears_ctrl_c(cluster):
    code = """
        import signal, threading
        # Whoever runs the tests in the background has SIGINT ignored, which a child inherits.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ticks = []
        def tick():
            while True:
                ticks.append(1)
                time.sleep(0.01)
        threading.Thread(target=tick, daemon=True).start()
        job = c.call(time.sleep, 30)
        threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        try:
            c.result(job)
        except KeyboardInterrupt:
            reply([len(ticks), time.monotonic() - began])
        c.cancel(job)
    """
    ticks, seconds = cluster[1].ask(code)
    assert ticks > 20 and seconds < 3


def test_a_call_opens_files_of_the_tree_and_writes_them(cluster):
    code = """
        def work(source, target):
            data = open(source, "rb").read()
            with open(target, "wb") as file:
                file.write(data[::-1])
            return len(data)
        reply(c.call(work, "/ks/where/host3", "/ks/reversed", _async=False))
    """
    assert cluster[1].ask(code) == MIB
    assert cluster[2].exec(["cat", "/ks/reversed"]).stdout == noise(MIB, seed=53)[::-1]


def test_the_callers_node_dies_and_a_worker_node_dies(make_cluster):
    cluster = make_cluster(3)
    cluster[3].put("data", noise(MIB))
    cluster.start(workers=1)
    code = """
        job = c.call(lambda path: time.sleep(60), "/ks/data")
        print("called", flush=True)
        try:
            c.result(job, timeout=60)
        except errors.NodeLost as error:
            print("lost", error, flush=True)
    """
    script = cluster[2].home / "lost.py"
    body = "import time\nfrom kitchensink import Client, errors\nc = Client()\n" + textwrap.dedent(code)
    script.write_text(body)
    process = cluster[2].spawn([PYTHON, script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "called\n"
        wait_for(lambda: running_calls(cluster[3]), 20, "host3 runs the call")
        cluster[3].kill9()
        began = time.monotonic()
        assert process.stdout.readline().startswith("lost")
        assert time.monotonic() - began < 30
    finally:
        process.kill()
        process.communicate(timeout=10)


def running_calls(node):
    """Whether the node's workers are at work, by `ks status`."""
    return "busy" in json.dumps(node.status()["calls"]) or "running" in json.dumps(node.status()["calls"])
