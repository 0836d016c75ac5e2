"""A load of calls for tests that kill things: a program that runs in a host and tells at its end how each call ended.

`python load.py FILE.json` with `{"marks": DIR, "ids": FILE, "calls": N, "retries": R}`. Every call appends its number
to a file of the node that runs it (`O_APPEND`, one write), so that what ran, and how often, is known whoever dies. The
program says `begun` when its first call has returned, and at its end one line of JSON: see `main`. It knows nothing of
clusters or of who kills.
"""

import collections
import json
import os
import sys
import threading
import time

# Every so many calls one may be run again, and one has an argument that travels as a file.
RETRIED_EVERY = 5
LARGE_EVERY = 50
LARGE_BYTES = 100_000
# Longer than any lease: who waits this long has been forgotten.
END_TIMEOUT_S = 60


def work(marks, number, argument):
    """One call: says that it ran, takes a moment, returns something that shows that it did."""
    descriptor = os.open(f"{marks}/{os.uname().nodename}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, b"%d\n" % number)
    finally:
        os.close(descriptor)
    time.sleep(0.002)
    return number + len(argument)


def argument(number):
    return bytes(LARGE_BYTES) if number % LARGE_EVERY == LARGE_EVERY - 1 else b""


class Account:
    """When each call ended and how often that was told."""

    def __init__(self):
        self.lock = threading.Lock()
        self.told: collections.Counter = collections.Counter()
        self.ended = {}

    def end(self, number):
        with self.lock:
            self.told[number] += 1
            self.ended[number] = time.time()


def main(settings):
    from kitchensink import Client

    client = Client()
    account = Account()
    jobs = []
    with open(settings["ids"], "a", buffering=1) as ids:
        for number in range(settings["calls"]):
            options = {"_retries": settings["retries"]} if number % RETRIED_EVERY == 0 else {}
            job = client.call(work, settings["marks"], number, argument(number), **options)
            ids.write(f"{number} {job}\n")
            job.add_done_callback(lambda _, number=number: account.end(number))
            jobs.append(job)
            if number == 0:
                job.exception(timeout=END_TIMEOUT_S)
                print("begun", flush=True)
    ends = [ended_as(number, job) for number, job in enumerate(jobs)]
    time.sleep(0.2)  # an end that is told twice has the time to be told
    times = sorted(account.ended.values())
    gaps = [(later - earlier, later) for earlier, later in zip(times, times[1:])]
    print(
        json.dumps(
            {"ends": ends, "told": list(account.told.values()), "longest_wait_s": max(gaps)[0], "last": times[-1]}
        ),
        flush=True,
    )


def ended_as(number, job):
    """`returned`, or the name of the error's type; a wrong result and an end that does not come are named, too."""
    try:
        error = job.exception(timeout=END_TIMEOUT_S)
    except TimeoutError:
        return "no end"
    if error is not None:
        return type(error).__name__
    return "returned" if job.result() == number + len(argument(number)) else "a wrong result"


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file))
