"""`_profile=True`: what a call's time went to, on the node and merged here."""

from __future__ import annotations

import pstats
import time
import xml.etree.ElementTree as xml

import pytest
from fake_node import FakeNode

from kitchensink import Client, setup_client
from kitchensink.admin import retrieve_profile
from kitchensink.profiled import Pieces, Profile


@pytest.fixture(scope="module")
def client():
    with FakeNode(workers=2) as node, Client(node.socket) as made:
        yield made


def busy(seconds):
    def inner_loop():
        until = time.process_time() + seconds
        while time.process_time() < until:
            sum(range(100))

    inner_loop()
    return seconds


def functions(profile):
    return {name: calls for (_, _, name), (calls, *_) in profile.stats.stats.items()}


def test_profiles_of_several_calls_are_merged(client):
    jobs = [client.call(busy, 0.1, _profile=True) for _ in range(3)]
    assert [job.result() for job in jobs] == [0.1] * 3
    assert jobs[0].name.endswith("busy") and functions(jobs[0].profile)["busy"] == 1
    profile = client.profile(jobs)["profile"]
    assert isinstance(profile.stats, pstats.Stats) and functions(profile)["inner_loop"] == 3
    assert functions(jobs[0].profile)["busy"] == 1  # merging changes none of them
    inner = sum(seconds for stack, seconds in profile.stacks.items() if "inner_loop" in " ".join(stack))
    assert inner > 0.5 * profile.seconds > 0
    assert all(stack == () or stack[0].startswith("busy (") for stack in profile.stacks)


def test_the_seeds_way_to_ask(client):
    jobs = [client.call(busy, 0.01) for _ in range(2)]
    with setup_client(client.url) as other:
        jobs = [other.job(str(job)) for job in jobs]
        assert [job.result() for job in jobs] == [0.01] * 2
        told = retrieve_profile(jobs)
    assert told["count"] == 2 and told["run"] >= 0.02


def test_the_flame_graph_is_svg(client, tmp_path):
    job = client.call(busy, 0.1, _profile=True)
    job.result()
    job.profile.save_flame_graph(tmp_path / "calls.svg")
    root = xml.parse(tmp_path / "calls.svg").getroot()
    names = {title.text.split(" (")[0] for title in root.iter("{http://www.w3.org/2000/svg}title")}
    assert {"busy", "inner_loop"} <= names
    widths = [float(box.get("width")) for box in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == 1200 and all(0 < width <= 1200 for width in widths)


def test_a_call_that_raises_is_profiled_and_one_without_is_not(client):
    def fail():
        busy(0.02)
        raise ValueError("on purpose")

    job, plain = client.call(fail, _profile=True), client.call(busy, 0.01)
    with pytest.raises(ValueError, match="on purpose"):
        job.result()
    assert "fail" in functions(job.profile)
    assert plain.result() == 0.01 and plain.profile is None and client.profile([plain])["profile"] is None


def test_bulk_results_print_it(client, capsys):
    client.bc(busy, 0.02, _profile=True)
    client.execute()
    assert client.br(profile="loop") == [0.02]
    out = capsys.readouterr().out
    assert "loop took" in out and "inner_loop" in out and "cumulative" in out


def test_what_cannot_be_profiled_is_said(client):
    with pytest.raises(TypeError, match="not names of functions"):
        client.call("math:sqrt", 4, _profile=True)
    with pytest.raises(TypeError, match="_intermediate_results"):
        client.call(busy, 1, _profile=True, _intermediate_results=False)
    with pytest.raises(TypeError, match="_profile takes True or False"):
        client.call(busy, 1, _profile="yes")


def test_a_profile_is_whole_or_not_there():
    pieces = Pieces()
    assert pieces.profile() is None
    pieces.add(0, 2, "abc")
    assert pieces.profile() is None
    pieces.add(1, 2, "not a profile")
    assert pieces.profile() is None
    with pytest.raises(ValueError, match="piece 5 of 2"):
        pieces.add(5, 2, "")
    assert Profile.merged([]) is None


def test_markup_in_names_is_escaped():
    graph = Profile(pstats.Stats(), {("<lambda> (a&b.py:1)",): 1.0}).flame_graph()
    assert "<lambda>" not in graph and xml.fromstring(graph) is not None


class Slow:
    """Takes its time to be pickled and to be unpickled."""

    def __init__(self, pickling, unpickling):
        self.pickling, self.unpickling = pickling, unpickling

    def __reduce__(self):
        time.sleep(self.pickling)
        return unpickled, (self.pickling, self.unpickling)


def unpickled(pickling, unpickling):
    time.sleep(unpickling)
    return Slow(pickling, unpickling)


def pass_on(value, pickling):
    time.sleep(0.2)
    value.pickling, value.unpickling = pickling, 0
    return value


def test_the_time_of_a_call_is_told_by_what_it_went_to(client):
    jobs = [client.call(pass_on, Slow(0, 0.1), 0.3) for _ in range(2)]
    for job in jobs:
        job.result()
    profile = client.profile(jobs)
    for call in profile["calls"]:
        assert 0.1 <= call["unpickling"] < 0.2 and 0.2 <= call["run"] < 0.3 and 0.3 <= call["pickling"] < 0.4
        assert call["cpu"] < 0.1 and 0 < call["returning"] < 5 and call["waiting"] == call["claiming"] == 0
    for phase in ("unpickling", "run", "pickling", "returning"):
        assert profile[phase] == pytest.approx(sum(call[phase] for call in profile["calls"]))


def test_the_times_of_a_call_that_raises_or_cannot_be_unpickled(client):
    class Odd:
        def __reduce__(self):
            return time.sleep, ("a while",)

    def fail():
        time.sleep(0.1)
        raise ValueError

    jobs = [client.call(fail), client.call(abs, Odd())]
    assert all(job.exception() for job in jobs)
    failed, odd = client.profile(jobs)["calls"]
    assert 0.1 <= failed["run"] < 0.2 and failed["unpickling"] < 0.1
    assert odd["run"] == 0 < odd["unpickling"]


def test_the_printed_profile_names_every_phase(client, capsys):
    client.bc(time.sleep, 0.1)
    client.execute()
    client.br(profile="naps")
    printed = capsys.readouterr().out
    words = [
        "naps took",
        "queued",
        "claiming",
        "waiting for bytes",
        "unpickling",
        "running 0.1",
        "pickling",
        "returning",
    ]
    assert all(word in printed for word in words), printed
