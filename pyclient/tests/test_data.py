"""Arrays and other large data, in and out."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from fake_node import FakeNode

from kitchensink import Client, protocol, serialize


def test_large_arrays_travel_beside_the_pickle_and_come_back_writable(client):
    array = np.arange(1_000_000, dtype=np.float64)
    doubled = client.call(lambda a: a * 2, array, _async=False)
    assert np.array_equal(doubled, array * 2) and doubled.flags.writeable
    small = client.call(lambda a: a + 1, np.arange(10), _async=False)
    assert small.tolist() == list(range(1, 11)) and small.flags.writeable


def test_arguments_are_writable_in_the_worker_too(client):
    def change(array):
        array[0] = 5
        return int(array.sum())

    assert client.call(change, np.zeros(1_000_000), _async=False) == 5
    assert client.call(change, np.zeros(10), _async=False) == 5


def test_arrays_are_not_copied_when_they_are_encoded():
    array = np.arange(1_000_000)
    head, buffer = serialize.encode(((array,), {}))
    assert len(head) < 1000 and buffer.nbytes == array.nbytes
    assert np.shares_memory(np.frombuffer(buffer, dtype=array.dtype), array)
    (again,), _ = serialize.decode([head, bytearray(buffer)])
    assert np.array_equal(again, array)
    fortran = np.asfortranarray(np.arange(1_000_000).reshape(1000, 1000))
    assert np.array_equal(serialize.decode(serialize.encode(fortran)), fortran)
    assert np.array_equal(serialize.decode(serialize.encode(array[::2])), array[::2])


def test_read_only_arrays_stay_read_only():
    array = np.arange(100_000)
    array.flags.writeable = False
    head, buffer = serialize.encode(array)
    assert not serialize.decode([head, bytearray(buffer)]).flags.writeable


def test_blobs_are_mapped_privately(tmp_path):
    def looks(array):
        mapped = [line for line in open("/proc/self/maps") if "blob" in line]
        array[0] = 7
        return len(mapped), int(array[0])

    with FakeNode(blob_bytes=1_000_000) as node, Client(node.socket) as client:
        mapped, first = client.call(looks, np.zeros(1_000_000), _async=False)
        assert mapped == 1 and first == 7
        [blob] = [name for name in os.listdir(node.directory) if name.startswith("blob")]
        assert not any(open(os.path.join(node.directory, blob), "rb").read()), "the file is as it was"


def test_large_bytes_and_strings(client):
    assert client.call(len, b"x" * 10_000_000, _async=False) == 10_000_000
    assert client.call(lambda n: "ü" * n, 1_000_000, _async=False) == "ü" * 1_000_000


def test_bulk_calls_with_arrays(client):
    arrays = [np.full(20_000, number) for number in range(60)]
    assert client.map(lambda a: int(a[0]) * len(a), arrays) == [number * 20_000 for number in range(60)]


def test_a_payload_may_have_empty_parts():
    assert serialize.decode(serialize.encode(np.zeros(0))).shape == (0,)
    assert serialize.decode(serialize.encode(b"")) == b""


@pytest.mark.parametrize("format", ["cloudpickle", "pickle", "json"])
def test_formats(node, format):
    with Client(node.socket, fmt=format) as client:
        assert client.call("operator:mul", 6, 7, _async=False) == 42
        assert client.call(divmod, 7, 2, _async=False) in ((3, 1), [3, 1])


def test_malformed_payloads_are_errors():
    for payload in ({"parts": []}, {"parts": [{"Segment": 3}]}, {"parts": ["Inline"]}, {"parts": [{"Novel": 1}]}):
        with pytest.raises((protocol.Malformed, TypeError)):
            serialize.decode(serialize.open_payload(payload, [bytearray()]))


def test_a_hundred_thousand_calls_stay_small(separate_node):
    script = """
import re, sys
from kitchensink import Client
with Client(sys.argv[1]) as client:
    for number in range(100_000):
        client.bc(abs, -number)
    client.execute()
    assert client.br() == list(range(100_000))
# Not getrusage: a process starts with the peak of the one that started it.
print(int(re.search("VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""
    ran = subprocess.run([sys.executable, "-c", script, separate_node], stdout=subprocess.PIPE, text=True, timeout=200)
    assert ran.returncode == 0
    assert int(ran.stdout) < 300, f"{ran.stdout} MiB"


def test_pickle_protocol_is_five():
    assert serialize.encode((1,), plain=True)[0][:2] == pickle.PROTO + bytes([5])
