"""A reader and a writer that go on whatever happens and keep an account of it, for tests that break things.

`python probe.py read DIRECTORY SECONDS` reads the files of a directory of the tree one after another, again and again,
and compares each with `content` of its name. `python probe.py write DIRECTORY SECONDS LEDGER` makes files whose bytes
are `content` of their names, and appends lines to DIRECTORY/log with fsync; what was acknowledged it notes in LEDGER,
a file outside the tree. An error is counted and the next operation begins. At its end it prints its account as a line
of JSON. Which error is right at which moment is for the tests to say.
"""

import errno
import json
import os
import random
import sys
import time

# Between two operations: a program that does something else, too.
PAUSE_S = 0.01
SIZE_MAX = 64 * 1024


def content(name):
    """What a file of this name holds."""
    dice = random.Random(name)
    return dice.randbytes(dice.randrange(1, SIZE_MAX))


class Account:
    """How many operations there were, how they failed, and how long they took."""

    def __init__(self):
        self.done = 0
        self.wrong = []
        self.errors = {}
        self.longest_s = 0.0
        self.last_done = time.time()

    def do(self, operation, *arguments):
        """Does it; returns whether it succeeded."""
        began = time.monotonic()
        try:
            operation(*arguments)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error))
            self.errors[name] = self.errors.get(name, 0) + 1
            return False
        finally:
            self.longest_s = max(self.longest_s, time.monotonic() - began)
        self.done += 1
        self.last_done = time.time()
        return True


def check(account, path, name):
    with open(path, "rb") as file:
        if file.read() != content(name):
            account.wrong.append(path)


def put(path, name):
    with open(path, "wb", buffering=0) as file:
        data = content(name)
        while data:
            data = data[file.write(data) :]


def append(path, line):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(account, directory, until):
    # Listed once: what is looked at is the reading of files.
    names = sorted(name for name in os.listdir(directory) if name != "log")
    while time.monotonic() < until:
        for name in names:
            account.do(check, account, f"{directory}/{name}", name)
            time.sleep(PAUSE_S)
            if time.monotonic() >= until:
                break


def write(account, directory, until, ledger_path):
    number = 0
    with open(ledger_path, "a", buffering=1) as ledger:
        while time.monotonic() < until:
            number += 1
            name = f"made{number}"
            if account.do(put, f"{directory}/{name}", name):
                ledger.write(f"file {name}\n")
            if account.do(append, f"{directory}/log", b"line %d\n" % number):
                ledger.write(f"line {number}\n")
            time.sleep(PAUSE_S)


def main(what, directory, seconds, *ledger):
    account = Account()
    print("begun", flush=True)
    until = time.monotonic() + float(seconds)
    if what == "read":
        read(account, directory, until)
    else:
        write(account, directory, until, *ledger)
    print(json.dumps(vars(account)), flush=True)


def lost(directory, ledger_path):
    """Bytes that were acknowledged and are not there."""
    missing = []
    with open(ledger_path) as file:
        entries = [line.split() for line in file]
    lines = {b"line %s" % entry[1].encode() for entry in entries if entry[0] == "line"}
    if lines:
        with open(f"{directory}/log", "rb") as file:
            missing += [len(line) + 1 for line in lines - set(file.read().split(b"\n"))]
    for name in (entry[1] for entry in entries if entry[0] == "file"):
        try:
            with open(f"{directory}/{name}", "rb") as file:
                found = file.read()
        except FileNotFoundError:
            found = b""
        if found != content(name):
            missing.append(len(content(name)))
    print(json.dumps({"files_and_lines": len(entries), "bytes_lost": sum(missing)}))


if __name__ == "__main__":
    {"lost": lost}.get(sys.argv[1], lambda *rest: main(sys.argv[1], *rest))(*sys.argv[2:])
