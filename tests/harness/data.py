"""Files for tests: the same bytes every time, without being stored anywhere."""

import hashlib
from pathlib import Path

import h5py
import numpy

MIB = 1024 * 1024


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, given by the seed."""
    return numpy.random.Generator(numpy.random.PCG64(seed)).bytes(size_bytes)


def write_noise(path: Path, size_bytes: int, seed: int = 1) -> str:
    """A large file of noise; returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    with path.open("wb") as file:
        while size_bytes > 0:
            block = generator.bytes(min(size_bytes, 16 * MIB))
            digest.update(block)
            file.write(block)
            size_bytes -= len(block)
    return digest.hexdigest()


def write_hdf5(path: Path, datasets: int, dataset_bytes: int) -> None:
    """An HDF5 file of chunked datasets in a few groups, as instruments write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = numpy.frombuffer(noise(dataset_bytes), dtype="<i4").reshape(-1, 256)
    with h5py.File(path, "w") as file:
        for number in range(datasets):
            dataset = file.create_dataset(
                f"run{number // 20:03}/channel{number % 20:02}", data=values, chunks=(256, 256)
            )
            dataset.attrs["channel"] = number
