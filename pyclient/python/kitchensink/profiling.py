"""Where the time of calls went, from what their nodes reported, and `timethis` marks.

Internal; users have `Client.profile`, `br(profile=...)` and `kitchensink.admin`. A mark travels from its worker to the
caller as a record of the logger `LOGGER`, so calls with `_intermediate_results=False` have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from . import profiled
from .job import Job
from .profiled import LOGGER, Profile

__all__ = ["LOGGER", "Profile", "show", "summary", "take_mark"]


PHASES = ("queued", "claiming", "unpickling", "waiting", "run", "pickling", "returning")
"""What the time of a call goes to. What it waits for bytes of files while it runs is in `waiting` and in `run`."""
SHOWN_FUNCTIONS = 20
"""Of a profile, so many are printed."""


def take_mark(job: Job, message: str) -> None:
    """Keeps a mark that came for a job."""
    try:
        mark = json.loads(message)
        if isinstance(mark, dict):
            job._profile = profiled.take(job._profile, mark)
            return
        name, seconds = mark
        job.marks[str(name)] = job.marks.get(str(name), 0.0) + float(seconds)
    except (ValueError, TypeError):
        return


def summary(jobs: Iterable[Job]) -> dict[str, Any]:
    """The times of ended jobs, in seconds, and the bytes they read: of each (`calls`) and of all together, and the
    `profile` of those that ran under the profiler. Jobs that go on are left out."""
    jobs = list(jobs)
    calls = [_of_one(job) for job in jobs]
    known = [call for call in calls if call is not None]
    total: dict[str, Any] = {"calls": known, "count": len(known), "nodes": {}, "marks": {}}
    for key in (*PHASES, "cpu", "bytes_local", "bytes_fetched"):
        total[key] = sum(call[key] for call in known)
    for call in known:
        total["nodes"][call["node"]] = total["nodes"].get(call["node"], 0) + 1
        for name, seconds in call["marks"].items():
            total["marks"][name] = total["marks"].get(name, 0.0) + seconds
    total["profile"] = Profile.merged(one for one in (job.profile for job in jobs) if one is not None)
    return total


def _of_one(job: Job) -> dict[str, Any] | None:
    placement = job.placement
    if placement is None:
        return None
    return {
        "job": job.id,
        "name": job.name,
        "node": placement.node,
        "queued": (placement.queued_us - placement.claiming_us - placement.bringing_us) / 1e6,
        "claiming": placement.claiming_us / 1e6,
        "unpickling": placement.unpickling_us / 1e6,
        "waiting": (placement.bringing_us + placement.waiting_us) / 1e6,
        "run": placement.run_us / 1e6,
        "pickling": placement.pickling_us / 1e6,
        "returning": job.returning,
        "cpu": placement.cpu_us / 1e6,
        "bytes_local": placement.bytes_local,
        "bytes_fetched": placement.bytes_fetched,
        "marks": dict(job.marks),
    }


def show(name: str, seconds: float, jobs: Iterable[Job]) -> None:
    """Prints the summary of jobs that took `seconds` together."""
    total = summary(jobs)
    print(f"{name} took {seconds:.3f} s: {total['count']} calls on {len(total['nodes'])} nodes")
    print(f"  queued {total['queued']:.3f} s, claiming {total['claiming']:.3f} s")
    print(f"  waiting for bytes {total['waiting']:.3f} s")
    print(f"  unpickling {total['unpickling']:.3f} s, running {total['run']:.3f} s, processor {total['cpu']:.3f} s")
    print(f"  pickling {total['pickling']:.3f} s, sending and returning {total['returning']:.3f} s")
    print(f"  bytes read where they were {total['bytes_local']:,}, fetched {total['bytes_fetched']:,}")
    for mark, spent in sorted(total["marks"].items(), key=lambda item: -item[1]):
        print(f"  {mark} : {spent:.3f} s")
    if total["profile"] is not None:
        total["profile"].stats.sort_stats("cumulative").print_stats(SHOWN_FUNCTIONS)
