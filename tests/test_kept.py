"""Data in memory: values stay on the nodes where they were made, calls go to them, and a node's death loses its own."""

from pathlib import Path

import pytest

from harness import Cluster, wait_for
from harness.node import need_running

SETUP = """
    import gc, numpy
    from kitchensink.errors import KeyLost
    def total(array):
        return float(array.sum())
    def map_count(array, again=None):
        array.sum()
        return sum("/dev/shm/ks-" in line for line in open("/proc/self/maps"))
"""
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        yield cluster.start(workers=1)


def run(node, code, **options):
    return node.ask(SETUP + code, **options)


def tier(node) -> Path:
    return Path("/dev/shm") / ("ks-" + (node.datadir / ".ks/node").read_text().strip())


def mode(node) -> str:
    """Of the tier's directory; a host has a /dev/shm of its own."""
    return node.shell(f"stat -c %a {tier(node)}", check=False).text.strip()


def kept(node) -> dict:
    return node.status()["calls"]["kept"]


def test_a_scattered_array_is_used_where_it_is_and_goes_with_its_handle(cluster):
    code = """
    array = numpy.ones(8 << 20)
    handle = c.scatter(array)
    jobs = [c.call(total, handle) for _ in range(3)]
    sums = [job.result() for job in jobs]
    places = [[job.placement.node, job.placement.bytes_local, job.placement.bytes_fetched] for job in jobs]
    shared = [c.call(map_count, handle, _async=False) for _ in range(2)]
    before = c._connected().ask("Status", "Status")["calls"]["kept"]
    same = bool((handle.get() == array).all())
    del handle
    gc.collect()
    def gone():
        return c._connected().ask("Status", "Status")["calls"]["kept"]["values"] == 0
    until = time.monotonic() + 10
    while not gone() and time.monotonic() < until:
        time.sleep(0.05)
    reply([sums, places, shared, before, same, gone()])
    """
    sums, places, shared, before, same, gone = run(cluster[1], code)
    assert sums == [8 * MEBIBYTE] * 3 and same and gone
    for node, local, fetched in places:
        assert (node, fetched) == ("host1", 0) and 64 * MEBIBYTE <= local < 65 * MEBIBYTE
    assert shared == [1, 1], "a worker maps a value once"
    assert before["values"] == 1 and 64 * MEBIBYTE <= before["memory_bytes"] < 65 * MEBIBYTE
    assert before["disk_bytes"] == 0 and before["memory_limit_bytes"] > 0


def test_results_stay_and_calls_go_to_them(cluster):
    code = """
    made = [c.call(numpy.full, 1 << 20, number, _keep=True, _node=f"host{number}") for number in (1, 2, 3)]
    handles = [job.result() for job in made]
    used = [c.call(total, handle) for handle in handles]
    sums = [job.result() for job in used]
    pairs = [(one.placement, other.placement) for one, other in zip(made, used)]
    where = [[one.node, other.node, other.bytes_fetched] for one, other in pairs]
    both = c.call(lambda a, b: float(a[0] + b[0]), *handles[1:])
    values = [both.result(), [float(one.get()[0]) for one in handles]]
    scattered = c.scatter([1, 2], node="host3")
    reply([sums, where, values, both.placement.bytes_fetched, c.call(lambda x: x, scattered[0]).result(),
           c.call(lambda x: os.environ["KS_NODE_NAME"], scattered[1]).result()])
    """
    sums, where, values, fetched, one, node = run(cluster[1], code)
    assert sums == [number * MEBIBYTE for number in (1, 2, 3)]
    assert where == [["host1"] * 2 + [0], ["host2"] * 2 + [0], ["host3"] * 2 + [0]]
    assert values == [5.0, [1.0, 2.0, 3.0]] and 8 * MEBIBYTE <= fetched < 9 * MEBIBYTE
    assert (one, node) == (1, "host3")


def test_a_value_is_brought_to_where_a_call_must_run(cluster):
    code = """
    handle = c.scatter(numpy.arange(4 << 20))
    first = c.call(total, handle, _node="host2")
    results = [first.result()]
    again = c.call(total, handle, _node="host2")
    results += [again.result()]
    def held():
        return c._connected().ask({"Kept": {"ids": [handle.id]}}, "Kept")[0]["path"]
    reply([results, first.placement.bytes_fetched, again.placement.bytes_fetched, os.fsdecode(held())])
    """
    results, first, again, path = run(cluster[1], code)
    assert results == [float(sum(range(4 << 20)))] * 2
    assert first >= 32 * MEBIBYTE and again == 0
    assert path.startswith(str(tier(cluster[1])))
    wait_for(lambda: all(kept(node)["values"] == 0 for node in cluster.nodes), 10, "the client's end")


def test_a_client_without_the_nodes_files_keeps_values_too(cluster):
    code = """
    far = Client("ks://host2:6323")
    handle = far.scatter(numpy.ones(1 << 20))
    job = far.call(total, handle)
    reply([job.result(), job.placement.node, float(handle.get()[5])])
    """
    assert run(cluster[1], code) == [float(MEBIBYTE), "host2", 1.0]


def test_of_a_full_tier_the_least_used_leave_and_an_end_in_order_leaves_nothing(make_cluster):
    cluster = make_cluster(1)
    cluster.start("--memory-tier", "20M", workers=1)
    code = """
    def path(handle):
        return os.fsdecode(c._connected().ask({"Kept": {"ids": [handle.id]}}, "Kept")[0]["path"])
    def in_memory(handle):
        until = time.monotonic() + 5
        while not path(handle).startswith("/dev/shm") and time.monotonic() < until:
            time.sleep(0.02)
        return path(handle).startswith("/dev/shm")
    handles = [c.scatter(numpy.full(1 << 20, number)) for number in range(2)]
    mapped = handles[1].get()
    sums = [c.call(total, handles[number], _async=False) for number in (1, 0)]
    handles.append(c.scatter(numpy.full(1 << 20, 2)))
    stand = [in_memory(handles[2]), *(path(one).startswith("/dev/shm") for one in handles[:2])]
    kept = c._connected().ask("Status", "Status")["calls"]["kept"]
    sums += [c.call(total, one, _async=False) for one in handles] + [float(mapped.sum())]
    made = c.call(numpy.full, 1 << 20, 3, _keep=True, _async=False)
    reply([sums, stand, kept, in_memory(made), c.call(total, made, _async=False)])
    """
    sums, stand, usage, in_memory, made = run(cluster[1], code)
    assert sums == [number * MEBIBYTE for number in (1, 0, 0, 1, 2, 1)]
    assert stand == [True, True, False], "the one in the middle was used longest ago"
    assert usage["values"] == 3 and usage["memory_bytes"] <= usage["memory_limit_bytes"] == 20 * MEBIBYTE
    assert 16 * MEBIBYTE < usage["memory_bytes"] and 8 * MEBIBYTE < usage["disk_bytes"] < 9 * MEBIBYTE
    assert in_memory and made == 3 * MEBIBYTE, "so it is with what a worker keeps"
    assert not list((cluster[1].datadir / ".ks/kept").glob("*/*"))
    assert mode(cluster[1]) == "700"
    cluster[1].stop()
    assert not mode(cluster[1])


def test_a_nodes_death_loses_what_was_in_its_memory_and_names_it(make_cluster):
    cluster = make_cluster(2)
    cluster.expect_clean = False
    cluster.start(workers=1)
    code = f"""
    handle = c.call(numpy.ones, 1 << 20, _keep=True, _node="host2", _async=False)
    here = c.scatter(numpy.ones(1 << 10))
    open("/ks/ready", "w").close()
    while not os.path.exists({str(cluster[1].home / "dead")!r}):
        time.sleep(0.05)
    texts = []
    for ask in (handle.get, lambda: c.call(total, handle, _async=False)):
        try:
            ask()
        except KeyLost as error:
            texts.append(str(error))
    reply([texts, c.call(total, here, _async=False)])
    """
    import threading

    def kill():
        wait_for(lambda: (cluster[1].datadir / "ready").exists(), 60, "the values")
        cluster[2].kill_all()
        (cluster[1].home / "dead").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    texts, still = run(cluster[1], code, timeout=40)
    killer.join()
    assert still == 1 << 10
    assert all("no node has its value any more" in text and "host2" in text for text in texts), texts


def test_a_restart_after_kill_9_finds_what_is_still_in_memory(make_cluster):
    cluster = make_cluster(1)
    cluster.start(workers=1)
    node = cluster[1]
    code = """
    from kitchensink import Pool
    with Pool(name="stays") as pool:
        pool.{}
    """
    run(node, code.format('set("x", numpy.ones(1 << 20)); reply(1)'))
    node.kill9()
    node.restart()
    assert run(node, code.format('set("y", 1); reply(float(pool.get("x").sum()))')) == MEBIBYTE
    node.stop()
    assert not mode(node)
    node.restart()
    assert run(node, code.format('delete("y"); reply([float(pool.get("x")[0]), pool.delete("x")])')) == [1.0, None]
