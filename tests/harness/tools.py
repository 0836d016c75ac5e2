"""Programs from crates.io that tests run: installed once, below `target/`, by the cargo that built the project."""

import os
import subprocess
from pathlib import Path

import pytest

from .hosts import REPOSITORY

TOOLS = REPOSITORY / "target" / "tools"
# A few crates to compile, on a machine with other work.
INSTALL_TIMEOUT_S = 900


def crate(name: str, version: str) -> Path:
    """The program of a crate, installed where it is not there yet; the test is skipped where that cannot be done."""
    program = TOOLS / version / "bin" / name
    if not program.exists():
        # Unoptimised: what they do takes no time of theirs.
        argv = ["cargo", "install", "--locked", "--debug", "--root", str(TOOLS / version), f"{name}@{version}"]
        path = f"{os.environ['PATH']}:{Path.home() / '.cargo/bin'}"
        environment = {**os.environ, "PATH": path, "CARGO_TARGET_DIR": str(TOOLS / "build")}
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
        if done.returncode != 0:
            pytest.skip(f"{name} {version} cannot be installed: {done.stderr.strip()[-500:]}")
    return program
