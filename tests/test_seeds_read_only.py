"""KitchenSinkRPC's read-only test: what is saved on a read-only node is kept by another."""

import pytest

from harness import Cluster
from harness.node import need_running


@pytest.fixture(scope="module")
def cluster():
    need_running()
    with Cluster(3) as cluster:
        first, second, third = cluster.nodes
        first.start("--num-workers", 1)
        for node in (second, third):
            cluster.copy_key(first, node)
        second.start("--join", first.name, "--num-workers", 1)
        third.start("--join", first.name, "--num-workers", 1, "--read-only")
        yield cluster


def test_read_only(cluster):
    code = """
        from kitchensink import do
        c = Client("http://host3:6323/")
        c.bc(lambda: do(None).save(url="test_read_only"), _queue_name="default|host3")
        c.execute()
        c.br()
        active_hosts, results = c.data_info(["test_read_only"])
        location_info, data_info = results["test_read_only"]
        reply([sorted(location_info), sorted(active_hosts), sorted(c.hosts(to_write=True))])
    """
    holders, hosts, writable = cluster[1].ask(code)
    assert len(holders) == 1 and "host3" not in holders
    assert hosts == ["host1", "host2", "host3"] and writable == ["host1", "host2"]


def test_read_only_node_through_its_own_mount(cluster):
    code = """
        from kitchensink import do, du
        do([1, 2]).save(url="test_read_only_mount")
        reply([du("test_read_only_mount").obj(), sorted(c.data_info(["test_read_only_mount"])[1].popitem()[1][0])])
    """
    value, holders = cluster[3].ask(code)
    assert value == [1, 2] and len(holders) == 1 and "host3" not in holders
