"""The demo's calls, run on host 1: `demo_calls.py months|talk DIRECTORY`; the directory has the original CSV files.

Ends with an AssertionError where something is not as it should be.
"""

import logging
import sys
import time
from pathlib import Path

import pandas

from kitchensink import Client

RESULT_TIMEOUT_S = 60
NETWORK_SHARE_MAX = 0.01


def delays(path):
    """Sum and number of the arrival delays in one month's file, by carrier: runs where the file is."""
    import pandas

    with open(path) as file:
        rows = pandas.read_csv(file, usecols=["carrier", "arr_delay"])
    return rows.groupby("carrier").arr_delay.agg(["sum", "count"])


def chatter(path):
    """Prints as it goes."""
    import os
    import subprocess

    print(f"this is printed by a call on {os.uname().nodename}")
    subprocess.run(["wc", "-l", path], check=True)
    return "and this is what it returned"


def keep_a_log(path):
    """Logs with the standard library's logging."""
    import logging

    logging.getLogger("demo").warning("%s is looked at", path)


def stumble(path):
    """Raises: this file has no such column."""
    import pandas

    return pandas.read_csv(path, nrows=5)["no such column"]


def combine(parts):
    """Mean delay by carrier from the months' sums and numbers."""
    total = pandas.concat(parts).groupby(level=0).sum()
    return (total["sum"] / total["count"]).rename("mean delay, minutes")


def months(client, directory):
    paths = [f"/ks/flights/2013-{month:02}.csv" for month in range(1, 13)]
    holders = {path: f"host{number // 4 + 1}" for number, path in enumerate(paths)}
    began = time.perf_counter()
    jobs = [client.call(delays, path) for path in paths]
    parts = [client.result(job, timeout=RESULT_TIMEOUT_S) for job in jobs]
    seconds = time.perf_counter() - began
    print("   file                       ran on   read locally        fetched       time")
    fetched = total = 0
    for path, job in zip(paths, jobs):
        where = job.placement
        fetched += where.bytes_fetched
        total += where.bytes_local + where.bytes_fetched
        read = f"{where.bytes_local:12,} B {where.bytes_fetched:12,} B"
        print(f"   {path:26} {where.node:7} {read} {where.run_us / 1000:7.1f} ms")
        # July was read on host1 before, so host1 holds it, too.
        may = {holders[path]} | ({"host1"} if path.endswith("07.csv") else set())
        assert where.node in may, f"{path} ran on {where.node}, and is held by {may}"
    print(f"   {len(jobs)} calls in {seconds:.2f} s; {fetched:,} of {total:,} bytes were fetched\n")
    assert total > 0 and fetched <= NETWORK_SHARE_MAX * total
    table = combine(parts)
    print("   " + table.round(2).to_frame().T.to_string().replace("\n", "\n   ") + "\n")
    alone = combine([delays(path) for path in sorted(Path(directory).glob("*.csv"))])
    pandas.testing.assert_series_equal(table, alone)


def talk(client, _):
    path = "/ks/flights/2013-10.csv"
    print(">>> client.call(chatter, path, _async=False)", flush=True)
    answer = client.call(chatter, path, _async=False)
    print(repr(answer))
    assert answer == "and this is what it returned"

    heard = []
    listener = logging.Handler()
    listener.emit = heard.append
    logging.getLogger("demo").addHandler(listener)
    logging.basicConfig(format="%(levelname)s:%(name)s:%(message)s", stream=sys.stdout)
    print("\n>>> client.call(keep_a_log, path, _async=False)", flush=True)
    client.call(keep_a_log, path, _async=False)
    assert [record.getMessage() for record in heard] == [f"{path} is looked at"], heard

    print("\n>>> client.call(stumble, path, _async=False)", flush=True)
    try:
        client.call(stumble, path, _async=False)
    except KeyError as error:
        import traceback

        text = "".join(traceback.format_exception(error))
        print(text)
        assert "no such column" in text and "in stumble" in text and "host3" in text, text
    else:
        raise AssertionError("the call did not raise")


if __name__ == "__main__":
    {"months": months, "talk": talk}[sys.argv[1]](Client(), sys.argv[2])
