"""What is killed under a load of calls: workers, an executing node, the client's own node, Redis, the client itself.

However the moment falls: every call ends exactly once, with its result or a typed error; none runs twice that may not;
nothing waits longer than the lease.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest

from harness import wait_for
from harness.load import RETRIED_EVERY
from harness.node import PYTHON, REPOSITORY

LOAD = REPOSITORY / "tests" / "harness" / "load.py"
SHORT = {"moments": 2, "calls": 400}
LONG = {"moments": 20, "calls": 2000}
RETRIES = 4
# What the program does after the last end.
SETTLING_S = 0.3
# The end of a call that was sent while Redis was away for longer than it is waited for: nothing was done.
NOT_ACCEPTED = "CatalogUnavailable"
# How long a node may be silent until its calls are given back; and what a busy machine may add.
LEASE_S = 10
BUSY_MACHINE_S = 8
# Where the first node, with Redis, is none of the client's or the victim's.
CLIENT, VICTIM = 2, 3


class Run:
    """One load, in a client on one node, and what became of it."""

    def __init__(self, cluster, calls):
        self.cluster = cluster
        home = cluster[1].home / f"load-{time.monotonic_ns()}"
        # Not in the tree: the marks have to be there whoever dies.
        self.marks = home / "marks"
        self.marks.mkdir(parents=True)
        self.ids = home / "ids"
        self.calls = calls
        settings = {"marks": str(self.marks), "ids": str(self.ids), "calls": calls, "retries": RETRIES}
        file = home / "settings.json"
        file.write_text(json.dumps(settings))
        self.errors = open(home / "errors", "w+")
        self.process = cluster[CLIENT].spawn(
            [PYTHON, LOAD, file], stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        assert self.process.stdout.readline() == "begun\n", self.complaint()
        self.began = time.monotonic()

    def complaint(self):
        self.errors.seek(0)
        return self.errors.read()[-3000:]

    def finish(self):
        """The program's own account of its calls."""
        try:
            output, _ = self.process.communicate(timeout=150)
        finally:
            self.process.kill()
            self.process.wait()
        assert output, self.complaint()
        self.seconds = time.monotonic() - self.began
        return json.loads(output)

    def ran(self):
        """How often each call ran, by its number."""
        return Counter(int(line) for file in self.marks.iterdir() for line in file.read_text().split())

    def check_ran(self, returned):
        """None ran too often, and what has a result ran."""
        ran = self.ran()
        too_often = {n: c for n, c in ran.items() if c > (1 + RETRIES if n % RETRIED_EVERY == 0 else 1)}
        assert not too_often, f"ran too often: {too_often}"
        missing = [number for number in returned if not ran[number]]
        assert not missing, f"returned without having run: {missing}"

    def check(self, allowed):
        """Everything that must hold after a kill; returns (ends, longest wait in seconds)."""
        account = self.finish()
        ends = Counter(account["ends"])
        assert set(ends) <= {"returned", *allowed}, ends
        assert account["told"] == [1] * self.calls, "each end is told once"
        returned = [number for number, end in enumerate(account["ends"]) if end == "returned"]
        self.check_ran(returned)
        retried = Counter(account["ends"][::RETRIED_EVERY])
        assert set(retried) <= {"returned", NOT_ACCEPTED}, f"what may be run again returns: {retried}"
        ran = self.ran()
        refused = [number for number, end in enumerate(account["ends"]) if end == NOT_ACCEPTED and ran[number]]
        assert not refused, f"refused, and ran all the same: {refused}"
        assert account["longest_wait_s"] < LEASE_S + BUSY_MACHINE_S, account["longest_wait_s"]
        return ends, account["longest_wait_s"]


class Trial:
    """Loads one after another on one cluster, with a kill at a random moment of each."""

    def __init__(self, cluster, name, long, seed=1):
        self.cluster = cluster
        self.name = name
        self.size = LONG if long else SHORT
        self.dice = random.Random(f"{name} {seed}")
        self.ends = Counter()
        self.waits = []
        # The first load is undisturbed: it tells how long one takes.
        run = Run(cluster, self.size["calls"])
        ends, _ = run.check(())
        assert ends == {"returned": run.calls}
        self.usual_s = run.seconds

    def moments(self):
        """A load each, killed into after a random part of the time that one takes."""
        for _ in range(self.size["moments"]):
            run = Run(self.cluster, self.size["calls"])
            time.sleep(self.dice.uniform(0, max(0.1, self.usual_s - SETTLING_S)))
            yield run

    def note(self, ends, wait_s):
        self.ends += ends
        self.waits.append(wait_s)

    def tell(self):
        """One line for those who read along (`pytest -s`)."""
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        size = f"{len(self.waits)} moments x {self.size['calls']} calls"
        print(f"\nkill {self.name}: {size}: {ends}; longest wait {max(self.waits):.1f} s")


def kill9(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.fixture
def trial(make_cluster, long_run):
    def make(name, workers=2):
        return Trial(make_cluster(3).start(workers=workers), name, long_run)

    return make


pytestmark = pytest.mark.long_timeout(2400)


def test_workers_are_killed(trial):
    trial = trial("workers")
    for run in trial.moments():
        node = trial.cluster[trial.dice.choice([1, 2, 3])]
        pids = [row["pid"] for row in node.status()["calls"]["workers"]]
        kill9(trial.dice.choice(pids))
        ends, wait_s = run.check({"WorkerCrashed"})
        assert ends["WorkerCrashed"] <= 1
        trial.note(ends, wait_s)
    trial.tell()


def test_an_executing_node_is_killed(trial):
    trial = trial("an executing node")
    for run in trial.moments():
        trial.cluster[VICTIM].kill9()
        trial.note(*run.check({"NodeLost"}))
        come_back(trial.cluster, VICTIM)
    trial.tell()


def test_the_clients_node_is_killed(trial):
    trial = trial("the client's node")
    for run in trial.moments():
        trial.cluster[CLIENT].kill9()
        trial.note(*run.check({"NodeLost", "PayloadError"}))
        come_back(trial.cluster, CLIENT)
    trial.tell()


def test_redis_is_killed(trial):
    trial = trial("redis")
    for run in trial.moments():
        kill9(int((trial.cluster[1].datadir / ".ks/redis/pid").read_text()))
        trial.note(*run.check({NOT_ACCEPTED}))
        wait_for(lambda: trial.cluster[1].status()["redis"]["connected"], 20)
    trial.tell()


def come_back(cluster, number):
    """The killed node is mounted again and everybody knows it."""
    cluster[number].restart()
    for node in cluster.nodes:
        wait_for(lambda node=node: node.status()["nodes"].get("alive") == 3, 20)


def test_the_client_is_killed(trial):
    """What it had sent ends; another client gets the results by the jobs' ids."""
    trial = trial("the client")
    for run in trial.moments():
        (pid,) = [
            pid
            for pid, line in trial.cluster.hosts.processes(CLIENT).items()
            if str(LOAD) in line and str(run.ids.parent) in line
        ]
        kill9(pid)
        run.process.wait(timeout=10)
        run.process.stdout.close()
        began = time.monotonic()
        ends = ask_for_all(trial.cluster, run)
        run.check_ran([number for number, end in ends.items() if end == "returned"])
        counted = Counter(ends.values())
        # Unknown: it was never accepted, and has not run.
        assert set(counted) <= {"returned", "JobUnknown"}, counted
        ran = run.ran()
        assert not [number for number, end in ends.items() if end == "JobUnknown" and ran[number]]
        trial.note(counted, time.monotonic() - began)
    trial.tell()


def ask_for_all(cluster, run):
    """number -> how the call ended, as a client on another node hears it."""
    known = [line.split() for line in run.ids.read_text().splitlines()]
    file = run.ids.with_suffix(".json")
    file.write_text(json.dumps([[int(number), id] for number, id in known]))
    answer = cluster[1].ask(
        f"""
        sys.path.insert(0, {str(LOAD.parent)!r})
        from load import argument
        ends = {{}}
        for number, id in json.load(open({str(file)!r})):
            try:
                right = c.result(id, timeout=30) == number + len(argument(number))
                ends[number] = "returned" if right else "a wrong result"
            except Exception as error:
                ends[number] = type(error).__name__
        reply(ends)
    """,
        timeout=120,
    )
    return {int(number): end for number, end in answer.items()}
