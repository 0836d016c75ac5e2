"""Functions by name, formats, and a node that runs nothing else than what is registered."""

from __future__ import annotations

import json
import os

import pytest
from fake_node import FakeNode

from kitchensink import (
    Client,
    KitchenSinkError,
    NotRegistered,
    NotSerializable,
    register_serialization,
    rpc,
    serialization,
)

MODULE = """
import os
from kitchensink import RPC, register_serialization

rpc = RPC("test")

@rpc.register_function
def dummy_add(x, y):
    return x + y

rpc.register_function(lambda x, y: x * y, "dummy_mult")
RPC().register_function(len, "length")

def not_registered():
    return 1

dumps, loads = (lambda value: repr(value).upper().encode()), (lambda data: eval(bytes(data).decode().lower()))
register_serialization("upper", dumps, loads)
"""
PLAIN_MODULE = """
from os import getcwd, system
import os

def served(x):
    return x

def _hidden():
    return 1
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    directory = tmp_path_factory.mktemp("modules")
    (directory / "served_module.py").write_text(MODULE)
    (directory / "plain_module.py").write_text(PLAIN_MODULE)
    return directory


def node_of(modules, **environment):
    path = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
    return FakeNode(environment={"KS_MODULES": "served_module,plain_module", "PYTHONPATH": path, **environment})


@pytest.fixture(scope="module")
def node(modules):
    with node_of(modules) as running:
        yield running


@pytest.fixture(scope="module")
def strict_node(modules):
    with node_of(modules, KS_REGISTERED_ONLY="1") as running:
        yield running


def by_name(socket, name, *args, fmt="cloudpickle", **keywords):
    with Client(socket, fmt=fmt) as c:
        return c.call(name, *args, _async=False, **keywords)


@pytest.mark.parametrize("fmt", ["cloudpickle", "pickle", "json"])
@pytest.mark.parametrize("strict", [False, True])
def test_registered_functions_in_any_format(node, strict_node, fmt, strict):
    socket = (strict_node if strict else node).socket
    assert by_name(socket, "dummy_add", 1, 2, fmt=fmt, _rpc_name="test") == 3
    assert by_name(socket, "test:dummy_mult", 3, 2, fmt=fmt) == 6
    assert by_name(socket, "length", "four", fmt=fmt) == 4
    assert by_name(socket, "served_module:dummy_add", 1, 2, fmt=fmt) == 3
    assert by_name(socket, "plain_module:served", 5, fmt=fmt) == 5


def test_a_client_of_one_rpc(node):
    with Client(node.socket, rpc_name="test") as c:
        assert c.call("dummy_add", 1, 2, _async=False) == 3
        with pytest.raises(NotRegistered, match="test:nothing is not registered on fake; registered: .*test:dummy_add"):
            c.call("nothing", _async=False)


@pytest.mark.parametrize(
    "name",
    [
        "served_module:not_registered",
        "served_module:os.getcwd",
        "plain_module:os.getcwd",
        "plain_module:getcwd",
        "plain_module:system",
        "plain_module:_hidden",
        "os:getcwd",
        "kitchensink.builtins:run_command",
        "kitchensink.builtins:os.getcwd",
        "kitchensink.rpc:resolve",
        "nothing",
    ],
)
def test_registered_only_refuses_other_names(strict_node, name):
    with pytest.raises(NotRegistered, match="is not registered on fake"):
        by_name(strict_node.socket, name, _rpc_name=None)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_registered_only_unpickles_nothing_of_others(strict_node, node, tmp_path):
    path = str(tmp_path / "unpickled")
    bomb = Bomb(path)
    with pytest.raises(NotRegistered):
        by_name(strict_node.socket, "os:fspath", bomb)
    with Client(strict_node.socket) as c, pytest.raises(NotRegistered, match="registered functions only"):
        c.call(lambda: bomb, _async=False)
    assert not os.path.exists(path)
    with pytest.raises(Exception):  # noqa: B017  # the result cannot be sent, but it was made: the bomb works
        by_name(node.socket, "served_module:dummy_add", bomb, 1)
    assert os.path.exists(path)


def test_raw_is_bytes_in_bytes_out(node):
    with Client(node.socket, fmt="raw") as c:
        assert c.call(bytes.upper, b"abc", _async=False) == b"ABC"
        with pytest.raises(NotSerializable, match="one argument, bytes"):
            c.call(bytes.upper, b"abc", 1)
        with pytest.raises(NotSerializable, match="raw takes bytes, not int"):
            c.call(len, b"abc", _async=False)
        with pytest.raises(NotSerializable, match="raw takes bytes, not str"):
            c.call(len, "abc")


def test_a_format_of_ones_own(node):
    register_serialization("upper", lambda value: repr(value).upper().encode(), lambda data: json.loads(bytes(data)))
    assert by_name(node.socket, "test:dummy_add", [1], [2], fmt="upper") == [1, 2]
    with pytest.raises(TypeError, match="no format is called 'yaml'"):
        Client(node.socket, fmt="yaml")
    with pytest.raises(ValueError, match="built-in"):
        register_serialization("json", json.dumps, json.loads)
    register_serialization("text", json.dumps, json.loads)
    with pytest.raises(NotSerializable, match="the serializer of the format text made a str, not bytes"):
        by_name(node.socket, "test:dummy_add", 1, 2, fmt="text")
    register_serialization("only here", lambda value: json.dumps(value).encode(), json.loads)
    with pytest.raises(NotSerializable, match="no format is called 'only here'"):
        by_name(node.socket, "test:dummy_add", 1, 2, fmt="only here")


@pytest.mark.skipif(not serialization.known("dill"), reason="dill is not installed")
def test_dill(node):
    with Client(node.socket, fmt="dill") as c:
        assert c.call(lambda f, x: f(x), lambda x: x + 1, 1, _async=False) == 2


def test_registering():
    with pytest.raises(TypeError, match="a function is registered, not 5"):
        rpc.RPC("nowhere").register_function(5)


def test_a_module_that_cannot_be_imported():
    with FakeNode(environment={"KS_MODULES": "no_such_module"}) as node:
        with pytest.raises(KitchenSinkError, match="no_such_module, which fake serves, cannot be imported"):
            by_name(node.socket, "test:dummy_add", 1, 2)
        with Client(node.socket) as c:
            assert c.call(abs, -1, _async=False) == 1
