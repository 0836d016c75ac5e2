"""Many calls at once: sending them and hearing of their ends takes a time that grows with their number and no faster,
and the client's memory stays bounded."""

import pytest

from harness.node import PROGRAM

SHORT, LONG = 10_000, 100_000
PARTS = 5
MEMORY_MAX_MIB = 300
# `ks jobs`, however many there are.
LISTING_MAX_S = 1
# Of the slowest part to the median one, on a machine that does other things, too.
RATIO_MAX = 3.0

# Sends all calls before any can run, then lets them run; both in equal parts, each timed.
MANY = """
    import re, subprocess
    count, parts = {count}, {parts}
    gate = "/ks/many-gate"
    open(gate, "w").close()
    def wait_for_gate(path):
        import os, time
        while os.path.exists(path):
            time.sleep(0.05)
    blockers = [c.call(wait_for_gate, gate, _no_route_data=True) for _ in range({workers})]
    time.sleep(1)
    def add(number):
        return number + 1
    jobs, sending = [], []
    for part in range(parts):
        began = time.monotonic()
        jobs += [c.call(add, number) for number in range(part * count // parts, (part + 1) * count // parts)]
        c.ping()
        sending.append(time.monotonic() - began)
    waiting = sum(not job.done() for job in jobs)
    began = time.monotonic()
    listed = json.loads(subprocess.run([{program!r}, "jobs", "--json"], capture_output=True, check=True).stdout)
    listing = [listed["total"], len(listed["jobs"]), time.monotonic() - began]
    os.unlink(gate)
    ending = []
    right = 0
    for part in range(parts):
        began = time.monotonic()
        for number in range(part * count // parts, (part + 1) * count // parts):
            right += jobs[number].result(timeout=100) == number + 1
        ending.append(time.monotonic() - began)
    # Not getrusage: a process starts with the peak of the one that started it.
    memory_mib = int(re.search("VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
    reply([waiting, right, sending, ending, memory_mib, listing])
"""


@pytest.mark.long_timeout(900)
def test_many_queued_calls(make_cluster, long_run):
    cluster = make_cluster(2).start(workers=2)
    count = LONG if long_run else SHORT
    code = MANY.format(count=count, parts=PARTS, workers=4, program=str(PROGRAM))
    waiting, right, sending, ending, memory_mib, (total, shown, listing_s) = cluster[1].ask(
        code, timeout=800 if long_run else 150
    )
    rates = [f"{count / PARTS / seconds:.0f}" for seconds in (*sending, *ending)]
    print(
        f"\n{count} queued calls: sent at {', '.join(rates[:PARTS])}/s, ended at {', '.join(rates[PARTS:])}/s; "
        f"client {memory_mib:.0f} MiB; {shown} of {total} listed in {listing_s:.2f} s"
    )
    assert waiting == right == count
    assert memory_mib < MEMORY_MAX_MIB
    # The four that hold up the others go on, too.
    assert total == count + 4 and 0 < shown <= total and listing_s < LISTING_MAX_S
    for parts in (sending, ending):
        assert max(parts) < RATIO_MAX * sorted(parts)[PARTS // 2], parts
