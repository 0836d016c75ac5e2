"""The pool, its keys and its handles, on a node that keeps values in a plain directory."""

from __future__ import annotations

import pickle
from operator import add

import pytest
from fake_node import FakeNode

from kitchensink import KitchenSinkError, Pool, nested
from kitchensink.errors import KeyLost
from kitchensink.pool import RemoteValue


@pytest.fixture(scope="module")
def node():
    with FakeNode(workers=2) as running:
        yield running


@pytest.fixture
def pool(node):
    with Pool(node.socket) as made:
        yield made


def test_map_apply_gather(pool, node):
    squares = pool.map(lambda x: x**2, range(10))
    assert all(isinstance(one, RemoteValue) and one.status == "success" for one in squares)
    negative = pool.map(lambda x: -x, squares)
    assert squares[9].id in {value["id"] for call in node.calls for value in call.get("kept", [])}
    total = pool.apply(sum, [negative])
    assert total.get() == -285
    nested_data = {"squares": squares, "deep": [(total, 5), {total}]}
    assert pool.gather(nested_data) == {"squares": [x**2 for x in range(10)], "deep": [(-285, 5), {-285}]}
    assert (
        pool.apply(lambda deep, scale=1: deep["x"][0] * scale, ({"x": [total]},), {"scale": squares[2]}).get() == -1140
    )


def test_apply_async(pool):
    pending = pool.apply_async(add, (1, 2), key="three")
    value = pending.get()
    assert pending.status == value.status == "success" and value.key == pending.key == "three"
    assert value.get() == 3 and pool.get("three") == 3 and pool.apply(add, [value, 10]).get() == 13
    with pytest.raises(TypeError, match="args is a tuple or a list"):
        pool.apply_async(add, 5)
    with pytest.raises(TypeError, match="a function is called"):
        pool.apply("no function")
    with pytest.raises(TypeError, match="_nonsense is not a keyword"):
        pool.map(abs, [1], _nonsense=1)


def test_failures_are_raised_where_the_value_is_asked_for(pool):
    results = pool.map(lambda x: 3 / x, [0, 1, 2])
    assert [one.status for one in results] == ["error", "success", "success"] and results[1].get() == 3
    for ask in (results[0].get, lambda: pool.gather(results), pool.apply(abs, [results[0]]).get):
        with pytest.raises((ZeroDivisionError, KeyLost)):
            ask()


def test_gather_has_a_deadline(pool):
    import time

    pending = pool.apply_async(time.sleep, (1,))
    with pytest.raises(TimeoutError):
        pool.gather([pending._value], timeout=0.05)
    with pytest.raises(TimeoutError):
        pending.get(timeout=0.05)
    assert pool.gather([pending._value], timeout=10) == [None]


def test_keys(pool, node):
    pool.set("a key/with a slash", [1, 2])
    assert pool.get("a key/with a slash") == [1, 2]
    pool.set("a key/with a slash", 3)
    assert pool.get("a key/with a slash") == 3
    pool.delete("a key/with a slash")
    for ask in (pool.get, pool.delete):
        with pytest.raises(KeyError, match="a key/with a slash"):
            ask("a key/with a slash")
    assert not any(keep["group"] == pool._id for keep, _ in node.kept.values())


def test_handles_travel(pool):
    value = pool.set("x", 5)
    again = pickle.loads(pickle.dumps(value))
    assert (
        again == value
        and hash(again) == hash(value)
        and again.key == "x"
        and repr(again).startswith("RemoteValue<key=x")
    )


def test_close_leaves_nothing_but_what_has_a_name(node):
    with Pool(node.socket) as pool, Pool(node.socket, name="kept") as kept:
        pool.set("x", 1)
        kept.set("x", 2)
    assert {keep["group"] for keep, _ in node.kept.values()} == {"kept"}
    with pytest.raises(KitchenSinkError, match="pool was closed"):
        pool.map(abs, [1])
    pool.close()
    with Pool(node.socket, name="kept") as kept:
        assert kept.get("x") == 2
        kept.delete("x")


def test_nested():
    assert list(nested.find({"a": [1, (2, {3})], 4: "x"}, int)) == [1, 2, 3, 4]
    same = {"a": [1, (2, "x")]}
    assert nested.replace(same, float, str) is same
    assert nested.replace(same, int, str) == {"a": ["1", ("2", "x")]}
    deep: list = []
    for _ in range(100):
        deep = [deep]
    assert nested.replace(deep, int, str) is deep
