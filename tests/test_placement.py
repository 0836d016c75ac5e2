"""Calls run where their data is: measured on three hosts, against what would be best by the simulator's oracle."""

import heapq

import pytest

from harness import Cluster
from harness.node import need_running

MIB = 1 << 20
FETCH_BYTES_PER_S = 110e6
TRIES = 3
"""A machine that has other things to do may be late once or twice."""

WARM = "[c.call(time.sleep, 0.01, _node=f'host{n}', _async=False) for n in (1, 2, 3) for _ in range(4)]"
"""Every worker has run something: it does not start as the clock runs."""


@pytest.fixture(scope="module")
def plain():
    """One worker on each of three nodes."""
    need_running()
    with Cluster(3) as cluster:
        for number in (1, 2, 3):
            for month in range(number, 13, 3):
                cluster[number].put(f"flights/2013-{month:02}.csv", bytes(8 * MIB))
                cluster[number].put(f"parts/run7/part-{month:03}.h5", bytes(8 * MIB))
            cluster[number].put(f"table/{(number * 37) % 11}.csv", bytes(2 * MIB))
        for attempt in range(TRIES):
            cluster[2].put(f"hot/{attempt}.h5", bytes(16 * MIB))
        yield cluster.start(workers=1)


def test_a_hundred_files_are_read_where_they_are(make_cluster):
    cluster = make_cluster(3)
    for number in range(100):
        cluster[number % 3 + 1].put(f"hundred/{number}.bin", bytes(4 * MIB))
    cluster.start(workers=2)
    code = f"""
        def size(path):
            time.sleep(0.1)
            with open(path, "rb") as file:
                return len(file.read())
        {WARM}
        jobs = [c.call(size, f"/ks/hundred/{{number}}.bin") for number in range(100)]
        assert [c.result(job, timeout=60) for job in jobs] == [4 << 20] * 100
        reply([[job.placement.node, job.placement.bytes_local, job.placement.bytes_fetched] for job in jobs])
    """
    answers = cluster[1].ask(code, timeout=120)
    at_home = [node == f"host{number % 3 + 1}" for number, (node, _, _) in enumerate(answers)]
    assert at_home.count(True) >= 95, answers
    fetched = sum(fetched for _, _, fetched in answers)
    assert fetched <= 5 * 4 * MIB, answers


def test_calls_that_import_much_at_first_are_left_where_their_files_are(make_cluster):
    """Who is done with its own finds others at their imports: what they have left is quick, and not worth a fetch."""
    cluster = make_cluster(3)
    for number in range(12):
        cluster[number % 3 + 1].put(f"months/{number}.csv", bytes(3 * MIB))
    cluster.start(workers=2)
    code = """
        def mean(path):
            import builtins, socket
            if not hasattr(builtins, "imported"):
                builtins.imported = True
                time.sleep({"host1": 1.0, "host2": 1.3, "host3": 1.6}[socket.gethostname()])
            with open(path, "rb") as file:
                time.sleep(0.1)
                return len(file.read())
        jobs = [c.call(mean, f"/ks/months/{number}.csv") for number in range(12)]
        assert [c.result(job, timeout=60) for job in jobs] == [3 << 20] * 12
        reply([[job.placement.node, job.placement.why] for job in jobs])
    """
    for number, (node, why) in enumerate(cluster[1].ask(code)):
        assert node == f"host{number % 3 + 1}", (number, node, why)


def best_seconds(nodes: int, calls: int, call_s: float, fetch_s: float) -> float:
    """What the simulator's oracle would need for a file that one of the nodes has: each call where it ends first."""
    free = [(0.0, 0.0 if node == 0 else fetch_s, node) for node in range(nodes)]
    heapq.heapify(free)
    ends = [0.0]
    for _ in range(calls):
        best = min(free, key=lambda one: one[0] + one[1] + call_s)
        free.remove(best)
        ends.append(best[0] + best[1] + call_s)
        free.append((ends[-1], 0.0, best[2]))
    return max(ends)


def test_a_hot_file_is_read_by_all(plain):
    code = """
        def read(path):
            with open(path, "rb") as file:
                file.read()
            time.sleep(0.4)
        {warm}
        began = time.monotonic()
        jobs = [c.call(read, "/ks/hot/{attempt}.h5") for _ in range(30)]
        for job in jobs:
            c.result(job, timeout=60)
        reply([time.monotonic() - began, sorted(job.placement.node for job in jobs), jobs[-1].placement.why])
    """
    best = best_seconds(3, 30, 0.4, 16 * MIB / FETCH_BYTES_PER_S)
    assert 4 <= best < 5
    ratios = []
    for attempt in range(TRIES):
        seconds, nodes, _ = plain[1].ask(code.format(warm=WARM, attempt=attempt), timeout=90)
        assert len(set(nodes)) == 3, "all of them help"
        ratios.append(seconds / best)
        if ratios[-1] <= 1.15:
            return
    raise AssertionError(f"{ratios} of the best")


def ran_at_home(cluster, path, node, fetched):
    assert node in cluster[1].holders(path) and fetched == 0, (path, node, fetched, cluster[1].holders(path))


def test_a_function_of_other_arguments_runs_at_its_data_from_the_second_call_on(plain):
    code = """
        def total(day):
            with open(f"/ks/flights/{day}.csv", "rb") as file:
                return len(file.read())
        answers = []
        for month in (5, 1, 2, 3, 4, 6, 7, 8):
            job = c.call(total, f"2013-{month:02}")
            assert c.result(job, timeout=20) == 8 << 20
            answers.append([month, job.placement.node, job.placement.why, job.placement.bytes_fetched])
        reply(answers[1:])
    """
    for month, node, why, fetched in plain[1].ask(code):
        ran_at_home(plain, f"flights/2013-{month:02}.csv", node, fetched)
        assert "/flights/{0}.csv" in why, why


def test_numbers_are_filled_up_as_the_function_does_it(plain):
    code = """
        def size(run, part):
            with open(f"/ks/parts/run{run}/part-{part:03d}.h5", "rb") as file:
                return len(file.read())
        answers = []
        for part in (11, 1, 2, 3, 9, 12):
            job = c.call(size, 7, part=part)
            assert c.result(job, timeout=20) == 8 << 20
            answers.append([part, job.placement.node, job.placement.why, job.placement.bytes_fetched])
        reply(answers[1:])
    """
    for part, node, why, fetched in plain[1].ask(code):
        ran_at_home(plain, f"parts/run7/part-{part:03}.h5", node, fetched)
        assert "part-{part}.h5" in why, why


def test_what_cannot_be_guessed_is_not_held_against_a_call(plain):
    code = """
        def look_up(number):
            with open(f"/ks/table/{number * 37 % 11}.csv", "rb") as file:
                return len(file.read())
        def nothing(number):
            return number
        reply([[c.call(look_up, number, _async=False) for number in (1, 2, 3, 1, 2, 3)],
               [c.call(nothing, number, _async=False) for number in (1, 2, 3)]])
    """
    assert plain[1].ask(code) == [[2 * MIB] * 6, [1, 2, 3]]


def test_a_hint_may_be_a_node(plain):
    code = """
        answers = []
        for node in ("host3", "host1", "host2"):
            job = c.call(abs, -3, _locality=node)
            c.result(job, timeout=20)
            answers.append([node, job.placement.node, job.placement.why])
        reply(answers)
    """
    for asked, node, why in plain[1].ask(code):
        assert node == asked and why == f"rather on {asked}"


def test_the_placement_tells_what_it_would_have_cost_elsewhere(plain):
    code = """
        def size(path):
            with open(path, "rb") as file:
                return len(file.read())
        job = c.call(size, "/ks/flights/2013-09.csv")
        c.result(job, timeout=20)
        held = c.call(time.sleep, 1.5, _locality="/ks/flights/2013-10.csv")
        import subprocess
        why = subprocess.run(["ks", "jobs", "--why"], capture_output=True, text=True, check=True).stdout
        c.result(held, timeout=20)
        logs = subprocess.run(["ks", "logs", str(job)], capture_output=True, text=True, check=True).stderr
        reply([{**job.placement._asdict(), "files": [os.fsdecode(file) for file in job.placement.files]}, why, logs])
    """
    placement, why, logs = plain[1].ask(code)
    assert placement["files"] == ["flights/2013-09.csv"]
    assert placement["node"] == "host3" and placement["why"] == "host3 has all of 1 file, 8.4 MB"
    assert placement["costs"] == {"host1": 8 * MIB, "host2": 8 * MIB, "host3": 0}
    assert (placement["bytes_local"], placement["bytes_fetched"]) == (8 * MIB, 0)
    assert "host1 has all of 1 file" in why and "host2" in why, why
    assert "host3 has all of 1 file" in logs, logs
