"""What the time of calls went to, told by nodes, workers and client together."""

import pytest

from harness import Cluster
from harness.data import MIB, noise

FILE_BYTES = 8 * MIB


@pytest.fixture(scope="module")
def cluster():
    with Cluster(2) as running:
        running[2].put("far", noise(FILE_BYTES, seed=5))
        yield running.start(workers=1)


def test_every_phase_of_calls_on_two_nodes(cluster):
    code = """
        def read(path, weight):
            data = open(path, "rb").read()
            time.sleep(0.1)
            return len(data) + len(weight)
        import time
        jobs = [c.call(read, "/ks/far", bytes(3 << 20), _node="host1"), c.call(read, "/ks/far", b"", _node="host2")]
        assert [c.result(job) for job in jobs] == [11 << 20, 8 << 20]
        reply([c.profile(jobs), jobs[0].placement.bringing_us, jobs[0].placement.waiting_us])
    """
    profile, bringing_us, waiting_us = cluster[2].ask(code)
    far, near = profile["calls"]
    assert (far["node"], near["node"]) == ("host1", "host2")
    assert far["bytes_fetched"] == FILE_BYTES and near["bytes_fetched"] == 0
    assert near["bytes_local"] == FILE_BYTES
    # Its large argument was brought to its node before it ran, the file's bytes came while it ran.
    assert bringing_us > 0 and waiting_us > 0
    assert far["waiting"] == pytest.approx((bringing_us + waiting_us) / 1e6)
    assert near["waiting"] == 0
    for call in (far, near):
        assert call["claiming"] > 0 and call["unpickling"] > 0 and call["pickling"] > 0 and call["returning"] > 0
        assert call["queued"] >= 0 and 0.1 <= call["run"] < 20 and call["cpu"] < call["run"]
    assert waiting_us / 1e6 <= far["run"] - 0.1
    for phase in ("queued", "claiming", "unpickling", "waiting", "run", "pickling", "returning", "cpu"):
        assert profile[phase] == pytest.approx(far[phase] + near[phase])


def test_a_call_that_waits_for_a_worker_is_queued(cluster):
    code = """
        import time
        jobs = [c.call(time.sleep, 0.4, _node="host1") for _ in range(3)]
        for job in jobs:
            c.result(job)
        reply(sorted(call["queued"] for call in c.profile(jobs)["calls"]))
    """
    first, second, third = cluster[1].ask(code)
    assert first < second < third and third > 0.7
