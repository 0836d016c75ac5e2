"""What Python users have beside the client: executors, asyncio, joblib and scikit-learn, pandas by url, a notebook; on
three hosts."""

import json
import textwrap


def test_executor_and_asyncio(trio):
    code = """
        import asyncio, math
        from kitchensink import AsyncClient, Executor
        with Executor() as pool:
            squares = list(pool.map(pow, range(50), [2] * 50))
            root = pool.submit(math.sqrt, 16).result(30)

        async def main():
            async with AsyncClient("ks://host2:6323") as client:
                return await asyncio.gather(*(client.call(abs, -number) for number in range(1000)))

        reply([squares, root, asyncio.run(main()) == list(range(1000))])
    """
    squares, root, same = trio[1].ask(code, timeout=120)
    assert squares == [number**2 for number in range(50)] and root == 4.0 and same


def test_a_job_is_found_by_its_id_from_another_process(trio):
    id = trio[1].ask("job = c.call(lambda: time.sleep(1) or 'done')\nreply(str(job))")
    assert trio[2].ask(f"reply(c.result({id!r}, timeout=30))") == "done"


def test_results_as_they_come(trio):
    code = """
        def slow(seconds):
            time.sleep(seconds)
            return seconds
        ordered = list(c.imap(slow, [1.0, 0.0], _no_route_data=True))
        as_completed = list(c.imap(slow, [1.0, 0.0], ordered=False))
        reply([ordered, as_completed, c.map(slow, [0.01] * 40, progress=True)])
    """
    done = trio[1].client(code, timeout=60)
    ordered, as_completed, slept = json.loads(done.text.split("KS-TEST-REPLY:")[1])
    assert (ordered, as_completed, slept) == ([1.0, 0.0], [0.0, 1.0], [0.01] * 40)
    assert "40/40" in done.error


def test_scikit_learn(trio):
    code = """
        import joblib, numpy as np
        import kitchensink.joblib
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score
        random = np.random.default_rng(1)
        X = random.normal(size=(2000, 20))
        y = X[:, 0] + 0.1 * random.normal(size=2000) > 0
        here = cross_val_score(LogisticRegression(), X, y, cv=6)
        with joblib.parallel_backend("kitchensink"):
            there = cross_val_score(LogisticRegression(), X, y, cv=6, n_jobs=-1)
            nodes = joblib.Parallel(batch_size=1)(joblib.delayed(lambda: time.sleep(0.5) or os.uname().nodename)()
                                                  for _ in range(6))
        reply([bool((here == there).all()), float(there.mean()), sorted(set(nodes))])
    """
    same, score, nodes = trio[1].ask(code, timeout=120)
    assert same and score > 0.9
    assert nodes == ["host1", "host2", "host3"]


def test_pandas_by_url_with_no_mount(trio):
    """The client is on host2, and has nothing but the url of host1."""
    trio[3].shell("mkdir -p /ks/urls && seq 1 200000 | sed 's/$/,x/' > /ks/urls/numbers.csv")
    code = """
        import fsspec, pandas as pd
        far = {"url": "ks://host1:6323"}
        frame = pd.read_csv("ks://urls/numbers.csv", names=["n", "letter"], storage_options=far)
        frame.head(3).to_csv("ks://urls/made/head.csv", index=False, storage_options=far)
        again = pd.read_csv("ks://urls/made/head.csv", storage_options=far)
        here = pd.read_csv("ks://urls/numbers.csv", names=["n", "letter"])
        fs = fsspec.filesystem("ks", **far)
        reply([int(frame.n.sum()), list(again.n), len(here), fs.tree.mounted, fs.ls("urls", detail=False)])
    """
    total, head, length, mounted, names = trio[2].ask(code, timeout=90)
    assert total == 200000 * 200001 // 2 and head == [1, 2, 3] and length == 200000
    assert mounted is False and names == ["urls/made", "urls/numbers.csv"]


NOTEBOOK = [
    "%load_ext kitchensink\nfrom kitchensink import client\nc = client()\nscale = 3",
    "%%ks --node host2 -o where\nimport socket\nwhere = socket.gethostname()\nprint('printed there')\nscale * 2",
    "where",
    "values = c.map(lambda x: x + 1, range(30), progress=True)\nsum(values)",
    "c.call(lambda: 1)",
    "%%ks\ndef broken():\n    return {}['nothing']\nbroken()",
]


def test_a_notebook(trio):
    code = f"""
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in {NOTEBOOK!r}])
        runner = NotebookClient(notebook, timeout=60, kernel_name="python3")
        failed = False
        try:
            runner.execute()
        except CellExecutionError:
            failed = True
        reply([failed, [cell.outputs for cell in notebook.cells]])
    """
    failed, outputs = trio[1].ask(textwrap.dedent(code), timeout=120)

    def text(cell):
        return json.dumps(outputs[cell])

    assert failed
    assert "printed there" in text(1) and outputs[1][-1]["data"]["text/plain"] == "6"
    assert outputs[2][0]["data"]["text/plain"] == "'host2'"
    assert "30/30" in text(3) and outputs[3][-1]["data"]["text/plain"] == str(sum(range(1, 31)))
    assert "Job <code>" in outputs[4][0]["data"]["text/html"]
    (error,) = [output for output in outputs[5] if output["output_type"] == "error"]
    assert error["ename"] == "KeyError" and any("return {}['nothing']" in line for line in error["traceback"])
