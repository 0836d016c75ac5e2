"""A node for tests: it speaks the protocol on a unix socket and runs the package's real workers, but knows no tree and
no peers.

Its framing is written anew here (`struct`, `socket`), so that it checks the native one.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import msgpack

WAIT_SECONDS = 20


def read_exactly(stream, count):
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        got = stream.recv_into(view[have:])
        if got == 0:
            raise EOFError
        have += got
    return data


def read_frame(stream):
    (count,) = struct.unpack("<I", read_exactly(stream, 4))
    lengths = struct.unpack(f"<{count}Q", read_exactly(stream, 8 * count))
    return [read_exactly(stream, length) for length in lengths]


def write_frame(stream, message, segments=()):
    pieces = [msgpack.packb(message), *segments]
    head = struct.pack(f"<I{len(pieces)}Q", len(pieces), *(len(piece) for piece in pieces))
    stream.sendall(head + pieces[0])
    for piece in pieces[1:]:
        stream.sendall(piece)


def variant(message):
    if isinstance(message, str):
        return message, None
    [(name, body)] = message.items()
    return name, body


def report(pid, run_us=0, queued_us=0, unpickling_us=0, pickling_us=0):
    return {
        "node": "fake",
        "pid": pid,
        "why": "it is the only one",
        "costs": [["fake", 0]],
        "queued_us": queued_us,
        "run_us": run_us,
        "cpu_us": 0,
        "bytes_local": 7,
        "bytes_fetched": 0,
        "files": [],
        "phases": [0, 0, unpickling_us, 0, pickling_us],
    }


class Submitted:
    """A call that came, with the segments of its frame and the session to tell."""

    def __init__(self, call, frame, session):
        self.call, self.frame, self.session = call, frame, session
        self.cancelled = False

    def parts(self, payload, base):
        """Its parts, placed anew in a frame whose segments begin at `base`."""
        placed, segments = [], []
        for part in payload["parts"]:
            kind, body = variant(part)
            if kind == "Segment":
                segments.append(self.frame[body])
                part = {"Segment": base + len(segments)}
            placed.append(part)
        return {"parts": placed}, segments


class WorkerProcess:
    """One real worker and the threads that serve it."""

    def __init__(self, node):
        self.node = node
        ours, theirs = socket.socketpair()
        fault_read, fault_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        self.stream, self.fault = ours, fault_read
        self.known = set()
        self.current = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kitchensink.worker", "--fd", str(theirs.fileno()), "--fault-fd", str(fault_write)],
            pass_fds=[theirs.fileno(), fault_write],
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            cwd=node.directory,
            env=node.worker_environment(),
            start_new_session=True,
        )
        theirs.close()
        for descriptor in (fault_write, out_write, err_write):
            os.close(descriptor)
        self.outputs = {1: out_read, 2: err_read}
        self.output_lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        try:
            kind, body = variant(msgpack.unpackb(read_frame(self.stream)[0]))
            assert kind == "Ready" and body["pid"] == self.process.pid, body
            while True:
                submitted = self.node.take()
                if submitted is None:
                    write_frame(self.stream, "Exit")
                    break
                self.run(submitted)
        except (EOFError, OSError):
            pass
        finally:
            self.end()

    def end(self):
        self.stream.close()
        try:
            self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for descriptor in (self.fault, *self.outputs.values()):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def pump(self, submitted, stop):
        """Forwards output until the call has ended and the pipes are empty."""
        import select

        descriptors = {descriptor: stream for stream, descriptor in self.outputs.items()}
        while True:
            ready, _, _ = select.select(list(descriptors), [], [], 0 if stop.is_set() else 0.005)
            for descriptor in ready:
                data = os.read(descriptor, 65536)
                if not data:
                    del descriptors[descriptor]
                elif submitted.call.get("intermediate_results", True):
                    update = {"Output": {"node": "fake", "stream": descriptors[descriptor], "data": data}}
                    submitted.session.tell({"Update": {"job": submitted.call["job"], "update": update}})
            if stop.is_set() and not ready:
                return

    def run(self, submitted):
        call, session = submitted.call, submitted.session
        job = call["job"]
        self.current = submitted
        if submitted.cancelled:
            return self.ended(submitted, self.failed("JobCancelled", "cancelled before it ran"), [])
        session.tell({"Update": {"job": job, "update": {"Started": {"node": "fake", "pid": self.process.pid}}}})
        args, segments = submitted.parts(call["args"], 0)
        code, kind = None, variant(call["function"])
        if kind[0] == "Hash" and kind[1] not in self.known:
            code, code_segments = self.node.codes[kind[1]]
            if code_segments:
                segments.append(code_segments[0])
                code = {"Segment": len(segments)}
            self.known.add(kind[1])
        run = {
            "job": job,
            "name": call["name"],
            "function": call["function"],
            "code": code,
            "format": call["format"],
            "args": self.node.blobs(args, segments),
            "mountpoint_from": call.get("mountpoint"),
            "mountpoint_to": self.node.worker_mountpoint,
            "intermediate_results": call.get("intermediate_results", True),
            "priority": call.get("priority", 0),
            "kept": [
                {**value, "path": self.node.kept_path(value["id"]), "size": 0, "hash": b""}
                for value in call.get("kept", [])
            ],
            "keep": call.get("keep"),
        }
        stop = threading.Event()
        pump = None
        if self.node.show_output:
            pump = threading.Thread(target=self.pump, args=(submitted, stop), daemon=True)
            pump.start()
        try:
            write_frame(self.stream, {"Run": run}, segments)
            while True:
                frame = read_frame(self.stream)
                kind, body = variant(msgpack.unpackb(frame[0]))
                if kind == "Ended":
                    break
                body = {key: value for key, value in body.items() if key != "job"}
                session.tell({"Update": {"job": job, "update": {"Log": {"node": "fake", **body}}}})
        except (EOFError, OSError):
            status = self.process.wait(WAIT_SECONDS)
            if pump:
                stop.set()
                pump.join()
            stack = os.read(self.fault, 65536).decode() if status < 0 else None
            outcome = self.failed("WorkerCrashed", f"the worker died: {status}")
            outcome["Failed"].update(
                signal=-status if status < 0 else None, exit_code=status if status >= 0 else None, stack=stack
            )
            self.ended(submitted, outcome, [])
            self.node.start_worker(replacing=self)
            raise
        if pump:
            stop.set()
            pump.join()
        self.current = None
        if body["kept"] is not None:
            self.node.keep(call["keep"], body["kept"])
        times = {name: body[name] for name in ("run_us", "unpickling_us", "pickling_us")}
        self.ended(submitted, body["outcome"], frame[1:], **times)

    @staticmethod
    def failed(kind, message):
        return {"Failed": {"kind": kind, "message": message, "signal": None, "exit_code": None, "stack": None}}

    def ended(self, submitted, outcome, segments, run_us=0, **times):
        job = submitted.call["job"]
        self.node.going.pop(job, None)
        update = {"Ended": {"outcome": outcome, "report": report(self.process.pid, run_us, **times)}}
        self.node.finished[job] = (update, segments)
        submitted.session.tell({"Update": {"job": job, "update": update}}, segments)


class NodeSession:
    """One client's connection."""

    def __init__(self, node, stream):
        self.node, self.stream = node, stream
        self.lock = threading.Lock()
        self.functions = []

    def tell(self, message, segments=()):
        with self.lock, contextlib.suppress(OSError):
            write_frame(self.stream, message, segments)

    def reply(self, request, answer):
        self.tell({"Reply": {"request": request, "answer": answer}})

    def serve(self):
        try:
            while True:
                frame = read_frame(self.stream)
                self.node.frames.append(sum(map(len, frame)))
                message = msgpack.unpackb(frame[0])
                kind, body = variant(message["body"])
                self.node.asked.append(kind)
                getattr(self, kind.lower())(message["request"], body, frame)
        except (EOFError, OSError):
            pass
        finally:
            self.stream.close()

    def hello(self, request, body, frame):
        if self.node.greeting is not None:
            return self.node.greeting(self, request)
        assert body["program"].startswith("kitchensink ")
        self.reply(request, {"Hello": self.node.hello()})

    def ping(self, request, body, frame):
        if self.node.mute:
            return
        self.reply(request, {"Pong": {"node": "fake"}})

    def nested(self, request, body, frame):
        self.node.waits.append((body["job"], body["waits"]))
        self.reply(request, {"Failed": self.node.refuse_waits} if self.node.refuse_waits else "Done")

    def keep(self, request, body, frame):
        for keep, file in body["values"]:
            self.node.keep(keep, file)
        self.reply(request, "Done")

    def kept(self, request, body, frame):
        values = [{"id": id, "path": self.node.kept_path(id)} for id in body["ids"]]
        if any(value["path"] is None for value in values):
            failed = {"kind": "KeyLost", "message": "no node has its value any more"}
            return self.reply(request, {"Failed": failed})
        self.reply(request, {"Kept": values})

    def keptgroup(self, request, body, frame):
        rows = [
            {"id": id, "name": keep["name"], "size": 1, "nodes": ["fake"]}
            for id, (keep, _) in self.node.kept.items()
            if keep["group"] == body["group"]
        ]
        self.reply(request, {"KeptGroup": rows})

    def forget(self, request, body, frame):
        ids = [id for id in body["ids"] if id in self.node.kept]
        ids += [id for id, (keep, _) in self.node.kept.items() if keep["group"] and keep["group"] in body["groups"]]
        for id in ids:
            os.unlink(self.node.kept_path(id))
            del self.node.kept[id]
        self.reply(request, {"Forgotten": {"count": len(ids)}})

    def nodes(self, request, body, frame):
        self.reply(request, {"Nodes": [{"name": "fake", "address": "127.0.0.1:6323", "read_only": True}]})

    def where(self, request, body, frame):
        rows = []
        for path in map(os.fsdecode, body["paths"]):
            have = 0 if path == "b/c" else 7
            copy = {"node": "fake", "alive": True, "bytes": have, "version": 1, "current": True, "home": True}
            rows.append({"path": path, "kind": "file", "size": 7, "version": 1, "blake3": None, "copies": [copy]})
        self.reply(request, {"Where": rows})

    def fetch(self, request, body, frame):
        for have in (0, 50, 100):
            self.tell({"Progress": {"request": request, "path": body["paths"][0], "have": have, "size": 100}})
        self.reply(request, "Done")

    def submit(self, request, body, frame):
        if self.node.refuse is not None:
            return self.reply(request, {"Failed": self.node.refuse})
        for function in body["functions"]:
            kind, where = variant(function["code"])
            self.functions.append(function["name"])
            segments = [frame[where]] if kind == "Segment" else []
            self.node.codes[function["hash"]] = (function["code"], segments)
        for call in body["calls"]:
            submitted = Submitted(call, frame, self)
            self.node.calls.append(call)
            self.node.going[call["job"]] = submitted
        self.reply(request, "Accepted")
        self.node.put([self.node.going[call["job"]] for call in body["calls"]])

    def attach(self, request, body, frame):
        for job in body["jobs"]:
            if job in self.node.going:
                self.node.going[job].session = self
            elif job not in self.node.finished:
                return self.reply(request, {"Failed": {"kind": "KitchenSinkError", "message": f"no job {job}"}})
        self.reply(request, "Accepted")
        for job in body["jobs"]:
            if job in self.node.finished:
                update, segments = self.node.finished[job]
                self.tell({"Update": {"job": job, "update": update}}, segments)

    def cancel(self, request, body, frame):
        jobs = list(self.node.going) if body["all"] else [job for job in body["jobs"] if job in self.node.going]
        for job in jobs:
            submitted = self.node.going.get(job)
            if submitted is not None:
                submitted.cancelled = True
        self.reply(request, {"Cancelled": {"jobs": jobs}})
        threading.Thread(target=self.interrupt, args=(jobs,), daemon=True).start()

    def interrupt(self, jobs):
        """A signal that comes before the worker has read its call is not heard, so it is sent until the call has
        ended."""
        while any(job in self.node.going for job in jobs):
            for worker in self.node.workers:
                if worker.current is not None and worker.current.call["job"] in jobs:
                    worker.process.send_signal(signal.SIGINT)
            time.sleep(0.05)


class FakeNode:
    """Starts it, and ends all of it: `with FakeNode() as node: Client(node.socket)`."""

    def __init__(
        self,
        workers=1,
        mountpoint=b"/ks",
        worker_mountpoint=None,
        blob_bytes=None,
        show_output=True,
        environment=None,
        memory_bytes=1 << 28,
    ):
        self.directory = tempfile.mkdtemp(prefix="ks-fake-")
        self.environment = environment or {}
        os.mkdir(os.path.join(self.directory, ".ks"))
        self.socket = os.path.join(self.directory, ".ks", "control.sock")
        self.mountpoint = mountpoint
        self.worker_mountpoint = worker_mountpoint or mountpoint
        self.blob_bytes = blob_bytes
        self.show_output = show_output
        self.codes, self.going, self.finished = {}, {}, {}
        self.kept = {}
        self.memory = os.path.join(self.directory, "memory")
        for made in (self.memory, os.path.join(self.directory, ".ks", "kept")):
            os.mkdir(made)
        with open(os.path.join(self.memory, "ledger"), "wb") as ledger:
            ledger.write(struct.pack("<2Q", 0, memory_bytes))
        self.calls, self.asked, self.frames = [], [], []
        self.sessions = []
        self.waits = []
        self.greeting = self.refuse = self.refuse_waits = None
        self.mute = False
        self.queue = collections.deque()
        self.ready = threading.Condition()
        self.ending = False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.socket)
        self.listener.listen()
        self.workers = []
        for _ in range(workers):
            self.start_worker()
        threading.Thread(target=self.accept, daemon=True).start()

    def hello(self, version=1):
        return {
            "version": version,
            "node": "fake",
            "node_id": "f" * 32,
            "mountpoint": self.mountpoint,
            "datadir": b"/data",
            "program": "fake 0",
            "memory": os.fsencode(self.memory),
        }

    def keep(self, keep, file):
        """A value's file was written."""
        self.kept[keep["id"]] = (keep, file["hash"].hex())

    def tell_forget(self):
        """Says to idle workers that a value was removed."""
        for worker in self.workers:
            write_frame(worker.stream, "Forget")

    def kept_path(self, id):
        """Where a value stands; None: it is not there."""
        if id not in self.kept:
            return None
        name = self.kept[id][1]
        for directory in (self.memory, os.path.join(self.directory, ".ks", "kept")):
            path = os.path.join(directory, name[:2], name)
            if os.path.exists(path):
                return os.fsencode(path)
        return None

    def worker_environment(self):
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path),
            "KS_WORKER": "1",
            "KS_DATADIR": self.directory,
            "KS_MEMORY": self.memory,
            "KS_NODE_NAME": "fake",
            "KS_NODE_URL": "127.0.0.1:6323",
            "KS_MOUNTPOINT": os.fsdecode(self.worker_mountpoint),
            **self.environment,
        }

    def start_worker(self, replacing=None):
        if not self.ending:
            if replacing in self.workers:
                self.workers.remove(replacing)
            self.workers.append(WorkerProcess(self))

    def accept(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            session = NodeSession(self, stream)
            self.sessions.append(session)
            threading.Thread(target=session.serve, daemon=True).start()

    def put(self, several):
        with self.ready:
            self.queue.extend(several)
            self.ready.notify_all()

    def take(self):
        with self.ready:
            while not self.queue and not self.ending:
                self.ready.wait()
            return None if self.ending else self.queue.popleft()

    def blobs(self, payload, segments):
        """Large parts as files, where the test wants that."""
        if self.blob_bytes is None:
            return payload
        parts = []
        for part in payload["parts"]:
            kind, body = variant(part)
            if kind == "Segment" and len(segments[body - 1]) >= self.blob_bytes:
                path = os.path.join(self.directory, f"blob{len(os.listdir(self.directory))}")
                with open(path, "wb") as blob:
                    blob.write(segments[body - 1])
                part = {
                    "Blob": {"hash": b"\0" * 32, "size": len(segments[body - 1]), "path": os.fsencode(path)},
                }
            parts.append(part)
        return {"parts": parts}

    def drop_connections(self):
        for session in self.sessions:
            with contextlib.suppress(OSError):
                session.stream.shutdown(socket.SHUT_RDWR)
        self.sessions.clear()

    def close(self):
        self.ending = True
        self.drop_connections()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self.ready:
            self.ready.notify_all()
        for worker in self.workers:
            worker.thread.join(0.5)
            if worker.thread.is_alive():
                worker.process.kill()
                worker.thread.join(WAIT_SECONDS)
        subprocess.run(["rm", "-rf", self.directory], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def until(condition, seconds=10):
    """Waits for a condition, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.002)


def main():
    """A node in a process of its own: prints its socket, ends with its standard input."""
    with FakeNode(workers=int(sys.argv[1]), show_output=False) as node:
        print(node.socket, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
