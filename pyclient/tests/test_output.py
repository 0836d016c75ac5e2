"""What calls print and log is seen where they were called."""

from __future__ import annotations

import io
import logging
import os
import sys
import time

import pytest
from fake_node import until


def test_prints_come_to_the_callers_streams(client, capsys):
    def talk():
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")
        os.write(1, "ü".encode())

    client.call(talk, _async=False)
    captured = capsys.readouterr()
    assert captured.out == "to stdout\nfrom a child\nü"
    assert captured.err == "to stderr\n"


def test_what_is_unflushed_and_unfinished_is_there_before_the_result(client, capsys):
    client.call(lambda: print("no newline", end=""), _async=False)
    assert capsys.readouterr().out == "no newline"


def test_prints_are_seen_as_they_happen_though_nobody_waits(client, monkeypatch):
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", seen)

    def slow():
        print("begun")
        time.sleep(0.5)

    job = client.call(slow)
    until(lambda: "begun" in seen.getvalue())
    assert not job.done()
    job.result()


def test_intermediate_results_can_be_turned_off(client, capsys, caplog):
    def talk():
        print("unseen")
        logging.getLogger("quiet").error("unseen")

    client.call(talk, _intermediate_results=False, _async=False)
    assert capsys.readouterr().out == "" and not caplog.records


def test_log_records_come_to_the_logger_of_the_same_name(client, caplog, capsys):
    def log():
        logging.getLogger("my.logger").warning("number %d", 5)
        logging.getLogger("my.logger").debug("too low")
        try:
            raise ValueError("inside")
        except ValueError:
            logging.getLogger("my.logger").exception("it failed")

    job = client.call(log)
    job.result()
    records = [record for record in caplog.records if record.name == "my.logger"]
    assert [record.getMessage().split("\n")[0] for record in records] == ["number 5", "it failed"]
    assert records[0].levelno == logging.WARNING and records[0].ks_node == "fake" and records[0].ks_job == job.id
    assert "ValueError: inside" in records[1].getMessage()
    assert capsys.readouterr().err == "", "logged once, not printed beside"


def test_the_callers_level_decides(client, caplog):
    logging.getLogger("levelled").setLevel(logging.ERROR)
    client.call(lambda: logging.getLogger("levelled").warning("too low here"), _async=False)
    assert not caplog.records


def test_a_stream_that_cannot_be_written_does_not_harm_the_call(client, monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    assert client.call(lambda: print("x"), _async=False) is None
    monkeypatch.setattr(sys, "stdout", None)
    assert client.call(lambda: print("x"), _async=False) is None


def test_a_call_that_replaces_stdout_does_not_keep_it(client, capsys):
    def replace():
        sys.stdout = io.StringIO()

    client.call(replace, _async=False)
    for _ in range(4):
        client.call(lambda: print("seen"), _async=False)
    assert capsys.readouterr().out == "seen\n" * 4


def test_much_output(client, capsys):
    client.call(lambda: print("x" * 1_000_000), _async=False)
    assert capsys.readouterr().out == "x" * 1_000_000 + "\n"


@pytest.mark.parametrize(
    "argv,status",
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -9 $$"], 137),
        (["/no/such"], 127),
        (["/etc/hostname"], 126),
    ],
)
def test_run_command_returns_the_status(client, argv, status):
    assert client.call("kitchensink.builtins:run_command", argv, _async=False) == status


def test_run_command_streams_and_takes_cwd_and_env(client, capsys, tmp_path):
    script = "pwd; echo $NAME; echo oops >&2"
    client.call(
        "kitchensink.builtins:run_command", ["sh", "-c", script], cwd=str(tmp_path), env={"NAME": "v"}, _async=False
    )
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}\nv\n" and captured.err == "oops\n"


def test_a_cancelled_command_is_ended(client):
    job = client.call("kitchensink.builtins:run_command", ["sleep", "30"])
    until(job.running)
    time.sleep(0.1)
    began = time.monotonic()
    job.cancel()
    job.exception(10)
    assert job.cancelled() and time.monotonic() - began < 5
