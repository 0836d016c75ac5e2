"""Calls, their results and their keywords."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import datetime
import functools
import os
import pathlib
import sys
import threading
import time

import pytest
from fake_node import FakeNode

from kitchensink import (
    Client,
    Job,
    JobCancelled,
    KitchenSinkError,
    NotPlaceable,
    NotRegistered,
    Placement,
    WorkerCrashed,
)

FACTOR = 3
MUTABLE = [1]


def scaled(x):
    return x * FACTOR


def first_of_mutable():
    return MUTABLE[0]


def test_a_call_returns_a_job_whose_result_is_the_functions(client):
    job = client.call(pow, 2, 10)
    assert isinstance(job, Job)
    assert client.result(job) == 1024
    assert job.done() and not job.running() and not job.cancelled()
    assert len(str(job)) == 32 and int(str(job), 16) >= 0


def test_async_false_returns_the_result(client):
    assert client.call(lambda x, y=1: x + y, 2, y=5, _async=False) == 7


def test_a_result_is_found_by_its_id_alone(node, client):
    job = client.call(pow, 3, 3)
    assert job.result() == 27
    with Client(node.socket) as other:
        assert other.result(str(job)) == 27
        assert other.async_result(str(job)) == 27


def test_an_unknown_id_is_an_error_of_the_nodes(client):
    with pytest.raises(Exception, match="no job"):
        client.result("0" * 32)


def test_a_coroutine_function_runs_to_its_end(client):
    async def naps(seconds):
        await asyncio.gather(*(asyncio.sleep(seconds) for _ in range(3)))
        return seconds

    async def breaks():
        await asyncio.sleep(0)
        raise LookupError("mine")

    assert client.call(naps, 0.01, _async=False) == 0.01
    assert client.map(naps, [0.01, 0.02]) == [0.01, 0.02]
    assert client.call(naps, 0.01, _profile=True, _async=False) == 0.01
    with pytest.raises(LookupError, match="mine"):
        client.call(breaks, _async=False)
    job = client.call(naps, 60)
    while not job.running():
        time.sleep(0.01)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(10)


def test_placement_tells_where_it_ran(client):
    job = client.call(os.getpid)
    pid = job.result()
    assert isinstance(job.placement, Placement)
    assert (job.placement.node, job.placement.pid, job.placement.costs) == ("fake", pid, {"fake": 0})
    assert job.placement.bytes_local == 7


def test_own_keywords_reach_the_node(node, client):
    client.call(
        abs,
        -1,
        _queue_name="gpu|host3",
        _locality=["/ks/a", "b"],
        _prefix="logs",
        _timeout=1.5,
        _retries=2,
        _priority=-4,
        _data_threshold=10,
        _no_route_data=True,
        _intermediate_results=False,
        _python="conda",
        _async=False,
    )
    call = node.calls[-1]
    assert (call["queue"], call["node"], call["python"]) == ("gpu", "host3", "conda")
    assert call["locality"] == [b"/ks/a", b"/ks/logs/b"]
    assert (call["timeout_ms"], call["retries"], call["priority"]) == (1500, 2, -4)
    assert call["data_threshold"] == 10 and call["no_route_data"] is True and call["intermediate_results"] is False


@pytest.mark.parametrize(
    "wrong", [{"_nod": "x"}, {"_timeout": -1}, {"_timeout": "5"}, {"_retries": 1.5}, {"_async": 3}, {"_locality": 5}]
)
def test_a_wrong_keyword_is_a_type_error_that_names_it(client, wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        client.call(abs, 1, **wrong)


def test_paths_under_the_mount_are_told_to_the_node(node, client):
    @dataclasses.dataclass
    class Wanted:
        path: str

    arguments = ["/ks/a", b"/ks/b", pathlib.Path("/ks/c"), {"/ks/d": ["/ks/e", ("/ks/f",)]}, {"/ks/g"}, Wanted("/ks/h")]
    others = ["/ksx/no", "a/ks/no", "https://ks/no", "", 5, "/k"]
    client.call(lambda *args, **kwargs: None, *arguments, *others, key="/ks/\udcff", again="/ks/a", _async=False)
    assert sorted(node.calls[-1]["paths"]) == [
        b"/ks/" + name for name in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"\xff")
    ]
    assert node.calls[-1]["mountpoint"] == b"/ks"
    client.call(abs, 1, _async=False)
    assert not node.calls[-1].get("paths")


def test_paths_arrive_under_the_workers_mount_point():
    def seen(path, nested, raw, pure, other):
        return path, nested, raw, str(pure), type(pure).__name__, other

    with FakeNode(worker_mountpoint=b"/mnt/tree") as node, Client(node.socket) as client:
        result = client.call(
            seen, "/ks/a", {"k": ["/ks/b", ("/ks/c", 1)]}, b"/ks", pathlib.PurePosixPath("/ks/d"), "/ksx", _async=False
        )
    assert result == (
        "/mnt/tree/a",
        {"k": ["/mnt/tree/b", ("/mnt/tree/c", 1)]},
        b"/mnt/tree",
        "/mnt/tree/d",
        "PurePosixPath",
        "/ksx",
    )


def test_map_is_in_order_and_pairs_like_the_builtin(client):
    assert client.map(lambda x, y, z=0: x * 10 + y + z, range(500), range(500, 0, -1), z=1) == [
        x * 10 + y + 1 for x, y in zip(range(500), range(500, 0, -1))
    ]
    assert client.map(abs, []) == []


def test_bulk(node, client):
    before = len(node.frames)
    jobs = [client.bc(pow, number, 2) for number in range(1200)]
    assert len(node.frames) == before
    assert client.execute() == jobs
    assert 3 <= len(node.frames) - before <= 5  # batches, not calls
    assert client.br() == [number**2 for number in range(1200)]
    assert client.br() == [] and client.execute() == []
    client.bc(abs, -1)
    with pytest.raises(KitchenSinkError, match=r"1 calls were added and not sent: call execute\(\)"):
        client.br()
    client.execute()
    assert client.br() == [1]


def test_a_failed_bulk_call_raises_after_all_have_ended(client):
    client.bc(time.sleep, 0.05)
    client.bc(int, "x")
    client.bc(time.sleep, 0.1)
    jobs = client.execute()
    with pytest.raises(ValueError, match="invalid literal"):
        client.br()
    assert all(job.done() for job in jobs)


def test_bulk_results_can_be_asked_for_again_after_a_timeout(client):
    client.bc(time.sleep, 0.3)
    client.execute()
    with pytest.raises(concurrent.futures.TimeoutError):
        client.br(timeout=0.05)
    assert client.br() == [None]


def test_a_failed_map_raises_and_cancels_the_rest(node, client):
    def fail_at_once(number):
        if number == 0:
            raise KeyError(number)
        time.sleep(0.2)

    with pytest.raises(KeyError):
        client.map(fail_at_once, range(50))
    deadline = time.monotonic() + 5
    while node.going and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not node.going


def test_a_result_that_does_not_come_in_time(client):
    job = client.call(time.sleep, 0.5)
    with pytest.raises(concurrent.futures.TimeoutError):
        job.result(0.05)
    assert job.result(10) is None


def test_cancel(client):
    running = client.call(time.sleep, 30)
    while not running.running():
        time.sleep(0.01)
    assert client.cancel(running) == [running.id]
    with pytest.raises(JobCancelled):
        running.result(10)
    assert running.cancelled() and running.done() and not running.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        running.result()


def test_cancel_all(client):
    jobs = [client.call(time.sleep, 30) for _ in range(5)]
    assert sorted(client.cancel_all()) == sorted(map(str, jobs))
    assert [type(job.exception(10)) for job in jobs] == [JobCancelled] * 5


def test_a_refusal_is_raised_by_result(node, client):
    node.refuse = {"kind": "NotPlaceable", "message": "no node is called nowhere"}
    try:
        job = client.call(abs, 1, _node="nowhere")
        with pytest.raises(NotPlaceable, match="no node is called nowhere"):
            job.result(10)
        client.bc(abs, 1)
        with pytest.raises(NotPlaceable):
            client.execute()
    finally:
        node.refuse = None


def test_the_cluster(client):
    assert client.ping() == "fake" and client.node == "fake" and client.mountpoint == "/ks"
    assert client.nodes()["fake"]["address"] == "127.0.0.1:6323"
    assert client.hosts() == {"fake": "http://127.0.0.1:6323/"} and client.hosts(to_write=True) == {}
    assert client.where("/ks/a", pathlib.Path("/ks/b"))[1]["path"] == "/ks/b"
    hosts, found = client.data_info(["/ks/a", "b/c"])
    assert hosts == client.hosts() and [found[url][0] for url in ("a", "b/c")] == [{"fake"}, set()]
    assert found["a"][1]["size"] == 7
    seen = []
    client.fetch("/ks/a", progress=lambda path, have, size: seen.append((path, have, size)))
    assert seen == [("/ks/a", 0, 100), ("/ks/a", 50, 100), ("/ks/a", 100, 100)]


def test_functions_by_name_and_json(node):
    with Client(node.socket, fmt="json") as client:
        assert client.call("math:hypot", 3, 4, _async=False) == 5.0
        assert client.call("hypot", 3, 4, _rpc_name="math", _async=False) == 5.0
        with pytest.raises(NotRegistered, match="default:hypot is not registered"):
            client.call("hypot", 3, 4, _async=False)
        with pytest.raises(TypeError, match="names no function"):
            client.call("")
        with pytest.raises(ModuleNotFoundError):
            client.call("no_such_module:f", _async=False)


def test_a_job_is_a_future(client):
    jobs = [client.call(time.sleep, 0.01 * number) for number in range(5)]
    done, waiting = concurrent.futures.wait(jobs, timeout=10)
    assert len(done) == 5 and not waiting
    jobs = [client.call(pow, 2, number) for number in range(5)]
    assert sorted(job.result() for job in concurrent.futures.as_completed(jobs, timeout=10)) == [1, 2, 4, 8, 16]

    async def one():
        return await asyncio.wrap_future(client.call(pow, 2, 5))

    assert asyncio.run(one()) == 32
    called = threading.Event()
    client.call(abs, -1).add_done_callback(lambda job: job.result() == 1 and called.set())
    assert called.wait(10)


def test_a_function_is_sent_once_and_never_stale(node, client, monkeypatch):
    session = node.sessions[-1]
    assert [client.call(scaled, number, _async=False) for number in range(5)] == [0, 3, 6, 9, 12]
    assert session.functions.count("scaled") == 1
    monkeypatch.setitem(globals(), "FACTOR", 4)
    assert client.call(scaled, 1, _async=False) == 4
    assert session.functions.count("scaled") == 2
    assert client.call(first_of_mutable, _async=False) == 1
    MUTABLE[0] = 2
    assert client.call(first_of_mutable, _async=False) == 2

    total = 1
    closure = lambda: total  # noqa: E731
    assert client.call(closure, _async=False) == 1
    total = 2
    assert client.call(closure, _async=False) == 2
    assert client.call(functools.partial(scaled, 5), _async=False) == 20


class Loaded:
    """What a function holds, and what happens as it is loaded with it."""

    def __init__(self, expression):
        self.expression = expression

    def __reduce__(self):
        return eval, (self.expression,)


def test_a_function_that_was_cancelled_while_it_was_loaded_can_be_called_again(tmp_path):
    mark = tmp_path / "mark"
    once = f"__import__('os').path.exists({str(mark)!r}) or (open({str(mark)!r}, 'w'), __import__('time').sleep(30))"
    slow = Loaded(once)
    with FakeNode(workers=1) as node, Client(node.socket) as client:
        function = lambda number: (number, slow)  # noqa: E731
        job = client.call(function, 1)
        until = time.monotonic() + 10
        while not mark.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        client.cancel(job)
        with pytest.raises(JobCancelled):
            job.result(10)
        assert client.call(function, 2).result(10) == (2, True)


def test_a_function_whose_import_fails_says_so_each_time():
    lacking = Loaded("__import__('no_such_module_anywhere')")
    with FakeNode(workers=1) as node, Client(node.socket) as client:
        function = lambda: lacking  # noqa: E731
        for _ in range(2):
            with pytest.raises(Exception, match="no_such_module_anywhere"):
                client.call(function, _async=False)


def test_a_large_function_travels_beside_the_header(client):
    table = bytes(range(256)) * 1024
    assert client.call(lambda: len(table), _async=False) == 256 * 1024


def test_many_threads_use_one_client(client):
    wrong = []

    def work(base):
        for number in range(40):
            if client.call(lambda a, b: a + b, base, number, _async=False) != base + number:
                wrong.append((base, number))

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_a_job_outlives_its_client_object(node):
    job = Client(node.socket).call(lambda: (time.sleep(0.1), 5)[1])
    assert job.result(10) == 5
    deadline = time.monotonic() + 5
    while not job._session.ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job._session.ended  # and the connection does not outlive the last job


@pytest.mark.parametrize("status,exit_code", [(3, 3), (None, 0), ("words", 1)])
def test_sys_exit_in_a_call_does_not_end_the_caller(client, status, exit_code):
    with pytest.raises(WorkerCrashed, match="sys.exit") as raised:
        client.call(sys.exit, status, _async=False)
    assert raised.value.exit_code == exit_code and raised.value.signal is None
    assert client.call(abs, -1, _async=False) == 1


def test_short_arguments_of_a_call_that_names_no_file_are_told_as_texts(node, client):
    def sent(*args, **kwargs):
        client.call(lambda *args, **kwargs: None, *args, **kwargs, _async=False)
        return dict(node.calls[-1].get("texts", []))

    assert sent(5, "2013-01", day=datetime.date(2013, 1, 5), ok=True, rest=[1, ("a",)]) == {
        "0": b"5",
        "1": b"2013-01",
        "day": b"2013-01-05",
        "rest.0": b"1",
    }
    assert sent("x" * 65, b"raw", None, list(range(9))) == {}
    assert sent(5, os.path.join(client.mountpoint, "a")) == {}
    assert sent(5, _locality="a") == {}
    assert sent(float("inf"), 10**5000) == {"0": b"inf"}
