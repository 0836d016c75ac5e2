"""What other programs do in a data directory behind the daemon's back is in the tree soon: made, changed, moved and
removed by rsync, cp, mv and rm."""

import json
import shutil
import subprocess
import time

import pytest

from harness import Cluster, wait_for
from harness.data import MIB, noise
from harness.node import need_running

SEEN_WITHIN_S = 2
# What a busy machine adds.
SLACK_S = 3
# The tree as another node sees it: every name, with size and content's sum.
SURVEY = """
    import hashlib
    found = {{}}
    for directory, directories, files in os.walk({root!r}):
        for name in directories + files:
            path = os.path.join(directory, name)
            kept = os.path.relpath(path, {root!r})
            if os.path.islink(path):
                found[kept] = os.readlink(path)
            elif os.path.isdir(path):
                found[kept] = "directory"
            else:
                found[kept] = hashlib.sha256(open(path, "rb").read()).hexdigest()
    reply(found)
"""


@pytest.fixture(scope="module")
def trio():
    """Three nodes that follow what is done in their data directories."""
    need_running()
    with Cluster(3) as cluster:
        yield cluster.start(workers=1)


@pytest.fixture(scope="module")
def place(trio):
    """A directory of node 1's data directory, and files elsewhere to copy from."""
    source = trio[1].home / "source"
    for number in range(40):
        file = source / f"d{number % 4}" / f"f{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noise(1000 + 5000 * number, seed=number))
    (source / "large").write_bytes(noise(8 * MIB))
    (source / "link").symlink_to("large")
    return source


def run(*argv):
    subprocess.run([str(word) for word in argv], check=True, stdin=subprocess.DEVNULL, timeout=60)


def survey(node, root):
    return node.ask(SURVEY.format(root=str(root)), timeout=60)


def same_soon(trio, name, what):
    """What the data directory has is what nodes 1 and 2 show."""
    directory = trio[1].datadir / name

    def same():
        expected = survey(trio[1], directory)
        for node in (trio[1], trio[2]):
            found = survey(node, f"/ks/{name}")
            assert found == expected, (what, node.name, differences(found, expected))
        return True

    wait_for(same, SEEN_WITHIN_S + SLACK_S, what, every_s=0.1)


def differences(found, expected):
    keys = sorted(set(found) | set(expected))
    return json.dumps({key: [found.get(key), expected.get(key)] for key in keys if found.get(key) != expected.get(key)})


def test_rsync(trio, place):
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    target = trio[1].datadir / "rsynced"
    run("rsync", "-a", f"{place}/", target)
    same_soon(trio, "rsynced", "rsync made it")
    (place / "d1" / "f1").write_bytes(noise(3000, seed=77))
    (place / "d2" / "new").write_bytes(b"new")
    shutil.rmtree(place / "d3")
    run("rsync", "-a", "--delete", f"{place}/", target)
    same_soon(trio, "rsynced", "rsync changed and deleted")
    run("rsync", "-a", "--inplace", "--no-whole-file", "--ignore-times", f"{place}/", target)
    same_soon(trio, "rsynced", "rsync in place")


def test_cp_mv_rm(trio, place):
    root = trio[1].datadir / "by-hand"
    root.mkdir()
    run("cp", "-a", place, root / "copy")
    same_soon(trio, "by-hand", "cp made a tree")
    run("mv", root / "copy", root / "moved")
    same_soon(trio, "by-hand", "mv of a directory")
    run("mv", root / "moved" / "large", root / "larger")
    run("cp", place / "large", root / "moved" / "d0" / "f0")
    same_soon(trio, "by-hand", "mv of a file, cp over a file")
    run("bash", "-c", f"echo more >>{root}/larger; truncate -s 100 {root}/moved/d1/f5; chmod 600 {root}/moved/d1/f5")
    same_soon(trio, "by-hand", "appended and truncated")
    assert trio[2].exec(["stat", "-c", "%a", "/ks/by-hand/moved/d1/f5"]).text == "600\n"
    run("mv", root / "moved" / "d0", root / "moved" / "d1" / "inside")
    run("rm", "-r", root / "moved" / "d2")
    same_soon(trio, "by-hand", "mv into a directory, rm of another")
    run("rm", "-r", root / "moved", root / "larger")
    same_soon(trio, "by-hand", "rm of all")
    assert survey(trio[3], "/ks/by-hand") == {}


def test_a_file_of_another_name_in_its_place(trio):
    """What editors do: write a new file, move it over the old one."""
    root = trio[1].datadir / "edited"
    root.mkdir()
    for turn in range(5):
        (root / "new~").write_bytes(noise(2000 + turn, seed=turn))
        (root / "new~").rename(root / "text")
        same_soon(trio, "edited", f"turn {turn}")
    assert trio[2].exec(["cat", "/ks/edited/text"]).stdout == noise(2004, seed=4)


def test_kinds_change(trio):
    """A link in a file's place, a file in a directory's, another target: what git checkouts and `ln -sfn` do."""
    root = trio[1].datadir / "kinds"
    root.mkdir()
    (root / "file").write_bytes(b"file")
    (root / "directory").mkdir()
    (root / "directory" / "inner").write_bytes(b"inner")
    (root / "link").symlink_to("file")
    same_soon(trio, "kinds", "made")
    run("ln", "-sfn", "directory", root / "link")
    run("ln", "-sf", "link", root / "file")
    shutil.rmtree(root / "directory")
    (root / "directory").write_bytes(b"a file now")
    same_soon(trio, "kinds", "each of another kind")
    (root / "link").unlink()
    (root / "link").mkdir()
    run("ln", root / "directory", root / "link" / "hard")
    same_soon(trio, "kinds", "and again")


def test_thousands_of_files(trio):
    """A whole tree by `cp -r`, then gone by `rm -r`; another node reads right after."""
    source = trio[1].home / "many"
    for number in range(3000):
        file = source / f"{number % 50}" / f"{number % 7}" / f"file-{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % number)
    run("cp", "-r", source, trio[1].datadir / "many")
    wait_for(lambda: count_files(trio[2], "/ks/many") == 3000, 30, "all files are in the tree", every_s=0.2)
    assert trio[2].exec(["cat", "/ks/many/49/6/file-2099"]).text == "2099"
    same_soon(trio, "many", "cp -r")
    run("rm", "-r", trio[1].datadir / "many")
    wait_for(lambda: not trio[3].shell("ls -d /ks/many", check=False).text, 30, "nothing is left", every_s=0.2)


def count_files(node, path):
    return int(node.shell(f"find {path} -type f 2>/dev/null | wc -l").text)


def test_git(trio):
    """A clone and checkouts in the data directory; another node sees a clean work tree."""
    origin, root = trio[1].home / "origin", trio[1].datadir / "repository"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    run(*git, "init", "-q", origin)
    for turn in range(2):
        for number in range(200):
            file = origin / f"d{number % 20}" / f"f{number}"
            file.parent.mkdir(exist_ok=True)
            if number % 3 == turn:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(b"%d of %d" % (number, turn))
        link = origin / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(f"d{turn}")
        run(*git, "-C", origin, "add", "-A")
        run(*git, "-C", origin, "commit", "-q", "-m", f"turn {turn}")
    run(*git, "clone", "-q", origin, root)
    same_soon(trio, "repository", "a clone")
    for what in ("HEAD~1", "main"):
        run(*git, "-C", root, "checkout", "-q", what)
        same_soon(trio, "repository", f"checked out {what}")
    # Numbers and times of files are not the same there: git looks at their contents.
    status = trio[2].shell("git -c safe.directory='*' -C /ks/repository status --porcelain", timeout=60)
    assert status.text == ""


def test_the_same_file_on_two_nodes(trio):
    """The same bytes: one file, two copies. Other bytes: both are kept, the second under another name."""
    for node in (trio[1], trio[2]):
        (node.datadir / "both").mkdir(exist_ok=True)
    (trio[1].datadir / "both" / "same").write_bytes(noise(50_000, seed=1))
    (trio[1].datadir / "both" / "other").write_bytes(b"of node 1")
    wait_for(lambda: count_files(trio[3], "/ks/both") == 2, 10, "node 1's are in the tree")
    (trio[2].datadir / "both" / "same").write_bytes(noise(50_000, seed=1))
    (trio[2].datadir / "both" / "other").write_bytes(b"another of node 2")
    wait_for(lambda: count_files(trio[3], "/ks/both") == 3, 10, "node 2's are in the tree")
    names = trio[3].exec(["ls", "/ks/both"]).text.split()
    conflict = f"other.conflict-{trio[2].name}"
    assert names == ["other", conflict, "same"]
    assert trio[3].exec(["cat", "/ks/both/other", f"/ks/both/{conflict}"]).text == "of node 1another of node 2"
    assert set(trio[3].holders("both/same")) >= {trio[1].name, trio[2].name}


def test_what_is_removed_while_it_is_read_does_not_come_back(trio):
    """Another node has a copy of it, and the home would bring a file back that it has lost."""
    path = trio[1].datadir / "read-on"
    for attempt in range(5):
        trio[1].exec(["tee", "/ks/read-on"], input=noise(100_000, seed=attempt))
        assert len(trio[2].exec(["cat", "/ks/read-on"]).stdout) == 100_000
        wait_for(lambda: set(trio[1].holders("read-on")) == {"host1", "host2"}, 10)
        path.unlink()
        wait_for(lambda: trio[1].exec(["cat", "/ks/read-on"], check=False).status != 0, 5, every_s=0.01)
        wait_for(lambda: trio[2].exec(["ls", "/ks/read-on"], check=False).status != 0, SEEN_WITHIN_S + SLACK_S)
        assert not path.exists()


def test_a_copy_is_removed(trio):
    """A copy that is removed where it is only a copy is given up; the file stays, and is fetched again."""
    data = noise(300_000, seed=9)
    trio[1].put("copied", data)
    wait_for(lambda: trio[2].shell("ls /ks/copied", check=False).text, 10, "it is in the tree")
    assert trio[2].exec(["cat", "/ks/copied"]).stdout == data
    copy = trio[2].datadir / "copied"
    wait_for(copy.exists, 10, "a copy")
    copy.unlink()
    wait_for(lambda: list(trio[1].holders("copied")) == [trio[1].name], 10, "it is given up")
    assert trio[2].exec(["cat", "/ks/copied"]).stdout == data
    (trio[1].datadir / "copied").unlink()
    wait_for(lambda: not trio[3].shell("ls /ks/copied", check=False).text, 10, "removed at its home")


def content_of(node, name):
    return node.exec(["cat", f"/ks/{name}"], check=False).stdout


def moved_across(trio, attempt):
    name, data = f"crossing-{attempt}", noise(70_000 + attempt, seed=attempt)
    source, target = trio[2].datadir / name, trio[1].datadir / name
    source.write_bytes(data)
    wait_for(lambda: content_of(trio[3], name) == data, 10, "it is in the tree")
    if attempt % 2:
        # The other node has a copy already, which is replaced.
        assert content_of(trio[1], name) == data
        wait_for(target.exists, 10, "a copy")
    run("mv", source, target)
    time.sleep(SEEN_WITHIN_S)
    wait_for(lambda: trio[3].holders(name).keys() >= {"host1"}, 10, "held where it is")
    assert target.read_bytes() == data
    wait_for(lambda: content_of(trio[2], name) == data, 10, "it stays in the tree")
    assert trio[1].exec(["python3", "-c", f"import os; print(os.getxattr('/ks/{name}', 'user.ks.home'))"]).text


def test_moved_from_one_data_directory_to_anothers(trio):
    """All on one disk: the mark goes along, and must not make it a copy that goes with the file that is gone."""
    for attempt in range(4):
        moved_across(trio, attempt)
    other = noise(10_000, seed=50)
    (trio[2].datadir / "crossing-here").write_bytes(other)
    wait_for(lambda: content_of(trio[3], "crossing-here") == other, 10, "it is in the tree")
    run("mv", trio[2].datadir / "crossing-here", trio[1].datadir / "crossing-there")
    wait_for(lambda: content_of(trio[3], "crossing-there") == other, 10, "under its new name")
    wait_for(
        lambda: trio[3].exec(["ls", "/ks/crossing-here"], check=False).status != 0, 10, "and not under the old one"
    )
    time.sleep(SEEN_WITHIN_S)
    assert (trio[1].datadir / "crossing-there").read_bytes() == other


def test_a_tree_is_moved_to_another_nodes_data_directory(trio):
    """By copying and removing, as between machines, and by one rename, as on one disk."""
    source, target = trio[2].datadir / "moving", trio[1].datadir / "moving"
    expected = {}
    for number in range(30):
        expected[f"d{number % 3}/f{number}"] = noise(3000 + number, seed=number)

    def make():
        for name, data in expected.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        wait_for(lambda: count_files(trio[3], "/ks/moving") == 30, 10, "they are in the tree")

    def is_whole():
        assert all((target / name).read_bytes() == data for name, data in expected.items())
        return all(content_of(trio[3], f"moving/{name}") == data for name, data in expected.items())

    make()
    run("cp", "-a", source, target)
    run("rm", "-r", source)
    time.sleep(SEEN_WITHIN_S)
    wait_for(is_whole, 20, "copied and removed", every_s=0.5)
    run("rm", "-r", target)
    wait_for(lambda: trio[3].exec(["ls", "/ks/moving"], check=False).status != 0, 20, "removed")
    make()
    run("mv", source, target)
    time.sleep(SEEN_WITHIN_S)
    wait_for(is_whole, 20, "moved at once", every_s=0.5)
    run("rm", "-r", target)
    wait_for(lambda: trio[3].exec(["ls", "/ks/moving"], check=False).status != 0, 20, "removed again")


def test_somebodys_own_copy_outlives_a_removal_elsewhere(trio):
    """The same bytes were put on two nodes: what is removed behind the back of one stays on the other. `rm` in the tree
    removes both."""
    data = noise(40_000, seed=3)
    for number, names in ((1, ("twice", "thrice")), (2, ("twice", "thrice"))):
        for name in names:
            (trio[number].datadir / name).write_bytes(data)
            wait_for(lambda name=name: content_of(trio[3], name) == data, 10, "in the tree")
    for name in ("twice", "thrice"):
        wait_for(lambda name=name: trio[3].holders(name).keys() >= {"host1", "host2"}, 15, "two copies")
    (trio[1].datadir / "twice").unlink()
    wait_for(lambda: "host1" not in trio[3].holders("twice"), 10, "given up")
    assert (trio[2].datadir / "twice").read_bytes() == data and content_of(trio[1], "twice") == data
    trio[3].shell("rm /ks/twice /ks/thrice")
    for number, name in ((1, "thrice"), (2, "twice"), (2, "thrice")):
        path = trio[number].datadir / name
        wait_for(lambda path=path: not path.exists(), 10, "removed by name")


def test_a_directory_is_moved_and_made_again_at_once(trio, place):
    root = trio[1].datadir / "again"
    root.mkdir()
    run("cp", "-a", place, root / "one")
    same_soon(trio, "again", "made")
    numbers = {name: inode_number(trio[2], f"again/one/{name}") for name in ("", "d1", "d1/f1")}
    run("bash", "-c", f"cd {root} && mv one two && mkdir one && echo new >one/file && mv two three && mkdir -m 700 two")
    same_soon(trio, "again", "moved twice, and made again")
    assert {name: inode_number(trio[2], f"again/three/{name}") for name in numbers} == numbers
    run("bash", "-c", f"cd {root}/three && echo last >d1/last && mv d1 ../d1 && mv ../d1 d2/inner && mkdir d1")
    same_soon(trio, "again", "moved with what was just made in it")
    assert inode_number(trio[2], "again/three/d2/inner") == numbers["d1"]
    run("bash", "-c", f"cd {root} && rm -r three && cp -a {place} three && mv three four")
    same_soon(trio, "again", "made anew, and moved while it was taken in")


def inode_number(node, name):
    return int(node.exec(["stat", "-c", "%i", f"/ks/{name}"]).text)


def test_directories_change_places(trio):
    root = trio[1].datadir / "places"
    for name in ("a", "b", "c"):
        (root / name / "deep").mkdir(parents=True)
        (root / name / "deep" / "file").write_bytes(name.encode() * 5000)
        (root / name / name).write_bytes(b"its own")
    same_soon(trio, "places", "made")
    numbers = {name: inode_number(trio[2], f"places/{name}") for name in ("a", "b", "c")}
    run("bash", "-c", f"cd {root} && mv a t && mv b a && mv t b")
    same_soon(trio, "places", "two changed places")
    assert inode_number(trio[2], "places/a") == numbers["b"] and inode_number(trio[2], "places/b") == numbers["a"]
    run("bash", "-c", f"cd {root} && mv a t && mv b a && mv c b && mv t c")
    same_soon(trio, "places", "three changed places")
    run("bash", "-c", f"cd {root} && rm -r a && mv b a")
    same_soon(trio, "places", "one in the place of one that was removed")
    run("rm", "-r", root)
    wait_for(lambda: trio[3].exec(["ls", "/ks/places"], check=False).status != 0, 10, "removed")


def test_a_directory_is_moved_out(trio, place):
    """What stood there is gone, as if it had been removed; what others have in it stays."""
    root, outside = trio[1].datadir / "leaving", trio[1].home / "outside"
    run("cp", "-a", place, root)
    same_soon(trio, "leaving", "made")
    trio[2].shell("echo of node 2 >/ks/leaving/d2/theirs; mkdir /ks/leaving/theirs; cat /ks/leaving/d1/f1 >/dev/null")
    run("mv", root, outside)
    theirs = "leaving\nleaving/d2\nleaving/d2/theirs\n"
    wait_for(
        lambda: trio[3].shell("cd /ks; find leaving | sort").text == theirs, 15, "what was here is gone", every_s=0.2
    )
    assert (outside / "d1" / "f1").exists()
    run("mv", outside, root)
    here = sum(1 for file in root.rglob("*") if file.is_file() and not file.is_symlink())
    wait_for(lambda: count_files(trio[3], "/ks/leaving") == here + 1, 15, "and back", every_s=0.2)
    assert trio[2].exec(["cat", "/ks/leaving/d1/f1"]).stdout == (place / "d1" / "f1").read_bytes()


def test_modes_are_followed(trio):
    root = trio[1].datadir / "modes"
    (root / "by-hand").mkdir(parents=True)
    (root / "by-hand" / "file").write_bytes(b"x")
    same_soon(trio, "modes", "made")
    trio[2].shell("mkdir -m 2711 /ks/modes/by-ks; echo y >/ks/modes/by-ks/file")
    assert trio[1].exec(["cat", "/ks/modes/by-ks/file"]).text == "y\n"
    wait_for((root / "by-ks").exists, 10, "a copy in its directory")
    time.sleep(SEEN_WITHIN_S)

    def mode(name):
        return trio[3].exec(["stat", "-c", "%a", f"/ks/modes/{name}"]).text.strip()

    assert mode("by-ks") == "2711", "the daemon's own making changes nothing"
    for name in ("by-hand", "by-ks"):
        (root / name).chmod(0o750)
        wait_for(lambda name=name: mode(name) == "750", 5, "followed")
        trio[2].shell(f"chmod 701 /ks/modes/{name}")
        wait_for(lambda name=name: (root / name).stat().st_mode & 0o7777 == 0o701, 5, "the tree's, on disk")
        time.sleep(1)
        assert mode(name) == "701"
    (root / "by-hand" / "file").chmod(0o640)
    wait_for(lambda: mode("by-hand/file") == "640", 5, "a file's")


def test_names_of_the_program_are_not_seen(trio):
    (trio[1].datadir / ".ksfoo").write_bytes(b"x")
    (trio[1].datadir / ".ks-directory").mkdir()
    (trio[1].datadir / ".ks-directory" / "file").write_bytes(b"x")
    (trio[1].datadir / "seen").write_bytes(b"x")
    wait_for(lambda: content_of(trio[3], "seen") == b"x", 10, "in the tree")
    time.sleep(SEEN_WITHIN_S)
    assert not [name for name in trio[1].exec(["ls", "-A", "/ks"]).text.split() if name.startswith(".ks")]
    assert (trio[1].datadir / ".ksfoo").read_bytes() == b"x"


def test_own_changes_are_no_news(trio):
    """A busy tree changes nothing behind its own back: every version is one that a program wrote."""
    trio[1].shell("""
        mkdir /ks/busy; cd /ks/busy
        for n in $(seq 200); do
            echo $n >f$n; mv f$n g$n; ln g$n h$n; chmod 600 g$n; [ $((n % 2)) = 0 ] || rm g$n h$n
        done
        mkdir -p a/b/c; touch a/b/c/d; mv a z; rm -r z
    """)
    trio[2].shell("cd /ks/busy; cat g* >/dev/null; for n in $(seq 2 4 200); do echo more >>g$n; done; rm h4; mv g6 g7")
    time.sleep(SEEN_WITHIN_S)
    expected = {f"{letter}{n}" for n in range(2, 201, 2) for letter in "gh"} - {"h4", "g6"} | {"g7"}
    for node in (trio[1], trio[2], trio[3]):
        assert set(node.exec(["ls", "/ks/busy"]).text.split()) == expected
    versions = trio[1].ask("""
        reply({name: int(os.getxattr("/ks/busy/" + name, "user.ks.version")) for name in os.listdir("/ks/busy")})
    """)
    for name, version in versions.items():
        number = 6 if name == "g7" else int(name[1:])
        assert version == (3 if number % 4 == 2 else 2), (name, version)
    assert "behind the daemon" not in trio[1].log()


def test_what_takes_the_place_of_what_an_event_took_away_stays(trio):
    """Links and directories stand where they were made alone: that node 1 gives up what it had under their names, and
    has nothing there then, does not remove them."""
    trio[1].shell("mkdir /ks/taken; cd /ks/taken; for n in $(seq 30); do echo x >l$n; echo x >d$n; mkdir k$n; done")
    trio[2].python("""
        os.chdir("/ks/taken")
        for n in range(1, 31):
            os.rename(f"l{n}", f"moved{n}")
            os.symlink("elsewhere", f"l{n}")
            os.unlink(f"d{n}")
            os.mkdir(f"d{n}")
            os.rmdir(f"k{n}")
            os.symlink("elsewhere", f"k{n}")
    """)
    time.sleep(SEEN_WITHIN_S)
    expected = {f"{letter}{n}" for n in range(1, 31) for letter in ("l", "d", "k", "moved")}
    for node in (trio[1], trio[2], trio[3]):
        assert set(node.exec(["ls", "/ks/taken"]).text.split()) == expected, node.name


def test_a_link_that_was_renamed_over_is_gone_where_it_was_made(trio):
    trio[2].shell("mkdir /ks/over; ln -s elsewhere /ks/over/one; ln -s elsewhere /ks/over/two")
    trio[1].shell("cd /ks/over; echo x >file; mv file one; ln -s other link; mv -T link two")
    wait_for(lambda: not (trio[2].datadir / "over" / "one").is_symlink(), 5, "the link's name is another's")
    time.sleep(SEEN_WITHIN_S)
    for node in (trio[1], trio[2], trio[3]):
        assert node.shell("cd /ks/over; ls; cat one; readlink two").text == "one\ntwo\nx\nother\n", node.name


def test_a_directory_that_somebody_works_in_stays_known(trio):
    """A copy that is fetched makes the directories above it in the data directory, which is nobody's news."""
    trio[1].shell("mkdir -p /ks/worked/in/deep; echo x >/ks/worked/in/deep/file")
    trio[2].shell("""
        cd /ks/worked/in/deep
        cat file
        for n in 1 2 3 4 5; do sleep 0.4; cat file; python3 -c 'import os; os.getcwd()'; done
    """)
    assert (trio[2].datadir / "worked" / "in" / "deep").is_dir()


@pytest.mark.timeout(400)
def test_twenty_thousand_files_at_once(trio):
    """They are all in the tree, in a time that goes with their number."""
    count = 20_000
    source, root = trio[1].home / "twenty", trio[1].datadir / "twenty"
    for number in range(count):
        file = source / f"d{number % 50}" / f"f{number}"
        if number < 50:
            file.parent.mkdir(parents=True)
        file.write_bytes(b"%d" % number)
    run("cp", "-r", source, root)
    wait_for(lambda: count_files(trio[2], "/ks/twenty") == count, 120, "all are in the tree", every_s=1)
    assert trio[2].exec(["cat", "/ks/twenty/d7/f19957"]).text == "19957"
    run("mv", root / "d7", root / "renamed")
    run("rm", "-r", root / "d8")
    expected = count - count // 50
    wait_for(lambda: count_files(trio[2], "/ks/twenty") == expected, 30, "moved and removed", every_s=1)
    assert trio[2].exec(["cat", "/ks/twenty/renamed/f19957"]).text == "19957"
    shutil.rmtree(source)
    run("rm", "-r", root)
    wait_for(lambda: trio[2].exec(["ls", "/ks/twenty"], check=False).status != 0, 120, "all are gone", every_s=1)


@pytest.mark.timeout(240)
def test_more_directories_than_watches(make_cluster):
    """It is said, and a scan finds what was put into those that are not watched. (The limit is a user namespace's.)"""
    cluster = make_cluster(2)
    first, second = cluster.nodes
    if first.exec(["unshare", "-Ur", "sh", "-c", "echo 5 >/proc/sys/user/max_inotify_watches"], check=False).status:
        pytest.skip("no user namespaces here")
    first.start("--num-workers", 1)
    cluster.copy_key(first, second)
    for number in range(9):
        second.put(f"few/{number}/file", b"before")
    limited = 'echo 5 >/proc/sys/user/max_inotify_watches && exec "$@"'
    command = second.mount_command("--join", first.name, "--num-workers", "0", "-f")
    log = second.home / "said"
    with log.open("wb") as said:
        second.spawn(["unshare", "-Urm", "sh", "-c", limited, "sh", *command], stderr=said)
    wait_for(lambda: count_files(first, "/ks/few") == 9, 60, "the second node is there", every_s=0.5)
    for number in range(9):
        second.put(f"few/{number}/later", b"later")
    wait_for(lambda: count_files(first, "/ks/few") == 18, 90, "a scan finds them", every_s=1)
    assert "more directories than may be watched" in log.read_text()


def test_special_files(trio):
    """Fifos, sockets and devices are there as on a local disk, and connect processes of the node that made them."""
    trio[1].shell("""
        mkdir /ks/special; cd /ks/special
        mkfifo -m 640 fifo
        (echo through >fifo) & timeout 10 cat fifo
    """)
    trio[1].python("""
        import socket, stat, threading
        server = socket.socket(socket.AF_UNIX)
        server.bind("/ks/special/socket")
        server.listen()
        def answer():
            connection, _ = server.accept()
            connection.sendall(b"heard")
            connection.close()
        threading.Thread(target=answer).start()
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect("/ks/special/socket")
        assert client.recv(10) == b"heard"
        os.mknod("/ks/special/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    """)
    told = trio[1].shell("cd /ks/special && stat -c '%n %F %a' fifo socket null").text
    assert told.splitlines()[0] == "fifo fifo 640" and "socket socket" in told and "null character special" in told
    assert trio[2].shell("cd /ks/special && stat -c '%n %F %a' fifo socket null").text == told
    trio[2].shell("rm /ks/special/*; rmdir /ks/special")
    assert trio[1].exec(["ls", "/ks/special"], check=False).status != 0
