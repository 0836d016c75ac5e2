"""What Python's own ways to run things concurrently see: executors, asyncio, iterators, progress, timeouts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import subprocess
import sys
import time

import pytest
from fake_node import until

from kitchensink import AsyncClient, Client, Executor, JobCancelled, JobTimeout


def slow(seconds):
    time.sleep(seconds)
    return seconds


def test_executor(node):
    with Executor(url=node.socket) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        future = pool.submit(pow, 2, 5)
        assert future.result(10) == 32 and list(pool.map(pow, [2, 3], [3, 2])) == [8, 9]
        running, queued = pool.submit(slow, 30), pool.submit(slow, 31)
        for future in (queued, running):
            assert future.cancel() and future.done() and future.cancelled() and not future.cancel()
        with pytest.raises(ZeroDivisionError):
            list(pool.map(lambda x: 1 / x, [1, 0]))
        with pytest.raises(TimeoutError):
            next(pool.map(slow, [5], timeout=0.1))
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.map(abs, [1])


def test_executor_of_a_client_cancels_and_leaves_the_client(client):
    pool = Executor(client, defaults={"_intermediate_results": False})
    futures = [pool.submit(slow, 30) for _ in range(4)]
    pool.shutdown(cancel_futures=True)
    assert [type(future.exception(0)) for future in futures] == [JobCancelled] * 4
    assert client.call(abs, -1, _async=False) == 1
    with pytest.raises(TypeError, match="not both"):
        Executor(client, url="ks://host")


def test_imap_gives_results_as_they_come(node, client):
    assert list(client.imap(slow, [0.5, 0.0, 0.1])) == [0.5, 0.0, 0.1]
    assert list(client.imap(slow, [0.5, 0.0, 0.1], ordered=False))[0] == 0.0
    iterator = client.imap(slow, [0, 30, 30, 30])
    assert next(iterator) == 0
    iterator.close()  # leaving the loop cancels what goes on
    until(lambda: not node.going)
    with pytest.raises(TimeoutError):
        list(client.imap(slow, [30], timeout=0.1))
    with pytest.raises(TimeoutError):
        client.map(slow, [30], timeout=0.1)
    until(lambda: not node.going)


def test_a_job_can_be_awaited(client):
    async def several():
        jobs = [client.call(pow, 2, number) for number in range(50)]
        with pytest.raises(ZeroDivisionError):
            await client.call(lambda: 1 / 0)
        return await asyncio.gather(*jobs)

    assert asyncio.run(several()) == [2**number for number in range(50)]


def test_cancelling_the_task_cancels_the_call(client):
    jobs = []

    async def impatient():
        jobs.append(client.call(slow, 30))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(jobs[0], 0.2)

    asyncio.run(impatient())
    assert isinstance(jobs[0].exception(10), JobCancelled)


IMPATIENT = """
import asyncio, time
from kitchensink import Client

async def main():
    c = Client({socket!r})
    try:
        await asyncio.wait_for(c.call(time.sleep, 30), 0.3)
    except asyncio.TimeoutError:
        print("late")
    c.close()

asyncio.run(main())
"""


def test_a_wait_that_times_out_is_quiet_and_cancels_the_call(node):
    code = IMPATIENT.format(socket=node.socket)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("late\n", "")
    until(lambda: not node.going)


def test_cancelling_in_an_event_loop_never_waits(client, tmp_path):
    """As `asyncio.wrap_future` does it when its task is cancelled. This call does not let itself be stopped."""
    begun = tmp_path / "begun"

    def goes_on():
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        begun.touch()
        time.sleep(1.5)
        signal.signal(signal.SIGINT, handler)
        return "done"

    async def main():
        wrapped, direct = client.call(goes_on), client.call(slow, 30)
        waiting = asyncio.ensure_future(asyncio.wrap_future(wrapped))
        while not begun.exists():
            await asyncio.sleep(0.01)
        began = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.1)
        assert direct.cancel() is True
        took = time.monotonic() - began
        with pytest.raises(JobCancelled):
            await direct
        assert not direct.cancel()
        return wrapped, took

    wrapped, took = asyncio.run(main())
    assert took < 0.7
    assert wrapped.result(10) == "done" and not wrapped.cancelled()


def test_async_client(node):
    async def main():
        async with AsyncClient(node.socket) as c:
            assert await c.call(pow, 2, 3) == 8
            assert await asyncio.gather(*(c.call(abs, -number) for number in range(1000))) == list(range(1000))
            assert await c.map(pow, [2, 3], [3, 2]) == [8, 9]
            assert [value async for value in c.imap(slow, [0.5, 0.0], ordered=False)] == [0.0, 0.5]
            job = await c.submit(slow, 0.1)
            assert await c.result(str(job)) == 0.1
            assert list(await c.hosts()) == ["fake"]
            running = await c.submit(slow, 30)
            assert await c.cancel(running) == [str(running)]
            with pytest.raises(JobCancelled):
                await running
            with pytest.raises(ValueError, match="math domain"):
                await c.map("math:sqrt", [1, -1])

    asyncio.run(main())


def test_the_id_is_usable_from_another_process(node, client):
    job = client.call(slow, 0.5)
    code = f"from kitchensink import Client; print(Client({node.socket!r}).result({str(job)!r}, 10))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "0.5", done.stderr


def test_progress(client, capsys):
    client.map(slow, [0.01] * 30, progress=True)
    shown = capsys.readouterr().err
    assert "30" in shown and "100%" in shown or "30 of 30" in shown
    for _ in range(5):
        client.bc(slow, 0.01)
    client.execute()
    client.br(progress=True)
    assert "5" in capsys.readouterr().err
    client.map(slow, [0.01] * 30)  # no terminal: nothing by itself
    assert capsys.readouterr().err == ""


def test_profile(client, capsys):
    def f(x):
        from kitchensink.admin import timethis

        with timethis("doubling"):
            return 2 * x

    client.bc(f, 1)
    client.bc(f, 2)
    jobs = client.execute()
    assert client.br(profile="calls") == [2, 4]
    printed = capsys.readouterr().out
    assert "calls took" in printed and "2 calls on 1 nodes" in printed and "doubling" in printed
    profile = client.profile([str(jobs[0]), jobs[1]])
    assert profile["count"] >= 1 and profile["nodes"]["fake"] >= 1
    assert client.profile(jobs)["marks"]["doubling"] > 0 and client.profile(jobs)["bytes_local"] == 14


def test_a_job_shows_itself(client):
    job = client.call(slow, 0)
    job.result(10)
    assert "slow" in job._repr_html_() and "has ended" in job._repr_html_() and "fake" in job._repr_html_()


def test_local(node):
    with Client(node.socket) as c:
        c.local = True
        c.bc(pow, 2, 3)
        assert c.execute() == [] and c.br() == [8] and not c.jids
        c.bc("math:sqrt", 4)
        with pytest.raises(TypeError, match="cannot be run here"):
            c.execute()
        c.local = False
        c.bc(slow, 30)
        c.execute()
        assert len(c.jids) == 1 and c.bulk_cancel() == c.jids
        with pytest.raises(JobCancelled):
            c.br()
        assert c.bulk_async_result([c.call(abs, -1), str(c.call(slow, 0.2))]) == [1, 0.2]
        with pytest.raises(TimeoutError):
            c.bulk_async_result([c.call(slow, 1)], timeout=0.05)
        assert JobTimeout.__mro__[1].__name__ == "KitchenSinkError"
        until(lambda: not node.going)
