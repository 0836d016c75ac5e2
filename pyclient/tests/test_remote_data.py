"""Remote data in its three forms, the data functions, and what marked functions leave behind, on a tree that is a plain
directory."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
from fake_node import FakeNode

import kitchensink
from kitchensink import (
    CatalogUnavailable,
    KitchenSinkError,
    NotSerializable,
    RemoteData,
    do,
    dp,
    dr,
    du,
    settings,
    setup_client,
    tree,
)
from kitchensink.utils.decorators import memoize, remote


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def node(root):
    with FakeNode(workers=1, mountpoint=os.fsencode(root)) as running:
        yield running


@pytest.fixture
def c(node):
    made = setup_client(node.socket)
    yield made
    made.close()


VALUE = {"a": [1, 2, 3]}


@pytest.mark.parametrize("format", ["cloudpickle", "pickle", "json"])
def test_conversions(format, tmp_path):
    as_object = do(VALUE, fmt=format)
    assert as_object.obj() is VALUE
    as_bytes = dr(as_object.raw(), fmt=format)
    assert as_bytes.obj() == VALUE
    with open(as_object.local_path(), "rb") as file:
        assert file.read() == as_bytes.raw()
    as_file = dp(as_bytes.local_path(), fmt=format)
    assert as_file.obj() == VALUE and as_file.raw() == as_bytes.raw()


def test_made_of_one_thing_and_of_a_format_that_is_known():
    for wrong in ({}, {"obj": 1, "raw": b""}, {"obj": None, "data_url": "a"}):
        with pytest.raises(TypeError, match="one of obj="):
            RemoteData(**wrong)
    with pytest.raises(TypeError, match="no format is called 'yaml'"):
        do(1, fmt="yaml")
    with pytest.raises(ValueError, match="no data url"):
        du("a/../../b")
    with pytest.raises(NotSerializable, match="cannot be saved as json"):
        do(object(), fmt="json").raw()
    with pytest.raises(NotSerializable, match="not an object in the format pickle"):
        dr(b"junk", fmt="pickle").obj()


def test_save_and_find(c, root):
    saved = do(VALUE, fmt="json").save(prefix="things")
    assert saved.data_url.startswith("things/") and os.listdir(f"{root}/things") == [saved.data_url.split("/")[1]]
    assert du(saved.data_url).obj() == VALUE  # in the format it was saved in
    assert du(f"/{saved.data_url}").local_path() == f"{root}/{saved.data_url}"
    assert c.path_search("thi*") == [saved.data_url] == c.path_search("things/?" + "*")
    assert c.path_search(f"{root}/thi*") == [f"{root}/{saved.data_url}"]
    with pytest.raises(KitchenSinkError, match="exists already"):
        saved.save()
    saved.delete()
    assert c.path_search("things/*") == []
    with pytest.raises(FileNotFoundError):
        du(saved.data_url).obj()


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(c, root, monkeypatch):
    do(VALUE).save(url="listed/a")
    os.mkdir(f"{root}/listed/below")
    plain = os.scandir

    def away(number):
        def scandir(path):
            if os.fspath(path).endswith("below"):
                raise OSError(number, os.strerror(number), path)
            return plain(path)

        return scandir

    monkeypatch.setattr(os, "scandir", away(errno.EIO))
    for search in (c.path_search, c.reducetree):
        with pytest.raises(CatalogUnavailable, match="below.*Redis"):
            search("listed/*")
    monkeypatch.setattr(os, "scandir", away(errno.ENOTCONN))
    with pytest.raises(OSError, match="not connected"):
        c.path_search("listed/*")
    monkeypatch.setattr(os, "scandir", away(errno.ENOENT))
    assert c.path_search("listed/*") == ["listed/a"], "and nothing was removed"


def test_nothing_is_also_an_object(c):
    do(None).save(url="nothing")
    assert du("nothing").obj() is None and pickle.loads(pickle.dumps(do(None))).obj() is None


def test_travels_as_its_url_and_unsaved_as_what_it_is(c, node, root):
    saved = do(VALUE).save(url="travel/saved")
    assert c.call(lambda data: (data.obj(), data.local_path()), saved, _async=False) == (VALUE, f"{root}/travel/saved")
    assert node.calls[-1]["paths"] == [os.fsencode(f"{root}/travel/saved")]
    for unsaved in (do(VALUE), dr(pickle.dumps(VALUE))):
        assert c.call(lambda data: data.obj(), unsaved, _async=False) == VALUE
    nested = c.call(lambda several: several["x"][0].save(prefix="travel").data_url, {"x": [do(1)]}, _async=False)
    assert du(nested).obj() == 1


def test_slices_are_made_on_the_node(c):
    saved = do(list(range(100))).save()
    part = saved[10:20]
    assert part.data_url.startswith("slices/") and part.obj() == list(range(10, 20))
    assert part[0].obj() == 10


def test_remote(c):
    @remote
    def double(values, scale=2):
        return [scale * value for value in values]

    assert double([1, 2]).obj() == [2, 4] and double(do([1, 2]), scale=do(3)).obj() == [3, 6]
    result = c.call(double, do([1, 2]).save(), scale=5, _prefix="doubled", _async=False)
    assert result.data_url.startswith("doubled/") and result.obj() == [5, 10]
    job = c.call(double, [1])
    assert job.name.endswith("double") and job.result(10).obj() == [2]


def test_memoize(c, tmp_path):
    count = tmp_path / "count"

    @memoize
    def add(x, y):
        with open(count, "a") as file:
            file.write(".")
        return x + y

    assert [c.call(add, 1, 2, _async=False), c.cs(add, 1, 2), *c.map(add, [1, 2], [2, 2])] == [3, 3, 3, 4]
    assert count.read_text() == ".." and len(c.path_search("memoize/*")) == 2
    assert len(c.reducetree("memoize*")) == 2 and c.cs(add, 1, 2) == 3
    assert count.read_text() == "..."
    assert add(1, 2) == 3 and count.read_text() == "....", "called directly it is the function that it was"


def test_a_client_with_no_mount(c, monkeypatch, root):
    """Everything through calls, as for a node of another machine."""
    monkeypatch.setattr(type(c), "local_mountpoint", None)
    monkeypatch.setattr(tree, "PIECE_BYTES", 1000)
    data = os.urandom(3500)
    dr(data).save(url="far/raw")
    do(VALUE).save(url="far/object")
    assert c.path_search("far/*") == ["far/object", "far/raw"]
    assert du("far/raw").raw() == data and du("far/object").obj() == VALUE
    with open(du("far/raw").local_path(), "rb") as copy:
        assert copy.read() == data and not copy.name.startswith(root)
    assert sorted(os.listdir(f"{root}/far")) == ["object", "raw"]
    du("far/raw").delete()
    assert c.path_search("far/*") == ["far/object"]
    with pytest.raises(FileNotFoundError):
        du("far/raw").raw()


def test_a_file_is_seen_whole_or_not_at_all(root):
    path = f"{root}/whole"
    with pytest.raises(RuntimeError), tree.fresh_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert not os.path.exists(path) and not [name for name in os.listdir(root) if "whole" in name]


def test_settings(c, node):
    assert settings.is_server is False and settings.host_name == "fake" and settings.rpc_url == node.socket
    assert settings.client() is kitchensink.client() is c
    assert settings.client(queue_name="data")._defaults["_queue_name"] == "data"

    def there():
        from kitchensink import settings

        return settings.is_server, settings.host_name, settings.host_url

    assert c.call(there, _async=False) == (True, "fake", "http://127.0.0.1:6323/")
