"""Calls that cannot be: a typed error at once, with the cure in it. Nothing is run again that a user's code raised."""

import pytest

CASES = {
    "an unknown keyword": ("c.call(abs, 1, _tiemout=3)", "TypeError", ["_tiemout", "_timeout"]),
    "a negative timeout": ("c.call(abs, 1, _timeout=-1)", "TypeError", ["_timeout", "more than 0"]),
    "a priority that is no number": ("c.call(abs, 1, _priority='high')", "TypeError", ["_priority", "'high'"]),
    "a locality that is no path": ("c.call(abs, 1, _locality=5)", "TypeError", ["_locality"]),
    "a locality that is not there": (
        "c.call(abs, 1, _locality='/ks/no/such', _async=False)",
        "NotPlaceable",
        ["/ks/no/such", "is not there", "a node"],
    ),
    "a locality beside one that is there": (
        "c.call(abs, 1, _locality=['/ks', 'no/such'], _async=False)",
        "NotPlaceable",
        ["/ks/no/such"],
    ),
    "a locality outside of the tree": (
        "c.call(abs, 1, _locality='/etc/passwd', _async=False)",
        "NotPlaceable",
        ["/etc/passwd", "not in the tree", "/ks"],
    ),
    "a locality that leaves the tree": (
        "c.call(abs, 1, _locality='../etc/passwd', _async=False)",
        "NotPlaceable",
        ["etc/passwd", "not in the tree"],
    ),
    "retries that are no number": ("c.call(abs, 1, _retries=-1)", "TypeError", ["_retries", "-1"]),
    "a threshold that is none": ("c.call(abs, 1, _data_threshold='1M')", "TypeError", ["_data_threshold", "'1M'"]),
    "a node that is no name": ("c.call(abs, 1, _node=3)", "TypeError", ["_node", "3"]),
    "a function that does not pickle": (
        "import threading; lock = threading.Lock(); c.call(lambda: lock)",
        "NotSerializable",
        ["<lambda>", "lock"],
    ),
    "an argument that does not pickle": (
        "import threading; c.call(len, threading.Lock())",
        "NotSerializable",
        ["argument 1", "len", "lock"],
    ),
    "an argument deep inside": (
        "import threading; c.call(len, x={'a': [threading.Lock()]})",
        "NotSerializable",
        ["argument 'x'", "lock"],
    ),
    "a result that does not pickle": (
        "c.call(lambda: (n for n in [1]), _async=False)",
        "NotSerializable",
        ["generator", "<lambda>"],
    ),
    "a result that is an open file": (
        "c.call(open, '/etc/passwd', _async=False)",
        "NotSerializable",
        ["open file", "/etc/passwd", "path", "content"],
    ),
    "an argument that is an open file": (
        "c.call(len, [open('/etc/passwd', 'rb')])",
        "NotSerializable",
        ["argument 1", "/etc/passwd", "path"],
    ),
    "a job for an argument": (
        "c.call(abs, c.call(abs, 1))",
        "NotSerializable",
        ["argument 1", "c.result(job)", "_keep"],
    ),
    "a client for an argument": ("c.call(len, [c])", "NotSerializable", ["argument 1", "kitchensink.client()"]),
    "a client of a number": ("Client(42)", "TypeError", ["42", "ks://HOST:PORT", "socket"]),
    "a profile of a job that is none": ("c.profile([c.call(abs, 1), 'x'])", "JobUnknown", ["'x'"]),
    "a profile of a job that never was": ("c.profile(['1' * 32])", "JobUnknown", ["1" * 32]),
    "a call that closes what it did not open": (
        "c.call(os.closerange, 0, 100, _async=False)",
        "WorkerCrashed",
        ["closerange", "socket", "host"],
    ),
    "a path that is not there": (
        "c.call(open, '/ks/no/such', _async=False)",
        "FileNotFoundError",
        ["/ks/no/such"],
    ),
    "a time to wait that is over": (
        "c.result(c.call(time.sleep, 0.5), timeout=-1)",
        "TimeoutError",
        ["has not ended"],
    ),
    "a time to connect that is none": ("Client('ks://host1:6323', timeout=-1)", "TypeError", ["timeout", "-1"]),
    "a port that is none": ("Client('ks://host1:99999')", "ConnectionFailed", ["ks://host1:99999", "ks://HOST:PORT"]),
    "a url without a host": ("Client('ks://:6323')", "ConnectionFailed", ["ks://HOST:PORT"]),
    "a url of another kind": ("Client('ftp://host1')", "ConnectionFailed", ["ftp://host1", "ks://HOST:PORT"]),
    "a url that is a name": ("Client('host1')", "ConnectionFailed", ["host1", "ks://HOST:PORT"]),
    "a socket that is none": ("Client('/etc/passwd')", "ConnectionFailed", ["/etc/passwd"]),
    "a key that is not there": (
        "Client('ks://host1:6323', key='/no/key')",
        "ConnectionFailed",
        ["/no/key", "ks key client"],
    ),
    "a key that is none": ("Client('ks://host1:6323', key='/etc/passwd')", "ConnectionFailed", ["/etc/passwd"]),
    "a queue that nobody serves": ("c.call(abs, 1, _queue_name='gpu', _async=False)", "NotPlaceable", ["gpu"]),
    "a queue of a node that is not there": (
        "c.call(abs, 1, _queue_name='default|host9', _async=False)",
        "NotPlaceable",
        ["host9"],
    ),
    "a node that is not there": ("c.call(abs, 1, _node='host9', _async=False)", "NotPlaceable", ["host9"]),
    "an interpreter that is not there": ("c.call(abs, 1, _python='2.7', _async=False)", "NotPlaceable", ["2.7"]),
    "a queue's name that is none": ("c.call(abs, 1, _queue_name='a b', _async=False)", "NotPlaceable", ["a b"]),
    "no function": ("c.call(5)", "TypeError", ["function"]),
    "a format that is not registered": ("Client(fmt='yaml')", "TypeError", ["yaml", "register_serialization"]),
    "an argument for which raw is no format": ("Client(fmt='raw').call(len, 'text')", "NotSerializable", ["bytes"]),
    "an argument without a JSON form": ("Client(fmt='json').call(len, {1, 2})", "NotSerializable", ["argument 1"]),
    "a name that is not registered": ("c.call('nothing', _async=False)", "NotRegistered", ["default:nothing"]),
    "a module that is not there": ("c.call('nomodule:f', _async=False)", "ModuleNotFoundError", ["nomodule"]),
    "a name of a module that it has not": ("c.call('math:nothing', _async=False)", "AttributeError", ["nothing"]),
    "a job that never was": ("c.result('0' * 32)", "JobUnknown", ["0" * 32]),
    "a node's url that is none": ("c.node_of_url('http://host9:6323/')", "NotPlaceable", ["host9", "host1"]),
    "a data url outside of the tree": ("du('../etc/passwd')", "ValueError", ["../etc/passwd"]),
    "a data url that is not there": ("c.data_info(['no/such/file'])", "FileNotFoundError", ["no/such/file"]),
    "remote data that is not there": ("du('no/such/file').obj()", "FileNotFoundError", ["no/such/file"]),
    "remote data of two things": ("RemoteData(obj=1, raw=b'')", "TypeError", ["one of"]),
    "a pool's key that is not there": ("Pool().get('nothing')", "KeyError", ["nothing"]),
    "a pool's arguments that are none": ("Pool().apply(abs, 5)", "TypeError", ["args=(x,)"]),
    "an executor that is over": (
        "pool = Executor(c); pool.shutdown(); pool.submit(abs, 1)",
        "RuntimeError",
        ["after shutdown"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_typed_error_at_once(trio, case):
    code, kind, words = CASES[case]
    script = f"""
        from kitchensink import Executor, Pool, RemoteData, du
        began = time.monotonic()
        try:
            {code}
        except Exception as error:
            reply([type(error).__name__, str(error), time.monotonic() - began])
    """
    name, text, seconds = trio[1].ask(script)
    assert kind in (name, *(["KeyLost"] if kind == "KeyError" else [])), text
    for word in words:
        assert word in text
    assert seconds < 3


def test_nothing_is_run_again_that_the_users_code_raised(trio):
    code = """
        def f(path):
            with open(path, "a") as file:
                file.write("x")
            raise LookupError("mine")
        open("/ks/times-run", "w").close()
        try:
            c.call(f, "/ks/times-run", _retries=5, _async=False)
        except LookupError as error:
            reply([str(error), os.path.getsize("/ks/times-run")])
    """
    assert trio[1].ask(code) == ["mine", 1]
