"""Values that stay on a node: `scatter`, `_keep`, and how a worker gets them."""

from __future__ import annotations

import gc
import os
import pickle
import struct
import subprocess
import sys
import threading

import numpy
import pytest
from fake_node import FakeNode, until

from kitchensink import Client, NotSerializable
from kitchensink.errors import KeyLost
from kitchensink.kept import Keeper, Mapped, RemoteValue, _opened

WORKERS = 1


def used_bytes(node):
    with open(os.path.join(node.memory, "ledger"), "rb") as ledger:
        return struct.unpack("<2Q", ledger.read())[0]


def test_a_scattered_array_is_mapped_read_only_and_shared(client, node):
    array = numpy.arange(1 << 18)
    handle = client.scatter(array)

    def look(given, again):
        base = given
        while not isinstance(base, memoryview):
            base = base.base if isinstance(base, numpy.ndarray) else memoryview(base)
        return given.sum(), given.flags.writeable, type(base.obj).__name__, given is again

    total, writeable, kind, same = client.call(look, handle, handle, _async=False)
    assert (total, writeable, kind, same) == (array.sum(), False, "mmap", True)
    assert sum(map(len, (pickle.dumps(handle),))) < 200 and node.frames[-1] < 2_000

    def write(given):
        given[0] = 5

    with pytest.raises(ValueError, match="read-only"):
        client.call(write, handle, _async=False)
    assert (handle.get() == array).all() and not handle.get().flags.writeable
    assert client.call(lambda deep: deep["x"][0].sum(), {"x": [handle]}, _async=False) == array.sum()


def test_each_call_has_an_object_of_its_own(client):
    handle = client.scatter({"list": [1]})

    def grow(given):
        given["list"].append(2)
        return given

    assert [client.call(grow, handle, _async=False) for _ in range(2)] == [{"list": [1, 2]}] * 2


def test_scatter_keeps_the_shape_of_lists_and_dicts(client):
    assert [one.get() for one in client.scatter([1, "two"])] == [1, "two"]
    assert {key: one.get() for key, one in client.scatter({"a": 1, "b": None}).items()} == {"a": 1, "b": None}
    assert [one.get() for one in client.scatter((1, 2))] == [1, 2] and client.scatter([]) == []
    assert isinstance(client.scatter("text"), RemoteValue)


def test_a_result_stays_where_it_was_made(client, node):
    job = client.call(lambda n: numpy.full(n, 7), 1 << 17, _keep=True)
    handle = job.result()
    assert isinstance(handle, RemoteValue) and job.result() is handle and handle.id in node.kept
    assert client.call(lambda given: int(given.sum()), handle, _async=False) == 7 << 17
    client.bc(len, "abc", _keep=True)
    client.execute()
    assert client.br()[0].get() == 3
    with pytest.raises(ValueError, match="on purpose"):
        client.call(exec, "raise ValueError('on purpose')", _keep=True).result()


def test_values_go_with_their_handles_and_clients(node):
    with Client(node.socket) as client:
        handle = client.scatter(bytearray(100_000))
        id = handle.id
        copy = pickle.loads(pickle.dumps(handle))
        copy._known_client = client
        assert copy == handle and copy.get() == bytearray(100_000)
        del handle
        gc.collect()
        until(lambda: id not in node.kept)
        with pytest.raises(KeyLost, match="no node has its value any more"):
            copy.get()
        # A call under way keeps what it uses, though nobody else has the handle.
        job = client.call(lambda value: value, client.scatter(5))
        assert job.result() == 5
        until(lambda: not node.kept)
        left = client.scatter(1)
        deleted = client.scatter(2)
        deleted.delete()
        with pytest.raises(KeyError):
            deleted.delete()
        assert left.id in node.kept
    assert not node.kept


def test_a_full_memory_spills_to_the_disk():
    with FakeNode(workers=1, memory_bytes=100_000) as node, Client(node.socket) as client:
        small, large = client.scatter(b"x" * 50_000), client.scatter(b"y" * 80_000)
        assert os.fsencode(node.memory) in node.kept_path(small.id)
        assert b".ks/kept" in node.kept_path(large.id)
        assert client.call(lambda *given: [len(one) for one in given], small, large, _async=False) == [50_000, 80_000]
        kept = client.call(lambda: b"z" * 80_000, _keep=True, _async=False)
        assert b".ks/kept" in node.kept_path(kept.id) and len(kept.get()) == 80_000
        assert 50_000 < used_bytes(node) < 51_000


def test_a_workers_mappings_of_what_is_gone_are_let_go(client, node):
    handle = client.scatter(numpy.ones(1 << 18))
    node.tell_forget()

    def mapped():
        with open("/proc/self/maps") as maps:
            return sum("memory" in line and "ks-fake" in line for line in maps)

    def use(given):
        return float(given[0])

    assert client.call(use, handle, _async=False) == 1.0 and client.call(mapped, _async=False) == 1
    assert client.call(use, handle, _async=False) == 1.0 and client.call(mapped, _async=False) == 1
    handle.delete()
    node.tell_forget()
    assert client.call(mapped, _async=False) == 0


def test_a_value_is_found_where_it_has_moved(tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    for tier in (memory, disk):
        tier.mkdir()
    (memory / "ledger").write_bytes(struct.pack("<2Q", 0, 1 << 20))
    keeper = Keeper(str(memory), str(disk))
    name = keeper.put(numpy.arange(5))["hash"].hex()
    told = memory / name[:2] / name
    mapped = Mapped()
    first = mapped.value("x", os.fsencode(told), keeper)
    (disk / name[:2]).mkdir()
    told.rename(disk / name[:2] / name)
    mapped.let_go()
    assert list(mapped.value("x", os.fsencode(told), keeper)) == list(first) == list(range(5))
    (disk / name[:2] / name).unlink()
    mapped.let_go()
    with pytest.raises(KeyLost, match=name):
        mapped.value("x", os.fsencode(told), keeper)


def test_what_cannot_be_kept_is_said(client):
    with pytest.raises(NotSerializable, match="cannot be kept"):
        client.scatter(threading.Lock())
    job = client.call(lambda: (_ for _ in ()), _keep=True)
    with pytest.raises(NotSerializable, match="cannot be"):
        job.result()
    with pytest.raises(TypeError, match="_keep takes True or False"):
        client.call(abs, 1, _keep="yes")
    json_client = client.clone(fmt="json")
    with pytest.raises(TypeError, match="format is json"):
        json_client.call("math:sqrt", 4, _keep=True)
    json_client.close()


def test_room_is_taken_once_by_many_processes(node, tmp_path):
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / "ledger").write_bytes(struct.pack("<2Q", 0, 50 * 10_000))
    (tmp_path / "kept").mkdir()
    code = f"""
from kitchensink.kept import Keeper
keeper = Keeper({str(memory)!r}, {str(tmp_path / "kept")!r})
for number in range(20):
    keeper.put(bytes(9_000))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    inside = [path.stat().st_size for path in memory.glob("??/*")]
    used, limit = struct.unpack("<2Q", (memory / "ledger").read_bytes())
    assert sum(inside) == used <= limit < used + inside[0]
    assert len(inside) + len(list((tmp_path / "kept").glob("??/*"))) == 80


def test_a_values_file_is_aligned_and_named_by_its_hash(tmp_path):
    from kitchensink import _native

    arrays = [numpy.arange(size) for size in (10_000, 9_999, 12_345)]
    kept = Keeper(None, str(tmp_path)).put(arrays)
    name = kept["hash"].hex()
    path = tmp_path / name[:2] / name
    assert path.stat().st_size == kept["size"] and _native.blake3(path.read_bytes()) == kept["hash"]
    buffers = _opened(os.fsencode(path))
    found = [numpy.frombuffer(buffer, dtype=arrays[0].dtype) for buffer in buffers[1:]]
    assert all((one == other).all() for one, other in zip(arrays, found))
    assert all(one.ctypes.data % 64 == 0 for one in found)
    again = Keeper(None, str(tmp_path)).put(arrays)
    assert again["hash"] != kept["hash"]
    large = numpy.arange(5_000_000)
    kept = Keeper(None, str(tmp_path)).put([large, arrays[1]])
    name = kept["hash"].hex()
    assert _native.blake3((tmp_path / name[:2] / name).read_bytes()) == kept["hash"]
