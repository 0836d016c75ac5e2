"""Calls that wait for calls of their own: what the client in a worker says to its node."""

from __future__ import annotations

import threading
import time

import pytest

from kitchensink import Client, NestedTooDeep

WORKERS = 3


@pytest.fixture(autouse=True)
def unheard(node):
    """What the node heard in the test before is forgotten."""
    node.waits.clear()
    node.calls.clear()
    node.refuse_waits = None


def outer(socket, naps, threads=False):
    with Client(socket) as inner:
        jobs = [inner.call(time.sleep, nap) for nap in naps]
        if not threads:
            return [job.result(10) for job in jobs]
        waiting = [threading.Thread(target=job.result) for job in jobs]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join(10)
        return [job.result(0) for job in jobs]


def test_a_wait_is_told_and_its_end(node, client):
    job = client.call(outer, node.socket, [0.2])
    assert job.result(10) == [None]
    assert node.waits == [(str(job), True), (str(job), False)]


def test_a_short_wait_is_not_told_nor_one_outside_of_a_worker(node, client):
    assert client.call(time.sleep, 0.1, _async=False) is None
    assert client.call(outer, node.socket, [0], _async=False) == [None]
    assert client.call(outer, node.socket, [], _async=False) == []
    assert all(waits == (node.calls[1]["job"], True) for waits in node.waits[::2])
    assert len(node.waits) in (0, 2)  # 2: the machine was slow


def test_threads_of_a_call_give_its_place_away_once(node, client):
    job = client.call(outer, node.socket, [0.3, 0.4], True)
    assert job.result(10) == [None, None]
    assert node.waits == [(str(job), True), (str(job), False)]


def test_a_refusal_is_raised_in_the_call_and_the_inner_call_goes_on(node, client):
    node.refuse_waits = {"kind": "NestedTooDeep", "message": "too many wait"}
    with pytest.raises(NestedTooDeep, match="too many wait"):
        client.call(outer, node.socket, [0.2], _async=False)
    node.refuse_waits = {"kind": "CatalogUnavailable", "message": "not now"}
    assert client.call(outer, node.socket, [0.2], _async=False) == [None]


def test_what_a_call_calls_goes_before_calls_like_it(node, client):
    client.call(outer, node.socket, [0], _priority=5, _async=False)
    job = client.call(outer, node.socket, [0])
    job.result()
    assert [call.get("priority", 0) for call in node.calls] == [5, 6, 0, 1]
    assert [call.get("outer") for call in node.calls[2:]] == [None, str(job)]
