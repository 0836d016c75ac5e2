"""distributed3's pool on three hosts: the scenarios of its own tests, named after them."""

import threading
import time

import pytest

from harness import Cluster, wait_for
from harness.node import need_running

POOL = """
    from operator import add
    from kitchensink import Pool
    def inc(x):
        return x + 1
    p = Pool("host1:6323")
"""


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        yield cluster.start(workers=1)


def run(node, code, **options):
    return node.ask(POOL + code, **options)


def test_pool(cluster):
    code = """
    computation = p.apply_async(add, [1, 2])
    states = [computation.status]
    x = computation.get()
    states += [computation.status, x.status]
    y = p.apply_async(add, [x, 10]).get()
    values = [x.get(), y.get()]
    seq = p.map(lambda x: x * 100, [1, 2, 3])
    values += [one.get() for one in seq]
    results = p.map(lambda x: 3 / x, [0, 1, 2, 3])
    try:
        results[0].get()
    except ZeroDivisionError as error:
        failed = error.ks_node
    reply([states, values, failed, results[1].get()])
    """
    states, values, failed, third = run(cluster[2], code)
    assert states[0] in ("running", "success") and states[1:] == ["success", "success"]
    assert values == [3, 13, 100, 200, 300]
    assert failed in ("host1", "host2", "host3") and third == 3


def test_pool_synchronous(cluster):
    code = """
    p.sync_center()
    cores = sorted(p.available_cores.values())
    data = p.map(lambda x: x * 10, [1, 2, 3])
    p.sync_center()
    who = {key: len(p.who_has[key]) for key in (one.key for one in data)}
    what = sum(len(keys) for keys in p.has_what.values())
    reply([cores, data[0].get(), p.gather(data), list(who.values()), what, sorted(map(str, p.available_cores))])
    """
    cores, first, gathered, holders, kept, nodes = run(cluster[1], code)
    assert cores == [1, 1, 1] and len(nodes) == 3
    assert first == 10 and gathered == [10, 20, 30]
    assert holders == [1, 1, 1] and kept == 3


def test_the_example_of_the_readme(cluster):
    code = """
    A = p.map(lambda x: x**2, range(10))
    B = p.map(lambda x: -x, A)
    total = p.apply(sum, [B])
    p.sync_center()
    where = {key: nodes for key, nodes in p.who_has.items()}
    # What was computed of a value is where the value is.
    together = sum(bool(where[a.key] & where[b.key]) for a, b in zip(A, B))
    values = [total.get(), p.gather(A), together]
    p.close()
    reply(values + [os.path.exists(f"/ks/pools/{p._id}")])
    """
    total, squares, together, left = run(cluster[1], code)
    assert total == -285 and squares == [x**2 for x in range(10)]
    assert together == 10
    assert left is False


def test_scatter_gather_nested(cluster):
    code = """
    remote = p.scatter(range(9))
    named = p.scatter({"x": [1, 2], "y": "z"})
    p.sync_center()
    spread = sorted(len(keys) for keys in p.has_what.values())
    nested = p.gather({"list": remote, "more": [(named["x"], {"deep": named["y"]})]})
    reply([spread, nested, p.get("x"), sorted(named), p.apply(len, [remote]).get()])
    """
    spread, nested, x, names, length = run(cluster[3], code)
    assert sum(spread) == 11 and spread[0] >= 3
    assert nested == {"list": list(range(9)), "more": [[[1, 2], {"deep": "z"}]]}
    assert (x, names, length) == ([1, 2], ["x", "y"], 9)


def test_apply_with_nested_data(cluster):
    code = """
    results = p.map(inc, range(10))
    reply(p.apply(sum, [results]).get())
    """
    assert run(cluster[2], code) == sum(range(1, 11))


def test_failing_job(cluster):
    code = """
    results = p.map(lambda x: 1 / x, [2, 1, 0])
    try:
        results[2].get()
    except ZeroDivisionError:
        reply(results[0].get())
    """
    assert run(cluster[1], code) == 0.5


def test_job_kills_worker(cluster):
    code = """
    from kitchensink import WorkerCrashed
    def dies_once(x):
        marker = f"/ks/died-{x}"
        if x % 7 == 3 and not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(3)
        return x + 1
    results = p.map(dies_once, range(20))
    values = p.gather(results)
    try:
        p.apply(lambda: os._exit(4)).get()
    except WorkerCrashed as error:
        reply([values, error.exit_code, p.apply(inc, [1]).get()])
    """
    assert run(cluster[1], code) == [list(range(1, 21)), 4, 2]


def test_the_end_of_the_process_ends_its_pools(cluster):
    pool = run(cluster[2], "    p.set('x', 1)\n    reply(p._id)")
    assert not (cluster[1].datadir / "pools" / pool).exists()
    assert cluster[2].shell(f"ls -d /ks/pools/{pool}", check=False).status == 2


def test_pools_of_one_name_share_their_keys(cluster):
    code = """
    with Pool(name="shared") as q:
        q.{}
    """
    cluster[1].python(POOL + code.format("set('a', [1, 2])"))
    assert cluster[3].ask(POOL + code.format("sync_center(); reply(q.get('a'))")) == [1, 2]


def test_a_node_is_lost_in_the_middle_of_a_map(make_cluster):
    cluster = make_cluster(3)
    cluster.expect_clean = False
    cluster.start(workers=1)
    code = """
    def f(x):
        time.sleep(0.3)
        return x + 1
    open("/ks/started", "w").close()
    results = p.map(f, range(20))
    nodes = [one._job.placement.node for one in results]
    kept = [one.get() for one, node in zip(results, nodes) if node != "host3"]
    p.sync_center()
    reply([len(results), nodes.count("host3"), all(one.status == "success" for one in results), len(kept),
           len(p.available_cores)])
    """

    def kill():
        wait_for(lambda: (cluster[1].datadir / "started").exists(), 30, "the start")
        time.sleep(1)
        cluster[3].kill_all()

    killer = threading.Thread(target=kill)
    killer.start()
    count, lost, succeeded, kept, nodes = run(cluster[1], code, timeout=120)
    killer.join()
    assert count == 20 and succeeded and nodes == 2
    assert kept == 20 - lost and lost < 8


def test_collect_from_dead_node(make_cluster):
    cluster = make_cluster(3)
    cluster.expect_clean = False
    cluster.start(workers=1)
    code = """
    p = Pool(name="dies")
    remote = p.scatter(list(range(9)))
    reply([one.key for one in remote])
    """
    keys = run(cluster[1], code)
    cluster[3].kill_all()
    code = f"""
    from kitchensink.pool import RemoteValue
    p = Pool(name="dies")
    remote = [RemoteValue("dies", key) for key in {keys!r}]
    try:
        p.gather(remote)
    except KeyError as error:
        reply(str(error))
    """
    assert "no node has its value any more" in run(cluster[1], code, timeout=90)
