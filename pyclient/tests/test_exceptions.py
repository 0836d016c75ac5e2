"""What a caller gets of a call that fails."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback

import pytest

from kitchensink import KitchenSinkError, NotSerializable, RemoteError, WorkerCrashed
from kitchensink.errors import RemoteTraceback


class OwnError(Exception):
    def __init__(self, message, number):
        super().__init__(message, number)
        self.number = number


class Awkward(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, one, two):
        super().__init__("awkward")


def raise_own():
    raise OwnError("of our own", 5)


def test_the_exception_is_the_original_with_its_remote_traceback(client):
    with pytest.raises(OwnError) as raised:
        client.call(raise_own, _async=False)
    error = raised.value
    assert error.number == 5 and error.args == ("of our own", 5)
    assert isinstance(error.__cause__, RemoteTraceback)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "in raise_own" in text and "OwnError" in text
    assert f"on node fake, process {error.ks_pid}:" in text
    assert "worker.py" not in str(error.__cause__), "our own frames are of no use to anybody"
    assert (error.ks_node, len(error.ks_job)) == ("fake", 32) and error.ks_pid > 0


def test_causes_travel(client):
    def outer():
        try:
            int("x")
        except ValueError as error:
            raise OwnError("outer", 1) from error

    error = client.call(outer).exception()
    assert isinstance(error, OwnError) and isinstance(error.__cause__, ValueError)
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are of Python 3.11")
def test_notes_travel(client):
    def noted():
        error = ValueError("x")
        error.add_note("look here")
        raise error

    assert client.call(noted).exception().__notes__ == ["look here"]


def test_an_exception_that_does_not_unpickle_becomes_a_remote_error(client):
    def awkward():
        raise Awkward(1, 2)

    with pytest.raises(RemoteError, match="Awkward: awkward") as raised:
        client.call(awkward, _async=False)
    assert raised.value.type_name.endswith("Awkward") and "in awkward" in raised.value.traceback


def test_an_exception_whose_text_cannot_be_had(client):
    class Mean(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    error = client.call(raiser, Mean).exception(10)
    assert isinstance(error, (Mean, RemoteError))


def raiser(kind):
    raise kind()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_dies(client, number):
    def die():
        time.sleep(0.01)
        os.kill(os.getpid(), number)
        time.sleep(10)

    began = time.monotonic()
    with pytest.raises(WorkerCrashed) as raised:
        client.call(die, _async=False)
    assert raised.value.signal == number and raised.value.exit_code is None
    assert time.monotonic() - began < 5
    if number == signal.SIGSEGV:
        assert "in die" in raised.value.stack and "in die" in str(raised.value)
    assert client.call(abs, -1, _async=False) == 1


def test_a_worker_that_exits(client):
    with pytest.raises(WorkerCrashed) as raised:
        client.call(os._exit, 3, _async=False)
    assert raised.value.exit_code == 3 and raised.value.signal is None


def test_an_argument_that_cannot_be_sent_is_named(node, client):
    asked = list(node.asked)
    with pytest.raises(NotSerializable, match=r"argument 2 of pow \(a lock\).*cannot pickle"):
        client.call(pow, 1, threading.Lock())
    with pytest.raises(NotSerializable, match=r"argument 'exp' of pow \(a generator\)"):
        client.call(pow, 1, exp=(x for x in ()))
    with pytest.raises(NotSerializable, match="argument 1 of abs"):
        client.bc(abs, threading.Lock())
    with pytest.raises(NotSerializable):
        client.map(abs, [threading.Lock()])
    assert node.asked == asked, "nothing may be sent"
    assert client.execute() == []


def test_a_function_that_cannot_be_sent_says_why(client):
    lock = threading.Lock()
    with pytest.raises(NotSerializable, match="its variable 'lock'.*cannot pickle"):
        client.call(lambda: lock.acquire())
    with pytest.raises(NotSerializable, match="the global 'GLOBAL_LOCK' that it uses"):
        client.call(uses_global_lock)
    with pytest.raises(TypeError, match="a function is called"):
        client.call(5)


GLOBAL_LOCK = threading.Lock()


def uses_global_lock():
    return GLOBAL_LOCK.locked()


def test_a_result_that_cannot_be_sent_names_its_type(client):
    with pytest.raises(NotSerializable, match="result of .* \\(a _thread.lock\\)"):
        client.call(threading.Lock, _async=False)
    assert client.call(abs, -1, _async=False) == 1


def test_wrong_arguments_are_the_functions_type_error(client):
    with pytest.raises(TypeError, match="abs"):
        client.call(abs, 1, 2, _async=False)


def test_deep_recursion_is_an_exception(client):
    def deep(n):
        return deep(n + 1)

    assert isinstance(client.call(deep, 0).exception(30), RecursionError)


def test_another_pythons_function_is_refused_in_words(monkeypatch):
    from kitchensink import serialize

    code = bytearray(serialize.encode_function(lambda: 1, True))
    code[5] += 1
    both = rf"Python 3.{code[5]}, this worker Python 3.{sys.version_info[1]}"
    with pytest.raises(NotSerializable, match=both):
        serialize.decode_function(bytes(code))
    with pytest.raises(NotSerializable):
        serialize.decode_function(b"nonsense")


def test_one_except_clause_catches_all_of_ours():
    from kitchensink import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, KitchenSinkError) or kind is RemoteTraceback
        if kind not in (WorkerCrashed, RemoteError, RemoteTraceback):
            assert type(errors.from_failure({"kind": name, "message": "m"})) is kind
    crashed = errors.from_failure(
        {"kind": "WorkerCrashed", "message": "m", "signal": 11, "exit_code": None, "stack": "s"}
    )
    assert (crashed.signal, crashed.stack, str(crashed)) == (11, "s", "m\ns")
    assert str(errors.from_failure({"kind": "Novel", "message": "m"})) == "Novel: m"
    assert type(errors.from_failure({"kind": "FileNotFoundError", "message": "/ks/x"})) is FileNotFoundError
