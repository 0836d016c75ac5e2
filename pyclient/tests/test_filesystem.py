"""`ks://` for fsspec, with a mount (a plain directory) and through calls."""

from __future__ import annotations

import os

import pytest
from fake_node import FakeNode

fsspec = pytest.importorskip("fsspec")

from kitchensink import Client, tree  # noqa: E402
from kitchensink.filesystem import KitchenSinkFileSystem  # noqa: E402


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def node(root):
    with FakeNode(workers=1, mountpoint=os.fsencode(root)) as running:
        yield running


@pytest.fixture(params=["mounted", "not mounted"])
def fs(node, root, request, monkeypatch):
    if request.param == "not mounted":
        monkeypatch.setattr(Client, "local_mountpoint", None)
        monkeypatch.setattr(tree, "PIECE_BYTES", 1000)
    made = KitchenSinkFileSystem(url=node.socket, skip_instance_cache=True)
    yield made
    if os.path.exists(f"{root}/d"):
        made.rm("d", recursive=True)
    assert os.listdir(root) == []


def test_files_and_directories(fs, root):
    fs.makedirs("d/e")
    with pytest.raises(FileExistsError):
        fs.makedirs("d/e")
    data = os.urandom(5000)
    with fs.open("ks://d/e/f", "wb", block_size=1500) as file:
        assert file.write(data) == 5000
    with open(f"{root}/d/e/f", "rb") as file:
        assert file.read() == data
    assert os.listdir(f"{root}/d/e") == ["f"]
    assert fs.info("d/e/f")["size"] == 5000 and fs.isdir("d/e") and fs.exists("d/e/f") and not fs.exists("d/x")
    with fs.open("d/e/f", "rb") as file:
        assert file.read(10) == data[:10] and file.seek(-10, 2) == 4990 and file.read() == data[-10:]
    assert fs.cat_file("d/e/f", 100, 200) == data[100:200] and fs.cat_file("d/e/f", -5) == data[-5:]
    assert fs.ls("d", detail=False) == ["d/e"] and fs.ls("ks://d/e")[0]["name"] == "d/e/f"
    fs.cp_file("d/e/f", "d/g")
    fs.mv("d/g", "d/h/i")
    assert fs.find("d") == ["d/e/f", "d/h/i"] and fs.glob("d/*/i") == ["d/h/i"] and fs.cat("d/h/i") == data
    assert fs.modified("d/h/i").tzinfo is not None and fs.ls("", detail=False) == ["d"]
    fs.rm("d/h/i")
    fs.rmdir("d/h")
    for missing in (lambda: fs.info("d/h"), lambda: fs.ls("d/h"), lambda: fs.open("d/nothing").read()):
        with pytest.raises(FileNotFoundError):
            missing()


def test_text_by_url(fs, node):
    with fs.open("d/text.csv", "w") as file:
        file.write("a,b\n1,2\n")
    fsspec.register_implementation("ks", KitchenSinkFileSystem, clobber=True)
    with fsspec.open("ks://d/text.csv", "r", url=node.socket) as file:
        assert file.read() == "a,b\n1,2\n"


def test_a_file_in_the_root_by_url(fs, node):
    fsspec.register_implementation("ks", KitchenSinkFileSystem, clobber=True)
    with fsspec.open("ks://out.csv", "w", url=node.socket, skip_instance_cache=True) as file:
        file.write("a,b\n")
    assert fs.cat_file("out.csv") == b"a,b\n"
    fs.rm("out.csv")
    with pytest.raises(FileExistsError):
        fs.makedirs("")


def test_what_is_not_finished_is_not_seen(fs, root):
    fs.makedirs("d")
    file = fs.open("d/unfinished", "wb", autocommit=False)
    file.write(b"x" * 3000)
    file.close()
    assert fs.find("d") in ([], [name for name in fs.find("d") if name.endswith(".part")])
    file.discard()
    assert fs.find("d") == []
