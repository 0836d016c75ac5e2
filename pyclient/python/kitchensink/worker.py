"""A worker: a process that runs calls, one at a time, for the node that started it. `python -m kitchensink.worker --fd
N [--fault-fd M]`.

Descriptor N is a socket to the node: `Run` and `Exit` come in, `Ready`, `Log` and `Ended` go out. What a call prints
goes to descriptors 1 and 2, which the node reads; it is flushed before the call is reported as ended. On descriptor M
the Python stacks are written when the process crashes.

What always holds: `Ended` is sent once for each `Run`, whatever the call did, unless the process died. SIGINT while a
call runs ends the call as cancelled; between calls it does nothing.

A call's own threads that go on after it are not waited for: what they print later may show up under the next call, and
ends with the worker.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import logging
import os
import signal
import stat
import sys
import time
import traceback
import types
from types import FrameType, TracebackType
from typing import Any, Callable, NamedTuple, NoReturn

from . import __about__, _native, blobs, kept, own_modules, paths, rpc, serialization, serialize, waiting
from .errors import KitchenSinkError, NotRegistered, NotSerializable, PayloadError
from .outcome import CAUSES_MAX
from .protocol import Buffer, pack, place_payload, unpack, variant
from .workplace import Workplace

FUNCTIONS_MAX = 4_096
"""Functions that are kept."""
CUT_OFF_EXIT = 117
"""What the process ends with where a call has closed its socket to the node (see the node's `worker.rs`)."""
HEARD = b"\x06"
"""Written to the pipe for stacks when SIGINT has come through to the interpreter: its call has time to clean up."""
LOG_MESSAGE_MAX = 64 * 1024
"""Characters of one log message that travel."""


class FunctionMissing(KitchenSinkError):
    """The node takes it that this worker has a function which it has not, or not any more."""


class Run(NamedTuple):
    """A call to run."""

    job: str
    name: str
    function: Any
    code: Any
    format: str
    args: Any
    mountpoint_from: bytes | None
    mountpoint_to: bytes
    intermediate_results: bool
    kept: Any = ()
    keep: dict[str, Any] | None = None
    priority: int = 0


class Functions:
    """The functions that this worker has, by the hash of their code; the least used go first.

    The node sends the code of each once. What always holds: code that came is kept until it has become a function, also
    where its call was cancelled, or its import raised, on the way.
    """

    def __init__(self, kept_max: int = FUNCTIONS_MAX, registered_only: bool = False) -> None:
        self._registered_only = registered_only
        self._kept: collections.OrderedDict[bytes, Callable[..., Any]] = collections.OrderedDict()
        self._codes: collections.OrderedDict[bytes, Buffer] = collections.OrderedDict()
        self._kept_max = kept_max

    def take(self, reference: Any, code: Any, frame: list[bytearray]) -> None:
        """Keeps the code that came with a call. Not to be interrupted."""
        if code is None or self._registered_only:
            return
        self._codes[variant(reference)[1]] = serialize.open_part(code, frame, first=True)
        while len(self._codes) > self._kept_max:
            self._codes.popitem(last=False)

    def get(self, reference: Any) -> Callable[..., Any]:
        """The function of a `FunctionRef`. Errors: FunctionMissing, NotRegistered, NotSerializable, and what its import
        raises."""
        kind, body = variant(reference)
        if kind == "Name":
            return rpc.resolve(body, self._registered_only)
        if self._registered_only:
            raise NotRegistered("this node runs registered functions only")
        function = self._kept.get(body)
        if function is None:
            code = self._codes.get(body)
            if code is None:
                raise FunctionMissing("this worker has not got the function's code")
            function = serialize.decode_function(code)
            self._kept[body] = function
            self._codes.pop(body, None)
            while len(self._kept) > self._kept_max:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(body)
        return function


class LogHandler(logging.Handler):
    """Sends what a call logs to its caller."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        """One record; its message and its traceback as text."""
        run = self._worker.current
        if run is None or not run.intermediate_results:
            return
        try:
            message = self.format(record)[:LOG_MESSAGE_MAX]
            log = {
                "job": run.job,
                "level": record.levelno,
                "logger": record.name,
                "message": message,
                "time": record.created,
            }
            self._worker.connection.send(pack({"Log": log}))
        except Exception:
            self.handleError(record)


class Times:
    """When a call began, ran, and had run: nanoseconds."""

    __slots__ = ("began", "cpu", "ended", "started")

    def __init__(self) -> None:
        self.began = time.perf_counter_ns()
        self.started = self.ended = self.cpu = 0

    def starts(self) -> None:
        """The function starts."""
        self.cpu = time.process_time_ns()
        self.started = time.perf_counter_ns()

    def ends(self) -> None:
        """It has ended, somehow."""
        self.ended = time.perf_counter_ns()
        self.cpu = time.process_time_ns() - self.cpu

    def message(self, pickled_ns: int) -> dict[str, int]:
        """What is told of it, once its outcome has been made."""
        if not self.ended:
            return {"run_us": 0, "cpu_us": 0, "unpickling_us": (pickled_ns - self.began) // 1000, "pickling_us": 0}
        return {
            "run_us": (self.ended - self.started) // 1000,
            "cpu_us": self.cpu // 1000,
            "unpickling_us": (self.started - self.began) // 1000,
            "pickling_us": (pickled_ns - self.ended) // 1000,
        }


class Worker:
    """The loop, and what it knows."""

    def __init__(self, connection: Any, fault_fd: int | None = None) -> None:
        self.connection = connection
        self._fault_fd = fault_fd
        self._pid = os.getpid()
        self.current: Run | None = None
        self._functions = Functions(registered_only=bool(os.environ.get("KS_REGISTERED_ONLY")))
        state = os.path.join(os.environ.get("KS_DATADIR", "/nonexistent"), ".ks")
        self._blobs = blobs.below(state)
        self._keeper = kept.keeper(os.environ.get("KS_MEMORY"), state)
        self._kept: dict[str, Any] | None = None
        self._times = Times()
        self._interruptible = False
        self._interrupted = False
        signal.signal(signal.SIGINT, self._on_interrupt)
        self._workplace = Workplace()

    def serve(self) -> None:
        """Runs calls until the node says `Exit` or is gone."""
        python = ".".join(map(str, sys.version_info[:3]))
        self._tell({"Ready": {"pid": os.getpid(), "python": python, "package": __about__.version}})
        while True:
            frame = self.connection.recv()
            if frame is None:
                return
            kind, body = variant(unpack(frame[0]))
            if kind == "Forget":
                kept.let_go()
                continue
            if kind != "Run":
                return
            self._run(Run(**body), frame)

    def _tell(self, message: Any, segments: list[Buffer] | None = None) -> None:
        self.connection.send(pack(message), segments)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interruptible:
            self._interrupted = True
            if self._fault_fd is not None:
                with contextlib.suppress(OSError):
                    os.write(self._fault_fd, HEARD)
            raise KeyboardInterrupt

    def _run(self, run: Run, frame: list[bytearray]) -> None:
        self.current, self._interrupted, self._kept = run, False, None
        self._times = times = Times()
        waiting.runs(run.job, run.priority)
        outcome, segments = self._outcome(run, frame)
        pickled_ns = time.perf_counter_ns()
        self._flush()
        waiting.runs_nothing()
        self.current = None
        ended = {"job": run.job, "outcome": outcome, **times.message(pickled_ns), "kept": self._kept}
        self._tell({"Ended": ended}, segments)

    def _outcome(self, run: Run, frame: list[bytearray]) -> tuple[Any, list[Buffer]]:
        """Runs the call; its outcome and the segments that belong to it."""
        try:
            try:
                try:
                    self._functions.take(run.function, run.code, frame)
                    self._interruptible = True
                    function = self._functions.get(run.function)
                    args, kwargs = self._arguments(run, frame)
                except KitchenSinkError as error:
                    return _failed(type(error).__name__, str(error))
                except Exception as error:
                    return _raised(error)
                try:
                    self._times.starts()
                    value = function(*args, **kwargs)
                    if type(value) is types.CoroutineType:
                        value = _run_to_its_end(value)
                finally:
                    self._interruptible = False
                    self._times.ends()
                    if os.getpid() != self._pid:
                        _end_forked()
            except KeyboardInterrupt as error:
                return _failed("JobCancelled", f"{run.name} was cancelled") if self._interrupted else _raised(error)
            except SystemExit as error:
                return _exited(run, error)
            except BaseException as error:
                if self._interrupted:
                    return _failed("JobCancelled", f"{run.name} was cancelled")
                return _raised(error)
            return self._returned(run, value)
        finally:
            self._interruptible = False

    def _arguments(self, run: Run, frame: list[bytearray]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not serialization.known(run.format):
            rpc.load_modules()  # one of them may register it
        try:
            buffers = serialize.open_payload(run.args, frame)
            if run.kept:
                with kept.Arrived(run.kept, self._keeper):
                    args, kwargs = serialize.decode_call(buffers, run.format)
            else:
                args, kwargs = serialize.decode_call(buffers, run.format)
        except (KeyboardInterrupt, KitchenSinkError):
            raise
        except Exception as error:
            reason = f"the arguments of {run.name} cannot be loaded by Python {sys.version.split()[0]} of this worker"
            raise NotSerializable(f"{reason}: {serialize.describe(error)}") from error
        if run.mountpoint_from is not None and run.mountpoint_from != run.mountpoint_to:
            args = tuple(paths.rewrite(list(args), run.mountpoint_from, run.mountpoint_to))
            kwargs = paths.rewrite(kwargs, run.mountpoint_from, run.mountpoint_to)
        return args, kwargs

    def _returned(self, run: Run, value: Any) -> tuple[Any, list[Buffer]]:
        if self._interrupted:
            return _failed("JobCancelled", f"{run.name} was cancelled")
        try:
            if run.keep is not None:
                value = self._keep(run.keep, value)
            buffers = serialize.encode(value, run.format, type(value) in _PLAIN)
        except PayloadError as error:
            return _failed("PayloadError", f"{run.name}: its result: {error}")
        except Exception as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return _failed(
                "NotSerializable", f"the result of {run.name} (a {kind}) cannot be sent: {serialize.describe(error)}"
            )
        segments: list[Buffer] = []
        if self._blobs is not None:
            buffers = self._blobs.keep(buffers)
        return {"Returned": place_payload(buffers, segments)}, segments

    def _keep(self, keep: dict[str, Any], value: Any) -> kept.RemoteValue:
        """Leaves a result on this node; its handle."""
        if self._keeper is None:
            raise PayloadError("this node has no directory for values that are kept")
        self._kept = self._keeper.put(value)
        return kept.RemoteValue(keep["group"], keep["name"])

    def _flush(self) -> None:
        """All that the call printed is in the pipes after this, Python's output and C code's; so will be the next's."""
        replaced = sys.stdout, sys.stderr
        _flush_both()
        self._workplace.restore()
        if (sys.stdout, sys.stderr) != replaced:
            _flush_both()
        _native.flush_c_streams()


def _end_forked() -> NoReturn:
    """A process that the call forked, and that came out of the call: the answer is its parent's."""
    error = sys.exc_info()[1]
    if error is not None:
        with contextlib.suppress(Exception):
            traceback.print_exception(type(error), error, _users_frames(error.__traceback__))
    _flush_both()
    os._exit(0 if error is None else 1)


def _run_to_its_end(coroutine: Any) -> Any:
    """What an `async def` function returns."""
    import asyncio

    return asyncio.run(coroutine)


def _is_cut_off(descriptor: int) -> bool:
    """Whether a call has closed the socket to the node."""
    try:
        return not stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return True


def _flush_both() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


_PLAIN = frozenset({int, float, bool, str, bytes, type(None), complex})


def _failed(kind: str, message: str, exit_code: int | None = None) -> tuple[Any, list[Buffer]]:
    failure = {"kind": kind, "message": message, "signal": None, "exit_code": exit_code, "stack": None}
    return {"Failed": failure}, []


def _exited(run: Run, error: SystemExit) -> tuple[Any, list[Buffer]]:
    """`sys.exit` in a call: for its caller the same as the end of the process, though this one goes on."""
    code = error.code
    if code is None or isinstance(code, int):
        return _failed("WorkerCrashed", f"{run.name} ended with sys.exit({code or 0})", code or 0)
    return _failed("WorkerCrashed", f"{run.name} ended with sys.exit: {code}", 1)


def _raised(error: BaseException) -> tuple[Any, list[Buffer]]:
    segments: list[Buffer] = []
    body = {
        "exception": _pickled_chain(error, segments),
        "type_name": _type_name(type(error)),
        "message": _text(error),
        "traceback": _traceback(error),
    }
    return {"Raised": body}, segments


def _type_name(kind: type) -> str:
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as reason:  # somebody's own __str__
        return f"(its text cannot be had: {serialize.describe(reason)})"


def _traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the frames of this package that called the function."""
    try:
        return "".join(traceback.format_exception(type(error), error, _users_frames(error.__traceback__)))
    except Exception as reason:
        return f"{_type_name(type(error))} (its traceback cannot be formatted: {serialize.describe(reason)})\n"


def _users_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _pickled_chain(error: BaseException, segments: list[Buffer]) -> Any:
    """The exception and the causes it names, as far as they pickle and unpickle; None where the exception itself does
    not."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(chain) < CAUSES_MAX and not any(current is known for known in chain):
        try:
            again = serialize.decode(serialize.encode(current))
        except Exception:
            break
        if type(again) is not type(current):
            break
        chain.append(current)
        current = current.__cause__
    return place_payload(serialize.encode(chain), segments) if chain else None


def _arrange(fault_fd: int | None) -> None:
    """Makes this process fit to run calls."""
    if fault_fd is not None:
        os.set_inheritable(fault_fd, False)
        faulthandler.enable(fault_fd)
    for stream in (sys.stdout, sys.stderr):
        # Lines go whole, whatever PYTHONUNBUFFERED says: not the text, and then its end.
        stream.reconfigure(line_buffering=True, write_through=False, errors="backslashreplace")  # type: ignore[union-attr]
    own_modules.travel_by_name()
    sys.argv = ["kitchensink-worker"]


def main() -> None:
    """The worker's process."""
    parser = argparse.ArgumentParser(
        prog="python -m kitchensink.worker", description="Runs calls for the node that started it."
    )
    parser.add_argument("--fd", type=int, required=True, help="the socket to the node")
    parser.add_argument("--fault-fd", type=int, help="where stacks are written when the process crashes")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _arrange(arguments.fault_fd)
    worker = Worker(_native.adopt(arguments.fd), arguments.fault_fd)
    root = logging.getLogger()
    root.setLevel(os.environ.get("KS_WORKER_LOG_LEVEL", "INFO").upper())
    root.addHandler(LogHandler(worker))
    try:
        worker.serve()
    except OSError:  # the node is gone: so are we
        if _is_cut_off(arguments.fd):
            os._exit(CUT_OFF_EXIT)


if __name__ == "__main__":
    main()
