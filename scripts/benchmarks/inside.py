"""Programs that run within a host: `inside.py NAME ARG…` prints one JSON object. Standard library only."""

import json
import os
import random
import socket
import subprocess
import sys
import time


def percentiles(seconds):
    ordered = sorted(seconds)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[int(len(ordered) * 0.99)], "count": len(ordered)}


def read_whole(path):
    """Sequential, in blocks of 1 MiB: bytes, seconds, seconds to the first byte."""
    block = bytearray(1 << 20)
    total, first = 0, None
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            first = first or time.perf_counter() - began
            total += count
    return {"bytes": total, "seconds": time.perf_counter() - began, "first": first}


def write_whole(path, count):
    """A new file, in blocks of 1 MiB, to the end of close."""
    block = os.urandom(1 << 20)
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(int(count) >> 20):
            file.write(block)
    return {"seconds": time.perf_counter() - began}


def first_bytes(*paths):
    """From open to the first 4 KiB of each file."""
    taken = []
    for path in paths:
        began = time.perf_counter()
        descriptor = os.open(path, os.O_RDONLY)
        assert os.pread(descriptor, 4096, 0)
        taken.append(time.perf_counter() - began)
        os.close(descriptor)
    return percentiles(taken)


def read_random(path, count):
    """Single reads of 4 KiB at aligned places, none twice."""
    descriptor = os.open(path, os.O_RDONLY)
    pages = os.fstat(descriptor).st_size // 4096
    places = random.Random(17).sample(range(0, pages, 16), int(count))
    taken = []
    for place in places:
        began = time.perf_counter()
        assert len(os.pread(descriptor, 4096, place * 4096)) == 4096
        taken.append(time.perf_counter() - began)
    return percentiles(taken)


def open_close(path, count):
    began = time.perf_counter()
    for _ in range(int(count)):
        os.close(os.open(path, os.O_RDONLY))
    return {"seconds": (time.perf_counter() - began) / int(count)}


def read_files(directory):
    """Every file of a directory, one after the other."""
    names = os.listdir(directory)
    began = time.perf_counter()
    for name in names:
        descriptor = os.open(f"{directory}/{name}", os.O_RDONLY)
        while os.read(descriptor, 1 << 16):
            pass
        os.close(descriptor)
    return {"files": len(names), "seconds": time.perf_counter() - began}


def create_files(directory, count, size):
    """So many new files in a new directory, each written in one piece and closed."""
    os.mkdir(directory)
    data = os.urandom(int(size))
    began = time.perf_counter()
    for number in range(int(count)):
        descriptor = os.open(f"{directory}/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, data)
        os.close(descriptor)
    return {"files": int(count), "seconds": time.perf_counter() - began}


def run(*argv):
    """A command, its output counted: seconds, lines."""
    began = time.perf_counter()
    lines = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.count(b"\n")
    return {"seconds": time.perf_counter() - began, "lines": lines}


def serve_sftp(port):
    """An sftp-server for each connection: sshfs without ssh, which encrypts nothing."""
    listener = socket.create_server(("", int(port)))
    print(json.dumps({"listening": int(port)}), flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            os.dup2(connection.fileno(), 0)
            os.dup2(connection.fileno(), 1)
            os.execv("/usr/lib/openssh/sftp-server", ["sftp-server"])
        connection.close()


PROGRAMS = {
    program.__name__: program
    for program in (
        read_whole,
        write_whole,
        first_bytes,
        read_random,
        open_close,
        read_files,
        create_files,
        run,
        serve_sftp,
    )
}

if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))
