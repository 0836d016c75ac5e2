"""Calls that make calls and wait for them, on nodes that have no worker to spare."""

import pytest

from harness import Cluster, wait_for

PRELUDE = """
        def leaf(number):
            return number + 1
        def deep(depth):
            from kitchensink import client
            return 0 if depth == 0 else 1 + client().call(deep, depth - 1, _async=False)
"""


@pytest.fixture(scope="module")
def cluster():
    with Cluster(1) as running:
        yield running.start("--max-nested", "4", workers=1)


def test_a_call_waits_for_its_own_with_one_worker(cluster):
    code = """
        def outer(number):
            from kitchensink import client
            c = client()
            return c.result(c.call(leaf, number)) + c.call(leaf, number, _async=False)
        began = time.monotonic()
        reply([c.call(outer, 1, _async=False), c.call(outer, 2, _async=False), time.monotonic() - began])
    """
    first, second, seconds = cluster[1].ask(PRELUDE + code)
    assert (first, second) == (4, 6) and seconds < 20


def test_several_levels_and_then_an_error(cluster):
    code = """
        levels = c.call(deep, 4, _async=False)
        try:
            c.call(deep, 20, _async=False)
        except errors.NestedTooDeep as error:
            reply([levels, str(error), c.call(deep, 2, _async=False)])
    """
    levels, message, after = cluster[1].ask(PRELUDE + code, timeout=90)
    assert levels == 4 and after == 2
    assert "--max-nested" in message and "host1" in message


def test_many_that_wait_do_not_stand_in_each_others_way(cluster):
    code = """
        def outer(number):
            from kitchensink import client
            time.sleep(0.02)
            return sum(client().map(leaf, range(number)))
        import time
        reply([c.map(outer, range(12)), c.map(leaf, range(3))])
    """
    sums, plain = cluster[1].ask(PRELUDE + code, timeout=90)
    assert sums == [sum(range(1, number + 1)) for number in range(12)] and plain == [1, 2, 3]


def test_a_wait_for_whatever_ends_first_and_a_wait_in_a_loop_of_events(cluster):
    code = """
        def first():
            from kitchensink import client
            return sorted(client().imap(leaf, range(3), ordered=False))
        def looped():
            import asyncio
            from kitchensink import AsyncClient
            async def main():
                async with AsyncClient() as c:
                    return await c.call(leaf, 7)
            return asyncio.run(main())
        reply([c.call(first, _async=False), c.call(looped, _async=False)])
    """
    assert cluster[1].ask(PRELUDE + code, timeout=60) == [[1, 2, 3], 8]


def test_a_call_that_waits_can_be_cancelled_and_times_out_and_its_place_comes_back(cluster):
    code = """
        def outer(seconds):
            from kitchensink import client
            return client().call(time.sleep, seconds, _async=False)
        import time
        job = c.call(outer, 60)
        time.sleep(1.5)
        c.cancel(job)
        seen = []
        for job in (job, c.call(outer, 60, _timeout=1.5)):
            try:
                c.result(job, timeout=20)
            except errors.KitchenSinkError as error:
                seen.append(type(error).__name__)
        seen.append(c.call(leaf, 1, _async=False))
        reply(seen)
    """
    assert cluster[1].ask(PRELUDE + code, timeout=60) == ["JobCancelled", "JobTimeout", 2]
    calls = cluster[1].status()["calls"] if "calls" in cluster[1].status() else cluster[1].status()
    assert "nested" in str(calls)


def test_what_a_call_made_ends_with_it_unless_it_ended_by_itself(cluster):
    code = """
        import signal, uuid
        def leave(inner, how):
            # Two calls of its own: the one may run, the other is queued; neither is waited for.
            from kitchensink import client
            for path in inner:
                job = client().call(stand, path, 0.1 if how in ("raise", "return") else 1.5)
                with open("/ks/inner-jobs", "a") as jobs:
                    print(job, how, path, file=jobs)
            time.sleep(0.2)
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise LookupError("mine")
            time.sleep(0.1 if how == "return" else 60)
        def stand(path, seconds):
            time.sleep(seconds)
            open(path, "w").close()
        import time
        outcomes, made = {}, {}
        for how, keywords in (("cancel", {}), ("stay", {"_timeout": 0.5}), ("die", {}), ("raise", {}), ("return", {})):
            made[how] = [f"/ks/inner-{how}-{index}" for index in range(2)]
            job = c.call(leave, made[how], how, **keywords)
            if how == "cancel":
                time.sleep(0.5)
                c.cancel(job)
            try:
                c.result(job, 10)
                outcomes[how] = "returned"
            except Exception as error:
                outcomes[how] = type(error).__name__
            until = time.monotonic() + 1
            while how in ("cancel", "stay", "die") and c._connected().ask({"Jobs": {"limit": 9}}, "Jobs")["total"]:
                going = c._connected().ask({"Jobs": {"limit": 9}}, "Jobs")
                assert time.monotonic() < until, f"what a call made goes on after its end: {how}: {going}"
                time.sleep(0.02)
        reply([outcomes, {how: [os.path.exists(path) for path in paths] for how, paths in made.items()}])
    """
    outcomes, done = cluster[1].ask(PRELUDE + code, timeout=60)
    ends = {"cancel": "JobCancelled", "stay": "JobTimeout", "die": "WorkerCrashed", "raise": "LookupError"}
    assert outcomes == {**ends, "return": "returned"}
    assert not any(any(done[how]) for how in ("cancel", "stay", "die")), done
    written = " ".join(f"/ks/inner-{how}-{index}" for how in ("raise", "return") for index in range(2))
    try:
        wait_for(lambda: cluster[1].shell(f"cat {written}", check=False).status == 0, 20, "the others")
    except AssertionError:
        asked = 'while read -r job rest; do echo "$job $rest"; ks logs "$job"; done </ks/inner-jobs; ls -l /ks'
        print(cluster[1].exec(["bash", "-c", asked], check=False))
        raise
