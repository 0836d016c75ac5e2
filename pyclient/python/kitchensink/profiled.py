"""Calls under a profiler (`_profile=True`): on the node cProfile and a sampler of stacks, here one `Profile` of all
calls together, as `pstats.Stats` and as a flame graph.

Who takes part: `run` runs the function on the node and sends what was measured as records of the logger `LOGGER`, in
pieces (so a call that raises is profiled, too, and its result is what it always is); `Pieces` puts them together again.
What always holds: a call's profile is whole or not there. Not for threads that a call starts: its own thread is
measured.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import logging
import marshal
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    import pstats

__all__ = ["Profile"]

LOGGER = "kitchensink.profile"
"""Its records are marks and profiles, and are not shown."""
SAMPLE_SECONDS = 0.005
"""Time between two looks at the stack."""
STACKS_MAX = 20_000
"""Different stacks that are told of one call; the time of others goes to `(other)`."""
DEPTH_MAX = 200
"""Frames of one stack."""
_PIECE_CHARACTERS = 48 * 1024
"""Less than what a log record may have."""
_PIECES_MAX = 4_096

Stack = tuple[str, ...]


# On the node


class _Sampler:
    """Looks at one thread's stack again and again. What lies between two looks counts for the stack of the second."""

    def __init__(self, thread: int) -> None:
        self.stacks: dict[Stack, float] = {}
        self._watched = thread
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kitchensink-profile", daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.perf_counter()
        while not self._end.wait(SAMPLE_SECONDS):
            frame = sys._current_frames().get(self._watched)
            now = time.perf_counter()
            self._note(stack_of(frame), now - before)
            before = now

    def _note(self, stack: Stack | None, seconds: float) -> None:
        if stack is None:
            return
        if stack not in self.stacks and len(self.stacks) >= STACKS_MAX:
            stack = ("(other)",)
        self.stacks[stack] = self.stacks.get(stack, 0.0) + seconds


def stack_of(frame: FrameType | None) -> Stack | None:
    """A stack from the call's function on; None where that does not run (yet, or any more)."""
    frames: list[str] = []
    below: int | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_name == "runcall" and os.path.basename(code.co_filename) == "cProfile.py":
            below = len(frames)
        frames.append(f"{code.co_name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})")
        frame = frame.f_back
    return None if below is None else tuple(frames[:below][::-1][:DEPTH_MAX])


def run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """On the node: the call, under the profilers."""
    import cProfile

    profiler = cProfile.Profile()
    with _Sampler(threading.get_ident()) as sampler:
        try:
            return profiler.runcall(function, *args, **kwargs)
        finally:
            profiler.create_stats()
            _send(profiler.stats, sampler.stacks)


def _send(stats: dict[Any, Any], stacks: dict[Stack, float]) -> None:
    packed = base64.b85encode(zlib.compress(marshal.dumps((stats, stacks)))).decode()
    pieces = [packed[at : at + _PIECE_CHARACTERS] for at in range(0, len(packed), _PIECE_CHARACTERS)]
    for index, piece in enumerate(pieces):
        logging.getLogger(LOGGER).info("%s", json.dumps({"profile": [index, len(pieces), piece]}))


# Here


class Pieces:
    """A profile on its way."""

    def __init__(self) -> None:
        self._pieces: dict[int, str] = {}
        self._count = 0

    def add(self, index: int, count: int, piece: str) -> None:
        """One piece. Errors: ValueError."""
        if not 0 <= index < count <= _PIECES_MAX:
            raise ValueError(f"piece {index} of {count}")
        self._count = count
        self._pieces[index] = piece

    def profile(self) -> Profile | None:
        """The profile; None while a piece is missing, or where it cannot be read."""
        if not self._pieces or len(self._pieces) < self._count:
            return None
        import pstats

        packed = "".join(self._pieces[index] for index in range(self._count))
        try:
            stats, stacks = marshal.loads(zlib.decompress(base64.b85decode(packed)))
        except (ValueError, EOFError, TypeError, zlib.error):
            return None
        made: Any = _Stats(stats)
        return Profile(pstats.Stats(made), stacks)


class _Stats:
    """What `pstats.Stats` takes in place of a profiler."""

    def __init__(self, stats: dict[Any, Any]) -> None:
        self.stats = stats

    def create_stats(self) -> None:
        """They are made."""


class Profile:
    """Where calls that ran with `_profile=True` spent their time, all together.

    >>> jobs = [c.call(f, path, _profile=True) for path in paths]
    >>> profile = c.profile(jobs)["profile"]
    >>> profile.stats.sort_stats("cumulative").print_stats(20)      # a pstats.Stats
    >>> profile.save_flame_graph("calls.svg")
    """

    def __init__(self, stats: pstats.Stats, stacks: dict[Stack, float]) -> None:
        self.stats = stats
        """The calls' cProfiles, merged."""
        self.stacks = stacks
        """Stack (from its root on) -> seconds, from samples every 5 ms."""

    @classmethod
    def merged(cls, profiles: Iterable[Profile]) -> Profile | None:
        """Several as one; None of none."""
        import pstats

        stats: pstats.Stats | None = None
        stacks: dict[Stack, float] = {}
        for profile in profiles:
            if stats is None:
                copy: Any = _Stats(dict(profile.stats.stats))  # type: ignore[attr-defined]
                stats = pstats.Stats(copy)
            else:
                stats.add(profile.stats)
            for stack, seconds in profile.stacks.items():
                stacks[stack] = stacks.get(stack, 0.0) + seconds
        return None if stats is None else cls(stats, stacks)

    @property
    def seconds(self) -> float:
        """What was sampled."""
        return sum(self.stacks.values())

    def flame_graph(self) -> str:
        """A picture as SVG: each frame as wide as the time that it and what it called took."""
        return _Flames(self.stacks).svg()

    def save_flame_graph(self, path: str | os.PathLike[str]) -> None:
        """The same as a file, for any browser."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.flame_graph())

    def _repr_svg_(self) -> str:
        """For notebooks."""
        return self.flame_graph()

    def __repr__(self) -> str:
        calls = getattr(self.stats, "total_calls", 0)
        return f"<Profile of {calls} function calls, {self.seconds:.3f} s sampled>"


class _Node:
    """A frame of the flame graph, and what it called."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.inner: dict[str, _Node] = {}


class _Flames:
    """Draws stacks."""

    WIDTH = 1200.0
    ROW = 18
    LEAST = 0.4
    """Narrower frames are not drawn."""
    CHARACTER = 6.6

    def __init__(self, stacks: dict[Stack, float]) -> None:
        self.root = _Node()
        self.depth = 0
        for stack, seconds in stacks.items():
            self.root.seconds += seconds
            node = self.root
            for name in stack:
                node = node.inner.setdefault(name, _Node())
                node.seconds += seconds
            self.depth = max(self.depth, len(stack))
        self.drawn: list[str] = []

    def svg(self) -> str:
        height = (self.depth + 2) * self.ROW
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.WIDTH:.0f} {height}" width="{self.WIDTH:.0f}" '
            f'height="{height}" font-family="monospace" font-size="11">'
        )
        self.row("all calls", self.root, 0.0, self.WIDTH, 0)
        return "\n".join([head, *self.drawn, "</svg>\n"])

    def row(self, name: str, node: _Node, left: float, width: float, level: int) -> None:
        if width < self.LEAST:
            return
        self.draw(name, node, left, width, level)
        for inner_name, inner in sorted(node.inner.items()):
            inner_width = width * inner.seconds / node.seconds if node.seconds else 0.0
            self.row(inner_name, inner, left, inner_width, level + 1)
            left += inner_width

    def draw(self, name: str, node: _Node, left: float, width: float, level: int) -> None:
        top = level * self.ROW
        share = 100 * node.seconds / self.root.seconds if self.root.seconds else 100.0
        told = html.escape(f"{name}: {node.seconds:.3f} s, {share:.1f}%")
        hue = 20 + zlib.crc32(name.encode()) % 35
        shown = html.escape(name[: max(0, int((width - 6) / self.CHARACTER))])
        self.drawn.append(
            f'<g><title>{told}</title><rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{self.ROW - 1}" '
            f'rx="1" fill="hsl({hue},85%,66%)"/><text x="{left + 3:.2f}" y="{top + 13}">{shown}</text></g>'
        )


def take(pieces: Pieces | None, message: dict[str, Any]) -> Pieces:
    """Adds a piece that came to those of its job."""
    pieces = pieces or Pieces()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        pieces.add(*message["profile"])
    return pieces
