"""A conversation with a node: requests, their replies, and the updates of jobs.

Internal. Nobody but the threads that wait reads the connection: one of them, the leader, receives and hands out what
came until what it waits for is there, then the next waiting thread leads. So a reply reaches its thread without a
change of threads. Where jobs go on and nobody waits, a thread of the session's own leads, after a moment's grace, and
gives way to the first that waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable
from typing import Any, Callable

from . import blobs, errors, kept, output, profiling
from .connecting import AGAIN_ALONE_SECONDS, AGAIN_SECONDS, HELLO_SECONDS, Opened, greeting
from .discovery import Address
from .job import Job
from .outcome import Outcome, failed_here
from .protocol import VERSION, Buffer, Malformed, pack, unpack, variant

_log = logging.getLogger("kitchensink")

REPLY_SECONDS = 30.0
"""How long a node may take to answer a question."""
ACCEPT_SECONDS = 60.0
"""How long it may take to record a batch of calls."""
CANCEL_ONE_SECONDS = 0.001
"""How much longer it may take for each job that it is to cancel; a busy machine takes a tenth of it."""
CANCEL_ALL_SECONDS = 1_000.0
"""How long it may take to cancel all jobs: there may be a million."""
_ATTACHED_MAX = 1_000
"""Jobs that are asked for at a time after a connection broke."""
_GRACE_SECONDS = 0.005
"""How long nobody must have led before the session's own thread does."""
_RESTLESS_SECONDS = 0.1
"""How long that thread looks again by itself after the last sign of use; later it has to be woken."""
_SIGNAL_SECONDS = 0.1
"""How long the main thread waits for its turn before it looks for signals: one that came just before the wait, or to
another thread of the process, does not end it."""


Again = Callable[[Address, "list[str]", float], "Opened | None"]
"""Makes a connection again: to this address or one of these peers, by then."""


class Reply:
    """An answer that is to come."""

    __slots__ = ("body", "finished", "jobs", "kind", "progress", "request")

    def __init__(self, jobs: Iterable[str] = (), progress: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.finished = False
        self.kind = ""
        self.body: Any = None
        self.jobs = tuple(jobs)
        """These fail with it."""
        self.progress = progress
        self.request: tuple[bytes, list[Buffer] | None] | None = None
        """What is sent again where the connection breaks before the answer; None: it fails then."""


class Hello:
    """Who the node is."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.version: int = body["version"]
        self.node: str = body["node"]
        self.node_id: str = body["node_id"]
        self.mountpoint: bytes = bytes(body["mountpoint"])
        self.datadir: bytes = bytes(body["datadir"])
        self.program: str = body["program"]
        self.peers: list[str] = body.get("peers", [])
        memory = body.get("memory")
        self.memory: str | None = None if memory is None else os.fsdecode(bytes(memory))


class Session:
    """One connection to a node, for any number of threads."""

    def __init__(self, connection: Any, address: Address, again: Again | None = None) -> None:
        self.address = str(address)
        self._route = address
        self._again = again
        """Makes another connection when this one breaks."""
        self._broken: tuple[float, str] | None = None
        """Since when it is broken, and how; another is looked for."""
        self.sent_functions: set[bytes] = set()
        """Hashes of the functions that this node has from us."""
        self.submitting = threading.Lock()
        """Held while a submission is put together and sent: a function goes before the calls that name it."""
        self.blobs: blobs.Blobs | None = None
        """Where large arguments are put, where the node is on this machine."""
        self.keeper: kept.Keeper | None = None
        """Where values that are to be kept are written, where the node is on this machine."""
        self.client: Any = None
        """A weak reference to the client whose session this is."""
        self._connection = connection
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._last_request = 0
        self._replies: dict[int, Reply] = {}
        self._jobs: dict[str, Job] = {}
        self._end: errors.KitchenSinkError | None = None
        self._leader: int | None = None
        self._followers: dict[Any, list[threading.Lock]] = {}
        self._background: _Background | None = None
        self._used = 0.0
        self.retired = False
        self._inbox: list[list[bytearray]] = []
        self.hello = self._greet()
        self._find_blobs()

    # Conversation

    def _greet(self) -> Hello:
        try:
            body = self.ask(greeting(), "Hello", HELLO_SECONDS)
        except errors.KitchenSinkError as error:
            self.close()
            raise errors.ConnectionFailed(f"{self.address}: did not greet back: {error}") from None
        except BaseException:
            self.close()
            raise
        if body["version"] != VERSION:
            self.close()
            raise errors.ConnectionFailed(
                f"{self.address}: the node speaks version {body['version']} of the protocol, "
                f"this package version {VERSION}; install the same release on both"
            )
        return Hello(body)

    def _find_blobs(self) -> None:
        """Where the node is on this machine, large arguments are put where it keeps them."""
        socket = self._route.socket
        state = None if socket is None else os.path.dirname(socket)
        self.blobs = None if state is None else blobs.below(state)
        self.keeper = None if state is None else kept.keeper(self.hello.memory, state)

    def ask(
        self,
        body: Any,
        expected: str,
        seconds: float | None = REPLY_SECONDS,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        """One question and its answer. Errors: what the node says, ConnectionLost, TimeoutError."""
        reply = Reply(progress=progress)
        self.send(body, reply)
        return self.answer(reply, expected, seconds)

    def answer(self, reply: Reply, expected: str, seconds: float | None) -> Any:
        """Waits for the reply to a request that was sent."""
        deadline = None if seconds is None else time.monotonic() + seconds
        if not self.wait(reply, deadline):
            raise TimeoutError(f"{self.address}: no answer within {seconds} s")
        if reply.kind == "Failed":
            error = reply.body
            raise error if isinstance(error, BaseException) else errors.from_failure(error)
        if reply.kind != expected:
            raise errors.ConnectionLost(f"{self.address}: answered {reply.kind} where {expected} was due")
        return reply.body

    def send(self, body: Any, reply: Reply, segments: list[Buffer] | None = None) -> int:
        """Sends a request whose body is still to be packed."""
        number = self._expect(reply)
        self._transmit(number, pack({"request": number, "body": body}), segments)
        return number

    def send_packed(self, packed_body: bytes, reply: Reply, segments: list[Buffer]) -> int:
        """Sends a request whose body is packed already; where the connection breaks before the answer, it is sent again
        on the next one."""
        number = self._expect(reply)
        header = b"\x82\xa7request" + pack(number) + b"\xa4body" + packed_body
        if self._again is not None:
            reply.request = (header, segments)
        self._transmit(number, header, segments)
        return number

    def _expect(self, reply: Reply) -> int:
        with self._lock:
            if self._end is not None:
                raise self._ended()
            self._last_request += 1
            self._replies[self._last_request] = reply
            return self._last_request

    def _transmit(self, number: int, header: bytes, segments: list[Buffer] | None) -> None:
        self._used = time.monotonic()
        connection = self._connection
        try:
            connection.send(header, segments)
        except OSError as error:
            if connection is not self._connection:  # there is another by now
                return self._transmit(number, header, segments)
            reply = self._replies.get(number)
            if reply is not None and reply.request is not None and self._end is None:
                # Who leads sees the same, and sends it again.
                self._break(connection, f"{self.address}: {error}")
                return
            self._replies.pop(number, None)
            self._break(connection, f"{self.address}: {error}")
            raise self._ended() from error
        except BaseException:
            self._replies.pop(number, None)
            raise

    def _ended(self) -> errors.KitchenSinkError:
        return errors.ConnectionLost(str(self._end or f"{self.address}: the connection has ended"))

    # Jobs

    def adopt(self, jobs: Iterable[Job]) -> None:
        """These jobs' updates will come on this connection."""
        with self._lock:
            if self._end is not None:
                raise self._ended()
            self._jobs.update((job.id, job) for job in jobs)

    def forget(self, jobs: Iterable[Job]) -> None:
        """These were not submitted after all."""
        for job in jobs:
            self._jobs.pop(job.id, None)

    def job(self, id: str) -> Job | None:
        """The job of this id, while it goes on."""
        return self._jobs.get(id)

    def cancel(self, jobs: list[str], all: bool = False, seconds: float | None = None) -> list[str]:
        """Cancels jobs; returns the ids of those that were still going. It may take `seconds`, by default as long as so
        many take."""
        if seconds is None:
            seconds = CANCEL_ALL_SECONDS if all else REPLY_SECONDS + len(jobs) * CANCEL_ONE_SECONDS
        body = self.ask({"Cancel": {"jobs": jobs, "all": all}}, "Cancelled", seconds)
        return list(body["jobs"])

    def cancel_soon(self, jobs: list[str]) -> None:
        """Cancels jobs without waiting for the node's word."""
        self.send({"Cancel": {"jobs": jobs, "all": False}}, Reply())
        self.watch()  # somebody has to take the answer

    def watch(self) -> None:
        """Jobs go on and nobody waits: what they print is to be shown as it comes all the same."""
        self._used = time.monotonic()
        background = self._background
        if background is None:
            with self._lock:
                if self._background is None and self._end is None:
                    self._background = _Background(self)
        elif background.asleep:
            background.awake.set()

    @property
    def needed(self) -> set[str]:
        """Ids of the kept values that jobs which go on use."""
        return {handle.id for job in list(self._jobs.values()) for handle in job._uses}

    @property
    def busy(self) -> bool:
        """Whether anything is still to come."""
        return bool(self._jobs or self._replies)

    # Waiting

    def wait(self, target: Job | Reply, deadline: float | None = None) -> bool:
        """Waits until `target` has ended; False: the deadline (of `time.monotonic`) came first."""
        if target.finished:
            return True
        if os.getpid() != self._pid:
            raise errors.ConnectionLost(f"{self.address}: this belongs to the process that forked this one")
        try:
            while not target.finished:
                turn = self._line_up(target)
                if turn is None:
                    self._lead(target, deadline)
                elif not self._await_turn(target, turn, deadline):
                    break
                if deadline is not None and time.monotonic() >= deadline:
                    break
        finally:
            _surely(self._step_down)
        return target.finished

    def _line_up(self, target: Job | Reply) -> threading.Lock | None:
        """Makes this thread the leader (None), or gives it a lock that is released when it should look again."""
        with self._lock:
            turn = threading.Lock()
            if target.finished:
                return turn
            if self._end is not None:
                raise self._ended()
            if self._leader in (None, threading.get_ident()):
                self._leader = threading.get_ident()
                self._used = time.monotonic()
                return None
            turn.acquire()
            self._followers.setdefault(target, []).append(turn)
            if self._background is not None and self._background.ident == self._leader:
                self._connection.wake()
            return turn

    def _await_turn(self, target: Job | Reply, turn: threading.Lock, deadline: float | None) -> bool:
        try:
            return _acquire(turn, deadline)
        finally:
            _surely(lambda: self._leave_line(target, turn))

    def _leave_line(self, target: Job | Reply, turn: threading.Lock) -> None:
        with self._lock:
            turns = self._followers.get(target, [])
            if turn in turns:  # not called: late, or Ctrl-C
                turns.remove(turn)
                if not turns:
                    del self._followers[target]

    def _step_down(self) -> None:
        """Where nobody leads after this, the next that waits does."""
        with self._lock:
            if self._leader == threading.get_ident():
                self._leader = None
                self._used = time.monotonic()
            if self._leader is None and self._followers:
                first = next(iter(self._followers))
                for turn in self._followers[first]:
                    with contextlib.suppress(RuntimeError):  # released already, before Ctrl-C came between
                        turn.release()
                del self._followers[first]
            elif self._leader is None and (self._jobs or self.retired) and self._background and self._background.asleep:
                self._background.awake.set()

    def _lead(self, target: Job | Reply, deadline: float | None) -> None:
        """Receives until the target has ended, the deadline has come or the connection is lost."""
        while not target.finished and self._end is None:
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                return
            self._receive(timeout)

    def lead_in_background(self) -> None:
        """What the session's own thread does: leads until nothing is to come, or somebody waits."""
        with self._lock:
            if self._leader is not None or self._end is not None or self._followers:
                return
            self._leader = threading.get_ident()
        try:
            while self.busy and not self._followers and self._end is None:
                self._receive(None)
        finally:
            self._step_down()  # signals' exceptions never come to this thread

    def _receive(self, timeout: float | None) -> None:
        """Waits for what comes next and hands it out. Nothing that came is lost to an exception: it stays in the inbox
        for the next leader, who at worst hands it out a second time."""
        inbox = self._inbox
        if self._broken is not None and not inbox:
            return self._revive(timeout)
        connection = self._connection
        try:
            if not inbox and not connection.recv_to(inbox, timeout):
                self._break(connection, f"{self.address}: the node closed the connection")
        except TimeoutError:
            return  # late, or woken by a thread that saw the background lead a moment ago
        except OSError as error:
            self._break(connection, f"{self.address}: {error}")
        while inbox:
            self._hand_out(inbox[0])
            del inbox[0]

    def rest_seconds(self) -> float:
        """For the session's own thread: since when the same state lasts, somebody leading or nobody."""
        return time.monotonic() - self._used

    @property
    def led(self) -> bool:
        """Whether some thread receives."""
        return self._leader is not None

    # What comes

    def _hand_out(self, frame: list[bytearray]) -> None:
        try:
            kind, body = variant(unpack(frame[0]))
            if kind == "Update":
                self._update(body, frame)
            elif kind == "Reply":
                self._reply(body)
            elif kind == "Progress":
                self._progress(body)
            else:
                raise Malformed(f"an unknown message: {kind}")
        except (Malformed, KeyError, TypeError, IndexError) as error:
            self._lose(f"{self.address}: what the node says is not understood: {error!r}")

    def _update(self, body: dict[str, Any], frame: list[bytearray]) -> None:
        kind, update = variant(body["update"])
        job = self._jobs.get(body["job"])
        if job is None:
            return
        if kind == "Ended":
            self._flush_output(job)
            outcome, what = variant(update["outcome"])
            job._end(Outcome(outcome, what, frame if len(frame) > 1 else []), update["report"])
            self._jobs.pop(job.id, None)
            self._tell(job)
        elif kind == "Started":
            job._started(update["node"], update["pid"])
        elif kind == "Output":
            self._show(job, update["stream"], update["data"])
        elif kind == "Log" and update["logger"] == profiling.LOGGER:
            profiling.take_mark(job, update["message"])
        elif kind == "Log":
            output.log(job.id, update)

    def _show(self, job: Job, stream: int, data: bytes) -> None:
        if job._decoders is None:
            job._decoders = {}
        decoder = job._decoders.get(stream)
        if decoder is None:
            decoder = job._decoders[stream] = output.decoder()
        output.write(stream, decoder.decode(data))

    def _flush_output(self, job: Job) -> None:
        for stream, decoder in (job._decoders or {}).items():
            output.write(stream, decoder.decode(b"", True))

    def _reply(self, body: dict[str, Any]) -> None:
        reply = self._replies.get(body["request"])
        if reply is None:
            return
        reply.kind, reply.body = variant(body["answer"])
        if reply.kind == "Failed" and reply.jobs:
            self._fail_jobs(reply.jobs, lambda: errors.from_failure(reply.body))
        reply.finished = True
        self._replies.pop(body["request"], None)
        self._tell(reply)

    def _progress(self, body: dict[str, Any]) -> None:
        reply = self._replies.get(body["request"])
        if reply is not None and reply.progress is not None:
            reply.progress(body)

    def _fail_jobs(self, ids: Iterable[str], error: Callable[[], Exception]) -> None:
        for id in ids:
            job = self._jobs.get(id)
            if job is not None:
                job._end(failed_here(error()), None)
                self._jobs.pop(id, None)
                self._tell(job)

    def _tell(self, target: Job | Reply) -> None:
        with self._lock:
            for turn in self._followers.pop(target, ()):
                turn.release()

    # Broken connections

    def _break(self, connection: Any, why: str) -> None:
        """The connection broke. Where jobs go on, who leads next looks for another; else this is the end."""
        with self._lock:
            if connection is not self._connection or self._broken is not None or self._end is not None:
                return
            if self._again is None or not self._jobs:
                waiting = None
            else:
                self._broken = (time.monotonic(), why)
                waiting = [(n, reply) for n, reply in self._replies.items() if reply.request is None]
                for number, _ in waiting:
                    del self._replies[number]
        if waiting is None:
            return self._lose(why)
        connection.close()
        for _, reply in waiting:
            reply.kind, reply.body, reply.finished = "Failed", errors.ConnectionLost(why), True
            self._tell(reply)

    def _revive(self, timeout: float | None) -> None:
        """Looks for another connection, for no longer than `timeout`."""
        broken, again = self._broken, self._again
        if broken is None or again is None:
            return
        since, why = broken
        until = since + (AGAIN_SECONDS if self.hello.peers else AGAIN_ALONE_SECONDS)
        now = time.monotonic()
        opened = again(self._route, self.hello.peers, until if timeout is None else min(until, now + timeout))
        if opened is not None:
            self._resume(opened)
        elif time.monotonic() >= until:
            self._lose(f"{why}; no node could be reached again")

    def _resume(self, opened: Opened) -> None:
        """Goes on with another connection: what was not accepted is sent again (a job that was recorded all the same is
        known by its id), and the ends of the others are asked for."""
        with self._lock:
            if self._end is not None:
                opened.connection.close()
                return
            self._connection, self._route = opened.connection, opened.address
            self.address, self.hello = str(opened.address), Hello(opened.hello)
            self.sent_functions = set()
            self._find_blobs()
            again = [reply.request for reply in self._replies.values() if reply.request is not None]
            sent = {id for reply in self._replies.values() for id in reply.jobs}
            accepted = [id for id in self._jobs if id not in sent]
            for start in range(0, len(accepted), _ATTACHED_MAX):
                batch = accepted[start : start + _ATTACHED_MAX]
                self._last_request += 1
                reply = self._replies[self._last_request] = Reply(batch)
                body = {"request": self._last_request, "body": {"Attach": {"jobs": batch}}}
                reply.request = (pack(body), None)
                again.append(reply.request)
            self._broken = None
        _log.info("%s: connected again, to node %s", self.address, self.hello.node)
        for header, segments in again:
            try:
                opened.connection.send(header, segments)
            except OSError as error:
                return self._break(opened.connection, f"{self.address}: {error}")

    # The end

    def _lose(self, why: str) -> None:
        """The connection has ended: everything that waits for it hears so."""
        with self._lock:
            if self._end is None:
                self._end = errors.ConnectionLost(why)
            replies, self._replies = list(self._replies.values()), {}
        self._connection.close()
        for reply in replies:
            reply.kind, reply.body, reply.finished = "Failed", errors.ConnectionLost(why), True
            self._tell(reply)
        self._fail_jobs(
            list(self._jobs),
            lambda: errors.ConnectionLost(f"{why}; the job may go on, client.result(job.id) asks for it again"),
        )
        with self._lock:
            for turns in self._followers.values():
                for turn in turns:
                    turn.release()
            self._followers.clear()

    def retire(self) -> None:
        """Nobody will ask for anything any more, but jobs whose results somebody holds may go on: the session's own
        thread ends it after them. (Without that thread the connection ends with the last that refers to it.) Called
        while objects are collected: takes no lock."""
        self.retired = True
        background = self._background
        if background is not None and self._pid == os.getpid():
            background.awake.set()

    @property
    def ended(self) -> bool:
        """Whether the connection has ended."""
        return self._end is not None or self._pid != os.getpid()

    def close(self) -> None:
        """Ends the connection. Jobs that were accepted go on."""
        if self._pid != os.getpid():
            return  # the parent's
        self._lose(f"{self.address}: the client was closed")
        background = self._background
        if background is not None:
            background.awake.set()
            if background.ident != threading.get_ident():
                with contextlib.suppress(RuntimeError):
                    background.thread.join(5)


def _acquire(turn: threading.Lock, deadline: float | None) -> bool:
    """Waits for a turn; False: the deadline came first. In the main thread it ends for signals."""
    in_slices = threading.current_thread() is threading.main_thread()
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not in_slices:
            return turn.acquire(timeout=-1 if left is None else left)
        if turn.acquire(timeout=_SIGNAL_SECONDS if left is None else min(left, _SIGNAL_SECONDS)):
            return True
        if left is not None and left <= _SIGNAL_SECONDS:
            return False


def _surely(step: Callable[[], None]) -> None:
    """Does what must be done though Ctrl-C comes before it, or into it. `step` may be done twice."""
    try:
        step()
    except BaseException:
        step()
        raise


class _Background:
    """The session's own thread. It ends with the session."""

    def __init__(self, session: Session) -> None:
        self.awake = threading.Event()
        self.asleep = False
        self._session = session
        self.thread = threading.Thread(target=self._run, name="kitchensink", daemon=True)
        self.thread.start()

    @property
    def ident(self) -> int | None:
        """The thread's."""
        return self.thread.ident

    def _run(self) -> None:
        session = self._session
        while not session.ended:
            if session.retired and not session.busy:
                session.close()
                return
            rest = session.rest_seconds()
            if session.busy and not session.led and rest >= _GRACE_SECONDS:
                try:
                    session.lead_in_background()
                except Exception:
                    _log.exception("%s: receiving in the background failed", session.address)
            elif rest < _RESTLESS_SECONDS:
                time.sleep(_GRACE_SECONDS)
            else:
                self._sleep()

    def _sleep(self) -> None:
        """Until there may be something to do: `watch` and the end of another's lead say so."""
        self.asleep = True
        session = self._session
        if (session.led or not session.busy) and not session.ended:
            self.awake.wait()
        self.asleep = False
        self.awake.clear()
