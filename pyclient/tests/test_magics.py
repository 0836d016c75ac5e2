"""`%%ks`: a cell's names, and the magic in a real IPython."""

from __future__ import annotations

import pytest

from kitchensink import cells, setup_client

interactiveshell = pytest.importorskip("IPython.core.interactiveshell")


def test_names():
    read, made = cells.names("import a.b as c, d\nx = y\ndef f(z):\n    w = g(z)\nfor i in j: k = 1\nclass L: pass\nx")
    assert read == {"y", "g", "z", "j", "x"} and made == {"c", "d", "x", "f", "i", "k", "L"}


def test_inputs():
    namespace = {"y": 1, "len": 5, "other": 2}
    assert cells.inputs("x = y + len([])", namespace) == {"y": 1}
    assert cells.inputs("x = y", namespace, ["other"]) == {"other": 2}
    with pytest.raises(NameError, match="nothing, what: not defined here"):
        cells.inputs("", namespace, ["y", "what", "nothing"])
    with pytest.raises(SyntaxError):
        cells.inputs("x =", {})


def test_run():
    assert cells.run("x = y + 1\nx * 2", {"y": 1}, ["x"]) == (4, {"x": 2})
    assert cells.run("x = 1", {}, []) == (None, {})
    with pytest.raises(NameError, match="does not define z"):
        cells.run("x = 1", {}, ["z"])


@pytest.fixture
def shell(node):
    with setup_client(node.socket):
        made = interactiveshell.InteractiveShell()
        made.run_line_magic("load_ext", "kitchensink")
        yield made
        made.history_manager.end_session()


def run(shell, cell):
    done = shell.run_cell(cell)
    error = done.error_in_exec or done.error_before_exec
    if error is not None:
        raise error
    return done.result


def test_a_cell(shell, capsys):
    run(shell, "scale = 3\ndef times(x):\n    return scale * x")
    value = run(
        shell, "%%ks -o x,kind\nimport os\nprint('there', os.environ['KS_NODE_NAME'])\nx = times(2)\nkind = dict\nx"
    )
    assert value == 6 and shell.user_ns["x"] == 6 and shell.user_ns["kind"] is dict and "os" not in shell.user_ns
    assert "there fake" in capsys.readouterr().out


def test_what_a_cell_raises(shell):
    with pytest.raises(ZeroDivisionError) as caught:
        run(shell, "%%ks\ny = 0\nx = 1 / y")
    assert "x = 1 / y" in str(caught.value.__cause__) and caught.value.ks_node == "fake"
    with pytest.raises(NameError, match="nothing: not defined here"):
        run(shell, "%%ks -i nothing\n1")
    with pytest.raises(TypeError, match="sent along: lock; -i names"):
        run(shell, "import threading\nlock = threading.Lock()") or run(shell, "%%ks\nlock")


def test_options(shell, node):
    job = run(shell, "%%ks --async --near /ks/a --node fake --queue gpu --timeout 5\n1 + 1")
    assert job.result(10) == (2, {})
    call = node.calls[-1]
    assert (call["locality"], call["node"], call["queue"], call["timeout_ms"]) == ([b"/ks/a"], "fake", "gpu", 5000)
    assert run(shell, "%ks_client").node == "fake"
