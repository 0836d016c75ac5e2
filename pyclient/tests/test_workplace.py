"""What one call changes in its process, the next call of the same worker does not find."""

from __future__ import annotations

import os

import pytest
from fake_node import FakeNode

from kitchensink import Client


@pytest.fixture(scope="module")
def client():
    with FakeNode(workers=1) as node, Client(node.socket) as made:
        yield made


def look():
    import decimal
    import locale
    import signal

    handlers = [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)]
    umask = os.umask(0)
    os.umask(umask)
    return dict(os.environ), umask, handlers, locale.setlocale(locale.LC_ALL), decimal.getcontext().prec, os.getpid()


def test_environment_umask_signals_and_locale_do_not_leak(client):
    def change():
        import locale
        import signal

        os.environ["HOME"] = "/nowhere"
        os.environ["KS_TEST_LEAK"] = "yes"
        del os.environ["PATH"]
        os.umask(0o777)
        locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(1)
        return look()

    before = client.call(look, _async=False)
    changed = client.call(change, _async=False)
    assert changed[0]["KS_TEST_LEAK"] == "yes" and changed[1] == 0o777 and changed[2] != before[2]
    after = client.call(look, _async=False)
    assert after == before


def test_a_timer_that_a_call_leaves_behind_ends_nobody(client):
    import time

    def set_alarm():
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        return os.getpid()

    pid = client.call(set_alarm, _async=False)
    time.sleep(0.4)
    assert client.call(os.getpid, _async=False) == pid


def test_a_call_that_raises_is_cleaned_up_after_too(client):
    def fail():
        os.environ["KS_TEST_LEAK"] = "yes"
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        client.call(fail, _async=False)
    assert client.call(os.environ.get, "KS_TEST_LEAK", _async=False) is None
