"""Runs file operations that come as JSON lines on standard input, for tests that compare a tree with a model.

Started inside a host (`python agent.py BASE`), it answers every line with one line. The same `apply` runs in the test's
own process on a local directory: what that does is what the tree has to do. Knows nothing of nodes or clusters.
"""

import errno
import json
import os
import stat
import sys
from typing import Any, Callable


def apply(base, operation, arguments):
    """Does one operation below `base`; returns its value, or the name of its errno."""
    try:
        return OPERATIONS[operation](base, *arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def write(base, path, offset, text):
    """Writes into a file that may be there or not, at an offset."""
    descriptor = os.open(f"{base}/{path}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        return os.pwrite(descriptor, text.encode(), offset)
    finally:
        os.close(descriptor)


def replace(base, path, text):
    with open(f"{base}/{path}", "w") as file:
        return file.write(text)


def append(base, path, text):
    with open(f"{base}/{path}", "a") as file:
        return file.write(text)


def read(base, path):
    with open(f"{base}/{path}", "rb") as file:
        return file.read().decode("latin-1")


def attributes(base, path):
    """What a user can see of an entry and both trees must agree on."""
    found = os.lstat(f"{base}/{path}")
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
    links = found.st_nlink if stat.S_ISREG(found.st_mode) else 0
    return [stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), size, links]


def tree(base):
    """Everything below the base: path -> attributes and content."""
    everything = {}
    for directory, directories, files in os.walk(base):
        for name in directories + files:
            path = os.path.relpath(os.path.join(directory, name), base)
            entry = attributes(base, path)
            if stat.S_ISREG(entry[0]):
                entry.append(read(base, path))
            elif stat.S_ISLNK(entry[0]):
                entry.append(os.readlink(os.path.join(base, path)))
            everything[path] = entry
    return everything


OPERATIONS: dict[str, Callable[..., Any]] = {
    "write": write,
    "replace": replace,
    "append": append,
    "read": read,
    "attributes": attributes,
    "tree": tree,
    "truncate": lambda base, path, size: os.truncate(f"{base}/{path}", size),
    "mkdir": lambda base, path: os.mkdir(f"{base}/{path}"),
    "rmdir": lambda base, path: os.rmdir(f"{base}/{path}"),
    "unlink": lambda base, path: os.unlink(f"{base}/{path}"),
    "rename": lambda base, old, new: os.rename(f"{base}/{old}", f"{base}/{new}"),
    "link": lambda base, old, new: os.link(f"{base}/{old}", f"{base}/{new}"),
    "symlink": lambda base, target, path: os.symlink(target, f"{base}/{path}"),
    "chmod": lambda base, path, mode: os.chmod(f"{base}/{path}", mode),
    "list": lambda base, path: sorted(os.listdir(f"{base}/{path}")),
}


def main(base):
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        print(json.dumps(apply(base, operation, arguments)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
