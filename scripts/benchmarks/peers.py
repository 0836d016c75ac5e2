"""What calls are measured beside: ProcessPoolExecutor, a bare ping-pong, and the libraries people use for this today.

Each is a preamble of Python that defines `one(function, *arguments)` (a call and its result) and, where there is such
a thing, `many(function, items)` (all of them at once), `keep(value)` (put it where the workers are) and `workers_die`
(the errors that tell of a dead worker). The same measuring code then runs after it. Two workers each, on one host."""

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

from harness import REPOSITORY
from harness.node import PYTHON, REPLY

ENVIRONMENTS = REPOSITORY / "target" / "bench"
CODE_TIMEOUT_S = 300


@dataclass
class Peer:
    """`packages`: what its own virtualenv has; without any it runs in ours."""

    name: str
    preamble: str
    packages: tuple = ()
    ending: str = ""

    @property
    def python(self):
        return ENVIRONMENTS / self.name.replace(" ", "-") / "bin" / "python" if self.packages else PYTHON

    def install(self) -> None:
        """Makes the virtualenv, from PyPI, where it is not there yet."""
        if not self.packages or self.python.exists():
            return
        directory = self.python.parent.parent
        print(f"bench: installing {self.name} into {directory}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages]
        try:
            subprocess.run(pip, check=True)
        except subprocess.CalledProcessError as error:
            self.python.unlink()
            raise AssertionError(f"{self.name} could not be installed: {error}") from error

    def ask(self, node, code: str) -> Any:
        """Runs the preamble and `code` in the node's host; what `code` gave to `reply`."""
        body = textwrap.indent(self.preamble + code + self.ending, "    ")
        script = node.home / "beside.py"
        script.write_text(f"{HEAD.format(marker=REPLY)}{COMMON}if __name__ == '__main__':\n{body}")
        done = node.exec([self.python, script], timeout=CODE_TIMEOUT_S)
        (line,) = [line for line in done.text.splitlines() if line.startswith(REPLY)]
        return json.loads(line[len(REPLY) :])


HEAD = """\
import json, os, sys, time
def reply(value):
    print({marker!r} + json.dumps(value), flush=True)
"""

# Functions have to be in the script itself for those which pass them by name.
COMMON = """
def percentiles(seconds):
    ordered = sorted(seconds)
    return [ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]]
def timed(function, count):
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return percentiles(taken)
def nothing(*_):
    return None
def same(value):
    return value
def count(array):
    return array.nbytes
def die(path):
    import os, signal, time
    with open(path, "a") as file:
        file.write(repr(time.time()) + "\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""

WARM = """
for _ in range(100):
    one(nothing)
"""

POOL = Peer(
    "ProcessPoolExecutor",
    """
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool as workers_die
pool = ProcessPoolExecutor(2)
def one(function, *arguments):
    return pool.submit(function, *arguments).result()
def many(function, items):
    return list(pool.map(function, items))
"""
    + WARM,
)

PING_PONG = Peer(
    "bare ping-pong",
    """
import pickle, socket, struct
def receive(connection):
    size, = struct.unpack("<Q", connection.recv(8, socket.MSG_WAITALL))
    return pickle.loads(connection.recv(size, socket.MSG_WAITALL))
def send(connection, value):
    data = pickle.dumps(value, protocol=5)
    connection.sendall(struct.pack("<Q", len(data)) + data)
here, there = socket.socketpair()
if os.fork() == 0:
    here.close()
    while True:
        try:
            function, arguments = receive(there)
        except struct.error:
            os._exit(0)
        send(there, function(*arguments))
there.close()
def one(function, *arguments):
    send(here, (function, arguments))
    return receive(here)
"""
    + WARM,
)

DASK = Peer(
    "dask.distributed",
    """
from distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker as workers_die
import logging
logging.disable(logging.CRITICAL)
cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
c = Client(cluster)
def one(function, *arguments):
    return c.submit(function, *arguments, pure=False).result()
def many(function, items):
    return c.gather(c.map(function, items, pure=False))
def keep(value):
    return c.scatter(value, hash=False)
"""
    + WARM,
    ("distributed", "numpy"),
    "c.shutdown()\n",
)

RAY = Peer(
    "Ray",
    """
import ray
from ray.exceptions import RayError as workers_die
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
remote = {}
def submitted(function, *arguments):
    if function not in remote:
        remote[function] = ray.remote(function)
    return remote[function].remote(*arguments)
def one(function, *arguments):
    return ray.get(submitted(function, *arguments))
def many(function, items):
    return ray.get([submitted(function, item) for item in items])
keep = ray.put
"""
    + WARM,
    ("ray", "numpy"),
    "ray.shutdown()\n",
)

IPYTHON = Peer(
    "IPython parallel",
    """
import logging, ipyparallel
cluster = ipyparallel.Cluster(n=2, log_level=logging.ERROR)
c = cluster.start_and_connect_sync()
view = c.load_balanced_view()
def one(function, *arguments):
    return view.apply_sync(function, *arguments)
def many(function, items):
    return view.map_sync(function, items)
"""
    + WARM,
    ("ipyparallel", "numpy"),
    "cluster.stop_cluster_sync()\n",
)

LIBRARIES = (DASK, RAY, IPYTHON)
