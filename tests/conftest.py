"""Fixtures: clusters that are there for a module, and clusters that a test makes and breaks."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import Cluster, live_clusters
from harness.node import need_running

TRIO_WORKERS = 2
# Seeds of the reference model.
SEEDS, SEEDS_LONG = 200, 2000


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long form of the tests that have one (an hour or more)")
    parser.addoption("--seeds", type=int, help="how many seeds the reference model runs (200; 2000 with --long)")
    parser.addoption("--first-seed", type=int, default=1, help="the first of them")


def pytest_configure(config):
    config.addinivalue_line("markers", "long_timeout(seconds): the deadline of the test's long form (--long)")
    # Ended from outside (CI, timeout(1)), the tests still end what they have started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.geteuid() != 0:
        pytest.exit("these tests make network and mount namespaces: run them as root, or with 'unshare -Urnm'", 2)


def pytest_collection_modifyitems(config, items):
    for item in items:
        marker = item.get_closest_marker("long_timeout")
        if marker and config.getoption("long"):
            item.add_marker(pytest.mark.timeout(*marker.args))


@pytest.fixture(scope="session")
def long_run(pytestconfig):
    """Whether the long form was asked for (`--long`)."""
    return pytestconfig.getoption("long")


@pytest.fixture(scope="session")
def seeds(pytestconfig, long_run):
    """The seeds of tests with random operations."""
    first = pytestconfig.getoption("first_seed")
    return range(first, first + (pytestconfig.getoption("seeds") or (SEEDS_LONG if long_run else SEEDS)))


@pytest.fixture(scope="module")
def trio():
    """Three nodes for a whole module: what a test makes in the tree stays, so each uses names of its own."""
    need_running()
    with Cluster(3) as cluster:
        yield cluster.start(workers=TRIO_WORKERS)


@pytest.fixture
def make_cluster():
    """Makes clusters that end with the test: `make_cluster(2)`, then `.start()`."""
    need_running()
    made = []

    def make(count, **options):
        made.append(Cluster(count, **options))
        return made[-1]

    yield make
    problems = []

    def close(cluster):
        try:
            cluster.close()
        except Exception as error:
            problems.append(str(error))

    with ThreadPoolExecutor(max(1, len(made))) as pool:
        list(pool.map(close, made))
    assert not problems, "\n".join(problems)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure comes with the end of every node's log."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for cluster in live_clusters:
            for node in cluster.nodes:
                report.sections.append((f"log of {node.name} ({cluster.hosts.name})", node.log_tail()))
