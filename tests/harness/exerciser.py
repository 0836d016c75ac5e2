"""Does random operations on one file and on a model of it, and compares: a program that several nodes run in turn.

`python exerciser.py FILE MODEL SEED OPERATIONS`. MODEL is a plain file outside the tree with what FILE has to be: the
program before this one may have run on another node. It opens FILE, compares all of it, does its operations, each of
them checked, closes FILE, and stores the new model. It ends with status 1, and says what differs and where, on the
first difference. Not for more than one file, nor for several processes at a time.
"""

import ctypes
import mmap
import os
import random
import sys

SIZE_MAX = 256 * 1024
LENGTH_MAX = 64 * 1024
KEEP_SIZE_AND_PUNCH_HOLE = 1 | 2
libc = ctypes.CDLL(None, use_errno=True)


class Difference(Exception):
    """The file is not what the model says."""


def compare(found, expected, offset, what):
    if found == expected:
        return
    if len(found) != len(expected):
        raise Difference(f"{what} at {offset}: {len(found)} bytes in place of {len(expected)}")
    first = next(i for i, (one, other) in enumerate(zip(found, expected)) if one != other)
    raise Difference(f"{what} at {offset}: byte {offset + first} is {found[first]} in place of {expected[first]}")


class Exerciser:
    """The file, its model, and the dice."""

    def __init__(self, descriptor, model, dice):
        self.descriptor = descriptor
        self.model = model
        self.dice = dice

    def step(self):
        name = self.dice.choice(
            ["write", "write", "read", "read", "truncate", "map_write", "map_read", "punch", "sync"]
        )
        offset = self.dice.randrange(SIZE_MAX)
        length = self.dice.randrange(1, LENGTH_MAX)
        length = min(length, SIZE_MAX - offset)
        getattr(self, name)(offset, length)
        size = os.fstat(self.descriptor).st_size
        if size != len(self.model):
            raise Difference(f"after {name} at {offset}: {size} bytes in place of {len(self.model)}")

    def put(self, offset, data):
        if len(self.model) < offset:
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def write(self, offset, length):
        data = self.dice.randbytes(length)
        written = os.pwrite(self.descriptor, data, offset)
        self.put(offset, data[:written])

    def read(self, offset, length):
        compare(os.pread(self.descriptor, length, offset), self.model[offset : offset + length], offset, "read")

    def truncate(self, offset, _length):
        os.ftruncate(self.descriptor, offset)
        del self.model[offset:]
        self.model.extend(bytes(offset - len(self.model)))

    def inside(self, offset, length):
        """The part that is in the file: a map must not reach beyond it."""
        offset = min(offset, max(0, len(self.model) - 1))
        return offset, min(length, len(self.model) - offset)

    def map_read(self, offset, length):
        offset, length = self.inside(offset, length)
        if length:
            with mmap.mmap(self.descriptor, 0, prot=mmap.PROT_READ) as mapped:
                compare(mapped[offset : offset + length], self.model[offset : offset + length], offset, "mapped read")

    def map_write(self, offset, length):
        offset, length = self.inside(offset, length)
        if length:
            data = self.dice.randbytes(length)
            with mmap.mmap(self.descriptor, 0) as mapped:
                mapped[offset : offset + length] = data
                mapped.flush()
            self.put(offset, data)

    def punch(self, offset, length):
        offset, length = self.inside(offset, length)
        if not length:
            return
        arguments = (ctypes.c_long(offset), ctypes.c_long(length))
        if libc.fallocate(self.descriptor, KEEP_SIZE_AND_PUNCH_HOLE, *arguments) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
        self.put(offset, bytes(length))

    def sync(self, _offset, _length):
        os.fsync(self.descriptor)


def main(path, model_path, seed, operations):
    with open(model_path, "rb") as file:
        model = bytearray(file.read())
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    exerciser = Exerciser(descriptor, model, random.Random(seed))
    try:
        compare(os.pread(descriptor, SIZE_MAX + 1, 0), model, 0, "the whole file, as the one before left it")
        for number in range(int(operations)):
            try:
                exerciser.step()
            except Difference as difference:
                raise Difference(f"seed {seed}, operation {number}: {difference}") from None
    except Difference as difference:
        sys.exit(str(difference))
    finally:
        os.close(descriptor)
    with open(model_path, "wb") as file:
        file.write(model)


if __name__ == "__main__":
    main(*sys.argv[1:])
