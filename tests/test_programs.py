"""What people do all day, on `/ks`: a git clone, a build, arrays that are mapped, files that one node writes and
another reads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.hosts import REPOSITORY

MAPPED_BYTES = 4 << 20
CLONE_TIMEOUT_S = 120


def is_repository():
    done = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, timeout=20)
    return done.returncode == 0


def test_git_clone_of_this_project(trio):
    if not is_repository():
        pytest.skip("these sources are not a git repository")
    trio[1].shell(
        f"""
        git config --global --add safe.directory '*'
        git clone -q {REPOSITORY} /ks/clone
        cd /ks/clone
        git fsck --strict --no-dangling
        git checkout -q -b work
        echo one more >>README.md
        git -c user.name=n -c user.email=e commit -qam change
        git gc -q
        test -z "$(git status --porcelain)"
        """,
        timeout=CLONE_TIMEOUT_S,
    )
    # The other nodes have the same tree, and work in it in turn.
    for node in (trio[2], trio[3]):
        node.shell(
            f"""
            git config --global --add safe.directory '*'
            cd /ks/clone
            test -z "$(git status --porcelain)"
            echo {node.name} >>README.md
            git -c user.name=n -c user.email=e commit -qam {node.name}
            git fsck --strict --no-dangling
            """,
            timeout=CLONE_TIMEOUT_S,
        )
    log = trio[1].shell("cd /ks/clone && git log -3 --format=%s && git fsck --no-dangling", timeout=CLONE_TIMEOUT_S)
    assert log.text.split() == ["host3", "host2", "change"]


SMALL_CRATE = {
    "Cargo.toml": '[package]\nname = "small"\nversion = "0.1.0"\nedition = "2021"\n',
    "build.rs": 'fn main() { println!("cargo:rustc-env=BUILT=by a build script") }\n',
    "src/lib.rs": '/// Says it.\npub fn said() -> &\'static str {\n    env!("BUILT")\n}\n',
    "src/main.rs": 'fn main() {\n    println!("{}", small::said())\n}\n',
    "tests/it.rs": '#[test]\nfn it_is_said() {\n    assert_eq!(small::said(), "by a build script");\n}\n',
}


@pytest.mark.timeout(400)
def test_cargo_build(trio):
    cargo = shutil.which("cargo") or Path.home() / ".cargo/bin/cargo"
    homes = {"CARGO_HOME": Path.home() / ".cargo", "RUSTUP_HOME": Path.home() / ".rustup"}
    environment = " ".join(f"{name}={os.environ.get(name, path)}" for name, path in homes.items())
    for name, text in SMALL_CRATE.items():
        path = f"/ks/small/{name}"
        trio[1].shell(f"mkdir -p {os.path.dirname(path)}")
        trio[1].exec(["tee", path], input=text.encode())
    build = f"cd /ks/small && env -u CARGO_TARGET_DIR {environment} {cargo}"
    trio[1].shell(f"{build} test --offline", timeout=180)
    trio[1].shell(f"{build} build --offline", timeout=180)
    fresh = trio[1].shell(f"{build} build --offline", timeout=180)
    assert "Compiling" not in fresh.error, "what is built is not built again"
    for node in trio.nodes:
        assert node.exec(["/ks/small/target/debug/small"]).text == "by a build script\n"


WRITE_MAPPED = """
    import numpy as np
    array = np.memmap({path!r}, dtype="u4", mode={mode!r}, shape=({count},))
    array[{part}] = np.arange({count}, dtype="u4")[{part}] * {factor}
    array.flush()
    del array
"""
READ_MAPPED = """
    import numpy as np
    array = np.memmap({path!r}, dtype="u4", mode="r")
    reply([len(array), int(array[1]), int(array[-1]), int(array.sum(dtype="u8"))])
"""


@pytest.mark.parametrize("maker, other", [(1, 2), (2, 1)])
def test_numpy_memmap_both_ways(trio, maker, other):
    """One node makes and maps the file, another maps it for writing where it is not at home, and all read."""
    path, count = f"/ks/mapped-{maker}", MAPPED_BYTES // 4
    trio[maker].python(WRITE_MAPPED.format(path=path, mode="w+", count=count, part=":", factor=1))
    whole = count * (count - 1) // 2
    for node in trio.nodes:
        assert node.ask(READ_MAPPED.format(path=path)) == [count, 1, count - 1, whole]
    half = count // 2
    trio[other].python(WRITE_MAPPED.format(path=path, mode="r+", count=count, part=f"{half}:", factor=2))
    upper = whole - half * (half - 1) // 2
    for node in trio.nodes:
        assert node.ask(READ_MAPPED.format(path=path)) == [count, 1, 2 * (count - 1), whole + upper]


def test_hdf5_written_on_one_node_and_read_on_another(trio):
    write = """
        import h5py, numpy as np
        with h5py.File("/ks/across.h5", "{mode}") as file:
            values = np.arange(300_000, dtype="f8").reshape(300, 1000) + {add}
            file.create_dataset("{name}", data=values, chunks=(50, 100), compression="gzip").attrs["add"] = {add}
    """
    for turn, node in enumerate((trio[1], trio[2], trio[1], trio[3])):
        node.python(write.format(mode="w" if turn == 0 else "a", name=f"set{turn}", add=turn))
    read = """
        import h5py
        with h5py.File("/ks/across.h5", "r") as file:
            reply([[name, float(data[:].sum()), int(data.attrs["add"])] for name, data in file.items()])
    """
    expected = [[f"set{turn}", 300_000 * 299_999 / 2 + 300_000.0 * turn, turn] for turn in range(4)]
    for node in trio.nodes:
        assert node.ask(read) == expected


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


# Each on a file of its own, while it is being loaded: what a running program is made of must not go.
TRUNCATES_WHAT_RUNS = """
import errno, os, shutil, subprocess, sys
program = open(shutil.which("sleep"), "rb").read()
for turn in range(100):
    path = f"{sys.argv[1]}/program-{turn}"
    with open(path, "wb") as file:
        file.write(program)
    os.chmod(path, 0o755)
    running = subprocess.Popen([path, "100"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for flags in (os.O_RDONLY | os.O_TRUNC, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        try:
            os.open(path, flags)
            sys.exit(f"{turn}: opened with {flags:#o}, and it runs")
        except OSError as error:
            assert error.errno == errno.ETXTBSY, error
    assert os.path.getsize(path) == len(program), os.path.getsize(path)
    assert running.poll() is None, running.returncode
    running.kill()
    running.wait()
    os.unlink(path)
"""


def test_a_running_program_is_not_truncated(trio):
    trio[1].shell("mkdir /ks/running")
    trio[1].exec(["python3", "-c", TRUNCATES_WHAT_RUNS, "/ks/running"])
