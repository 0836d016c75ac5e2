"""The life of a job: listed, cancelled, ended by limits, its output kept; and each ends once, whoever is killed."""

import json
import subprocess
import textwrap

import pytest

from harness import Cluster, wait_for
from harness.node import PYTHON, REPLY, need_running

LIMIT_MIB = 160


@pytest.fixture(scope="module")
def duo():
    need_running()
    with Cluster(2) as cluster:
        other = cluster[1].home / "other-python"
        other.write_text(f'#!/bin/sh\nOTHER=yes exec {PYTHON} "$@"\n')
        other.chmod(0o755)
        yield cluster.start("--worker-memory-limit", f"{LIMIT_MIB}M", "--python", f"other={other}", workers=2)


def test_a_call_asks_for_an_interpreter(duo):
    code = """
        def which():
            return os.environ.get("OTHER")
        asked = [c.call(which, _python="other", _node=node) for node in ("host1", "host2")]
        reply([*map(c.result, asked), c.call(which, _async=False)])
    """
    assert duo[1].ask(code) == ["yes", "yes", None]


BEHAVIOUR = """
        import ctypes, signal, subprocess
        class Trouble(ValueError):
            def __init__(self, number):
                super().__init__(f"about {{number}}")
                self.number = number
            def __reduce__(self):
                return Trouble, (self.number,)
        class Closed(Exception):
            def __init__(self, one, two):
                super().__init__("not to be made again")
        def now():
            # Hosts share the machine's clock; a path outside of the tree, which is nobody's data.
            with open({mark!r}, "w") as file:
                file.write(repr(time.time()))
        def prints():
            print("printed")
            now()
        def logs_in_c():
            ctypes.CDLL(None).puts(b"from C")
            now()
        def starts_a_process():
            subprocess.run(["echo", "from a process"])
            now()
        def raises():
            now()
            raise Trouble(42)
        def raises_what_cannot_be_made_again():
            now()
            raise Closed(1, 2)
        def ends_the_process():
            now()
            os._exit(3)
        def leaves():
            now()
            sys.exit(4)
        def breaks():
            now()
            ctypes.string_at(0)
        def eats():
            data = []
            while True:
                now()
                data.append(bytes(8 << 20).replace(b"\\0", b"x"))
                time.sleep(0.01)
        def sleeps():
            with open({mark!r}, "w") as file:
                file.write(repr(time.time() + 1))  # its limit
            time.sleep(60)
        def holds_the_interpreter():
            now()
            sum(range(10**12))
        def reads():
            now()
            return sys.stdin.read()
        def forks():
            child = os.fork()
            if child == 0:
                print("from a child that comes back")
                return "a child's"
            os.waitpid(child, 0)
            now()
            return "its own"
        def forks_and_leaves_one_behind():
            child = os.fork()
            if child == 0:
                time.sleep(60)
            now()
            return child
        ends = {{}}
        for f in map(globals().get, {names!r}):
            job = c.call(f, _timeout=1 if f is sleeps else None)
            if f is holds_the_interpreter:
                time.sleep(0.7)
                now()
                job.cancel()
            try:
                end = ["returned", repr(job.result(20))]
            except Exception as error:
                numbers = [getattr(error, name, None) for name in ("signal", "exit_code")]
                end = [type(error).__name__, str(error), *numbers]
            late = time.time() - float(open({mark!r}).read())
            ends[f.__name__] = [late, c.call(abs, -3, _async=False), *end]
        os.kill(int(ends["forks_and_leaves_one_behind"][3]), signal.SIGKILL)
        reply(ends)
"""
# What became of each: the end's name, and what is found in its text; then signal and exit code.
ENDS = {
    "prints": ("returned", "None"),
    "logs_in_c": ("returned", "None"),
    "starts_a_process": ("returned", "None"),
    "raises": ("Trouble", "about 42"),
    "raises_what_cannot_be_made_again": ("RemoteError", "not to be made again"),
    "ends_the_process": ("WorkerCrashed", "status 3", None, 3),
    "leaves": ("WorkerCrashed", "sys.exit(4)", None, 4),
    "breaks": ("WorkerCrashed", "SIGSEGV", 11, None),
    "eats": ("WorkerMemoryExceeded", f"limit is {LIMIT_MIB} MiB"),
    "sleeps": ("JobTimeout", "1 s"),
    "holds_the_interpreter": ("JobCancelled", "cancelled"),
    "reads": ("returned", "''"),
    "forks": ("returned", "'its own'"),
    "forks_and_leaves_one_behind": ("returned", ""),
}


def test_whatever_a_call_does_its_caller_sees_it_within_a_second_and_the_next_one_works(duo):
    done = duo[1].client(BEHAVIOUR.format(mark=str(duo[1].home / "mark"), names=list(ENDS)), timeout=90)
    lines = done.text.splitlines()
    (ends,) = [json.loads(line.removeprefix(REPLY)) for line in lines if line.startswith(REPLY)]
    assert set(ends) == set(ENDS)
    for name, (kind, text, *numbers) in ENDS.items():
        late, next_one, *end = ends[name]
        assert end[0] == kind and text in end[1], (name, end)
        assert end[2:4] == numbers or not numbers, (name, end)
        assert late < 1 and next_one == 3, (name, late, next_one)
    for heard in ("printed", "from C", "from a process", "from a child that comes back"):
        assert lines.count(heard) == 1, heard


def test_a_worker_that_keeps_memory_is_replaced_between_calls(duo):
    code = f"""
        def keep():
            import os, sys, threading
            def grow():
                sys.kept = b"x" * ({LIMIT_MIB + 40} << 20)
            threading.Timer(0.3, grow).start()  # after the call
            return os.getpid()
        def hoards(pid):
            return os.path.exists(f"/proc/{{pid}}")
        pid = c.call(keep, _node="host1", _async=False)
        for _ in range(100):
            if not hoards(pid):
                break
            time.sleep(0.05)
        reply([hoards(pid), c.call(abs, -3, _node="host1", _async=False)])
    """
    assert duo[1].ask(code) == [False, 3]


def test_too_much_output_is_cut_and_counted(duo):
    code = """
        def shout():
            import os
            for _ in range(64):
                os.write(1, b"y" * (1 << 20))
            return 4
        assert c.result(c.call(shout), timeout=40) == 4
    """
    # What comes back is on the standard output as well.
    done = duo[1].client(code, timeout=60)
    left_out = [line for line in done.error.splitlines() if "bytes of output were left out" in line]
    shown = done.stdout.count(b"y")
    assert left_out and shown < 64 << 20
    counted = sum(int(line.split("kitchensink: ")[1].split()[0]) for line in left_out)
    assert shown + counted == 64 << 20, (shown, counted)


def test_logs_are_kept_after_the_end(duo):
    code = """
        def talk():
            import os, sys
            print("to the output")
            sys.stdout.flush()
            print("to the error", file=sys.stderr)
            raise ValueError("and raised")
        job = c.call(talk)
        job.exception(timeout=30)
        reply(str(job))
    """
    job = duo[1].ask(code)
    wait_for(lambda: "raised" in duo[2].ks("logs", job).error, 5, "the record is closed")
    logs = duo[2].ks("logs", job)
    assert logs.text == "to the output\n"
    assert "to the error" in logs.error and "raised ValueError: and raised" in logs.error
    unknown = duo[2].ks("logs", "0" * 32, check=False)
    assert unknown.status == 1 and "there is no job" in unknown.error


def test_jobs_are_listed_and_cancelled(duo):
    code = """
        jobs = [c.call(time.sleep, 600 + n, _node="host2") for n in range(5)]
        print(json.dumps([str(job) for job in jobs]), flush=True)
        print(json.dumps([type(job.exception(timeout=60)).__name__ for job in jobs]), flush=True)
    """
    script = duo[1].home / "sleepers.py"
    body = "import json, time\nfrom kitchensink import Client\nc = Client()\n"
    script.write_text(body + textwrap.dedent(code))
    process = duo[1].spawn([PYTHON, script], stdout=subprocess.PIPE, text=True)
    try:
        jobs = json.loads(process.stdout.readline())
        listed = duo[2].ks_json("jobs", "--why")
        assert listed["total"] == 5 and {row["job"] for row in listed["jobs"]} == set(jobs)
        assert {row["function"] for row in listed["jobs"]} == {"sleep"}
        wait_for(
            lambda: sum(row["state"] == "claimed" for row in duo[1].ks_json("jobs")["jobs"]) >= 2, 10, "two are claimed"
        )
        assert "host2" in duo[1].ks("jobs", "--why").text
        assert duo[2].ks_json("cancel", jobs[0]) == [jobs[0]]
        assert set(duo[2].ks_json("cancel", "--all")) >= set(jobs[1:])
        assert json.loads(process.stdout.readline()) == ["JobCancelled"] * 5
        wait_for(lambda: duo[1].ks_json("jobs")["total"] == 0, 10, "none goes on")
        again = duo[1].ks("cancel", jobs[0], check=False)
        assert again.status == 1 and "has ended" in again.error
    finally:
        process.kill()
        process.wait()


def test_retries_run_a_crashed_call_again_and_without_it_runs_once(duo):
    duo[1].shell("mkdir -p /ks/retries")
    code = """
        def dies_twice(name):
            import signal
            with open(f"/ks/retries/{name}", "a") as file:
                file.write("x")
            if len(open(f"/ks/retries/{name}").read()) < 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return "lived"
        answers = [c.call(dies_twice, "thrice", _retries=5, _node="host1", _async=False)]
        try:
            c.call(dies_twice, "once", _node="host1", _async=False)
        except errors.WorkerCrashed as error:
            answers.append(error.signal)
        answers += [len(open(f"/ks/retries/{name}").read()) for name in ("thrice", "once")]
        reply(answers)
    """
    assert duo[1].ask(code) == ["lived", 9, 3, 1]


def test_priorities_go_first(duo):
    code = """
        def mark(number):
            return time.time()
        blockers = [c.call(time.sleep, 1.0, _node="host1") for _ in range(2)]
        low = [c.call(mark, n, _node="host1") for n in range(10)]
        high = [c.call(mark, n, _node="host1", _priority=5) for n in range(10)]
        reply([max(job.result(30) for job in high), min(job.result(30) for job in low)])
    """
    last_high, first_low = duo[1].ask(code)
    assert last_high < first_low + 0.2


def test_a_client_goes_on_at_another_node_when_its_own_dies(make_cluster):
    cluster = make_cluster(3).start(workers=1)
    cluster.expect_clean = False
    code = """
        import threading
        jobs = [c.call(time.sleep, 0.2 + n / 100, _node=f"host{n % 2 * 2 + 1}") for n in range(30)]
        lost = c.call(time.sleep, 60, _node="host2")
        c.ping()
        print("sent", flush=True)
        ends = [type(job.exception(timeout=40)).__name__ for job in [*jobs, lost]]
        ends.append(c.call(abs, -4, _async=False))
        print(json.dumps([ends, c.node]), flush=True)
    """
    script = cluster[2].home / "goes_on.py"
    script.write_text("import json, time\nfrom kitchensink import Client\nc = Client()\n" + textwrap.dedent(code))
    process = cluster[2].spawn([PYTHON, script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "sent\n"
        cluster[2].kill9()
        ends, node = json.loads(process.stdout.readline() or "[[], null]")
    finally:
        process.kill()
        process.wait()
    assert ends[:30] == ["NoneType"] * 30 and ends[30:] == ["NodeLost", 4], ends
    assert node in ("host1", "host3")


def test_a_function_that_names_no_path_runs_at_its_data_from_the_second_call_on(make_cluster):
    cluster = make_cluster(3)
    for number in (1, 2, 3):
        cluster[number].put(f"days/{number}.csv", b"x" * (8 << 20))
    cluster.start(workers=2)
    code = """
        def total(day):
            return len(open(f"/ks/days/{day}.csv", "rb").read())
        for day in (1, 2, 3):
            assert c.call(total, day, _async=False) == 8 << 20
        answers = []
        for day in (1, 2, 3) * 4:
            job = c.call(total, day)
            c.result(job, timeout=20)
            answers.append([job.placement.node, day, job.placement.why, job.placement.bytes_fetched])
        reply(answers)
    """
    for node, day, why, fetched in cluster[2].ask(code):
        holders = cluster[1].holders(f"days/{day}.csv")
        assert node in holders and fetched == 0, (node, day, holders)
        assert "opened before" in why
