"""The command line of `scripts/bench`."""

import argparse
import os
import signal
import sys

from . import calls, files, remote
from .report import Report

PARTS = {"fs": (files, remote), "call": (calls,), "all": (files, remote, calls)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("part", nargs="?", choices=sorted(PARTS), default="all")
    parser.add_argument("--json", type=argparse.FileType("a"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    # Ended in order: the hosts go with their contexts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report(arguments.json, arguments.only, arguments.rounds)
    for part in PARTS[arguments.part]:
        try:
            part.measure(report)
        except Exception as error:
            report.failed(part.__name__, error)
    print("\n" + report.table())
    load = os.getloadavg()[0]
    print(f"\n{os.cpu_count()} cores, load {load:.1f}, Linux {os.uname().release}, {arguments.rounds} rounds, medians")
    if report.failures:
        print(f"could not be measured: {', '.join(report.failures)}", file=sys.stderr)
    return 1 if report.failures else 0


sys.exit(main())
