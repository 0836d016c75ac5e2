"""What other programs do in a data directory, in the ways that they do it, also while others write through /ks."""

import hashlib
import json
import os
import random
import subprocess
import time
from functools import partial

import pytest

from harness import Cluster, wait_for
from harness.data import MIB, noise
from harness.node import need_running

SOON_S = 8


@pytest.fixture(scope="module")
def pair():
    need_running()
    with Cluster(2) as cluster:
        yield cluster.start(workers=1)


def names(node, directory):
    return sorted(node.exec(["ls", "-A", f"/ks/{directory}"]).text.split())


def same_bytes_soon(pair, name, content, within_s=SOON_S):
    for node in (pair[1], pair[2]):
        wait_for(partial(has_bytes, node, name, content), within_s, f"{name} on {node.name}")


def has_bytes(node, name, content):
    return node.exec(["cat", f"/ks/{name}"], check=False).stdout == content


def succeeds(run):
    return run().status == 0


def has_names(node, directory, expected):
    return names(node, directory) == sorted(expected)


def test_how_editors_save(pair):
    """vim: the old one to NAME~, a new one under the name; others rename a new one over it, or write in place."""
    root = pair[1].datadir / "edit"
    root.mkdir()
    file, backup = root / "text", root / "text~"
    file.write_bytes(b"0" * 1000)
    same_bytes_soon(pair, "edit/text", b"0" * 1000)
    for turn in range(1, 9):
        content = str(turn).encode() * (1000 + turn)
        if turn % 3 == 0:
            os.rename(file, backup)
            file.write_bytes(content)
            backup.unlink()
        elif turn % 3 == 1:
            (root / ".text.swp").write_bytes(content)
            os.rename(root / ".text.swp", file)
        else:
            os.link(file, backup)
            file.write_bytes(content)
            backup.unlink()
        if turn % 2:
            same_bytes_soon(pair, "edit/text", content)
    same_bytes_soon(pair, "edit/text", content)
    wait_for(lambda: names(pair[2], "edit") == ["text"], SOON_S)
    os.rename(file, backup)
    file.write_bytes(b"after")
    same_bytes_soon(pair, "edit/text", b"after")
    same_bytes_soon(pair, "edit/text~", content)


def test_holes_and_hard_links(pair):
    root = pair[1].datadir / "kinds-of-files"
    root.mkdir()
    sparse = root / "sparse"
    with sparse.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(40 * MIB)
        file.write(b"in the middle")
    digest = hashlib.sha256(sparse.read_bytes()).hexdigest()
    os.link(sparse, root / "again")
    for turn in range(30):
        os.link(root / "sparse", root / f"link{turn}")
    wait_for(lambda: len(names(pair[2], "kinds-of-files")) == 32, SOON_S)
    for node in (pair[1], pair[2]):
        sums = node.shell(
            "cd /ks/kinds-of-files && sha256sum sparse again link7 && stat -c %h:%i * | sort -u", timeout=120
        ).text.split()
        assert sums[0] == sums[2] == sums[4] == digest
        assert len(sums) == 7 and sums[6].startswith("32:"), sums
    for turn in range(30):
        (root / f"link{turn}").unlink()
    (root / "again").unlink()
    wait_for(lambda: names(pair[2], "kinds-of-files") == ["sparse"], SOON_S)
    wait_for(lambda: pair[2].exec(["stat", "-c", "%h", "/ks/kinds-of-files/sparse"]).text == "1\n", SOON_S)
    assert sparse.stat().st_blocks * 512 < 2 * MIB


def test_deleted_and_made_again_quickly(pair):
    root = pair[1].datadir / "again"
    root.mkdir()
    dice = random.Random(7)
    content = {}
    for turn in range(600):
        name = f"f{dice.randrange(12)}"
        if name in content and dice.random() < 0.5:
            (root / name).unlink()
            del content[name]
        else:
            content[name] = f"{turn} {name}".encode() * dice.randrange(1, 400)
            (root / name).write_bytes(content[name])
        if dice.random() < 0.1:
            time.sleep(dice.random() / 2)
    wait_for(lambda: names(pair[2], "again") == sorted(content), SOON_S)
    for name, expected in content.items():
        same_bytes_soon(pair, f"again/{name}", expected)


SLOWLY = """
import sys, time
with open(sys.argv[1], "wb", buffering=0) as file:
    for number in range(80):
        file.write(bytes([number]) * 25000)
        time.sleep(0.15)
"""


def test_a_file_that_is_written_slowly(pair):
    """Whoever reads it meanwhile sees a beginning of it, and when it is closed all of it is there with its hash."""
    file = pair[1].datadir / "slowly"
    writer = subprocess.Popen(["python3", "-c", SLOWLY, str(file)])
    whole = b"".join(bytes([number]) * 25000 for number in range(80))
    seen = 0
    while writer.poll() is None:
        found = pair[2].exec(["cat", "/ks/slowly"], check=False).stdout
        assert whole.startswith(found), "never what was not written"
        seen = max(seen, len(found))
        time.sleep(0.3)
    assert writer.returncode == 0
    same_bytes_soon(pair, "slowly", whole)
    pair[1].ks("verify", "/ks/slowly", timeout=60)
    print(f"{seen} bytes were seen before it was closed")


WRITER = """
import os, random, sys, time
root, stop, log = sys.argv[1:]
dice = random.Random(11)
with open(log, "w") as log:
    number = 0
    while not os.path.exists(stop):
        number += 1
        name = f"mine-{number % 40}"
        with open(f"{root}/{name}", "w") as file:
            file.write(f"{number} " * dice.randrange(1, 200))
        print(name, number, file=log, flush=True)
        with open(f"{root}/appended", "a") as file:
            file.write(f"{number}\\n")
"""


def test_writers_beside_rsync(pair, tmp_path):
    """Programs write through /ks on both nodes, into the directory that rsync fills and empties behind their back."""
    root = pair[1].datadir / "busy"
    source = tmp_path / "source"
    source.mkdir()
    for number in range(120):
        (source / f"theirs-{number}").write_bytes(noise(500 + 40 * number, seed=number))
    root.mkdir()
    (root / "first").write_bytes(b"first")
    wait_for(lambda: "first" in names(pair[2], "busy"), SOON_S)
    stop = pair[1].home / "stop-writing"
    logs = []
    writers = []
    for node in (pair[1], pair[2]):
        node.shell(f"mkdir /ks/busy/{node.name}")
        log = node.home / "written"
        logs.append((node, log))
        writers.append(
            node.spawn(["python3", "-c", WRITER, f"/ks/busy/{node.name}", stop, log], stderr=subprocess.PIPE)
        )
    # Files of both kinds in one directory: theirs beside what is written through /ks.
    for turn in range(6):
        for target in ("host1", "host2"):
            subprocess.run(["rsync", "-a", f"{source}/", f"{root}/{target}/"], check=True, timeout=60)
        if turn % 2:
            for number in range(0, 120, 3):
                (root / "host1" / f"theirs-{number}").unlink()
        time.sleep(0.7)
    for target in ("host1", "host2"):
        subprocess.run(["rsync", "-a", f"{source}/", f"{root}/{target}/"], check=True, timeout=60)
    stop.touch()
    for writer in writers:
        _, error = writer.communicate(timeout=30)
        assert writer.returncode == 0, error
    stop.unlink()
    for node, log in logs:
        written = dict(line.split() for line in log.read_text().splitlines())
        count = len(log.read_text().splitlines())
        assert count > 40
        for reader in (pair[1], pair[2]):
            listing = f"/ks/busy/{node.name}"
            ours = {name for name in names(reader, f"busy/{node.name}") if not name.startswith("theirs")}
            expected = ours | {f"theirs-{number}" for number in range(120)}
            wait_for(partial(has_names, reader, f"busy/{node.name}", expected), SOON_S, listing)
            code = f"""
                import json
                above = {listing!r}
                contents = {{name: open(f"{{above}}/{{name}}", "rb").read().hex() for name in os.listdir(above)}}
                print(json.dumps(contents))
            """
            texts = {name: bytes.fromhex(text) for name, text in json.loads(reader.python(code).text).items()}
            for name, number in written.items():
                assert texts[name].decode().split()[0] == number, (node.name, reader.name, name)
            lines = texts["appended"].decode().split()
            assert lines == [str(number + 1) for number in range(count)], (node.name, reader.name)
            for number in range(120):
                assert texts[f"theirs-{number}"] == noise(500 + 40 * number, seed=number)
            assert not [name for name in texts if "conflict" in name]
        print(f"{node.name}: {count} files written")


def test_removed_behind_the_back_of_an_open_writer(pair):
    """Who has it open through /ks writes on, and what takes its place is not harmed."""
    pair[1].exec(["mkdir", "/ks/open"])
    for node in (pair[1], pair[2]):
        name = f"by-{node.name}"
        code = f"""
import time
with open("/ks/open/{name}", "w", buffering=1) as file:
    file.write("begun\\n")
    open("/ks/open/{name}.ready", "w").close()
    time.sleep(4)
    file.write("ended\\n")
"""
        writer = node.spawn(["python3", "-c", code], stderr=subprocess.PIPE)
        ready = partial(pair[2].exec, ["test", "-e", f"/ks/open/{name}.ready"], check=False)
        wait_for(partial(succeeds, ready), SOON_S)
        home = node.datadir / "open" / name
        wait_for(home.exists, SOON_S)
        replacement = node.datadir / "open" / "replacement"
        replacement.write_bytes(b"put in its place")
        os.rename(replacement, home)
        _, error = writer.communicate(timeout=30)
        assert writer.returncode == 0, error
        same_bytes_soon(pair, f"open/{name}", b"put in its place")
