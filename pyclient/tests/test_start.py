"""The seeds' way to start a node, as the `ks mount` that it becomes."""

from __future__ import annotations

import os

import pytest

from kitchensink.scripts import start


def command(line):
    return start.command(start.parser().parse_args(line.split()))


def test_the_quickstart():
    assert command("--datadir /tmp/data1 --num-workers 4") == [
        *("ks", "mount", "/ks", "--foreground", "--datadir", "/tmp/data1", "--num-workers", "4")
    ]
    assert command("")[5] == os.path.abspath("tmp")


def test_a_production_deployment():
    made = command(
        "--datadir /tmp/data --no-redis --node-url=http://host1:6324/ --node-name one --num-workers 4 "
        "--redis-connection tcp://localhost:6379?db=9 --queue default --queue gpu --module a --module b --read-only"
    )
    pairs = dict(zip(made, made[1:]))
    assert pairs["--redis"] == "tcp://localhost:6379?db=9" and pairs["--listen"] == ":6324"
    assert pairs["--node-url"] == "http://host1:6324/" and pairs["--node-name"] == "one"
    assert [made[at + 1] for at, flag in enumerate(made) if flag == "--queue"] == ["gpu"]
    assert [made[at + 1] for at, flag in enumerate(made) if flag == "--module"] == ["a", "b"]
    assert "--no-redis" in made and "--read-only" in made


def test_without_the_program(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="the program ks is not on the PATH"):
        start.main(["--datadir", str(tmp_path / "data")])
