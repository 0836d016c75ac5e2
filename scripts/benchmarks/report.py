"""Figures: what was measured, beside what, and whether that is enough."""

import json
import statistics
from dataclasses import asdict, dataclass
from typing import Callable, Optional


@dataclass
class Figure:
    """One row. `ratio` is value / against; `target` bounds the ratio (`of_ratio`) or the value itself."""

    name: str
    value: float
    unit: str
    against_name: str = ""
    against: Optional[float] = None
    target: str = ""
    met: Optional[bool] = None

    @property
    def ratio(self) -> Optional[float]:
        return self.value / self.against if self.against else None


class Report:
    """Collects figures; each is told as a JSON line when it is there, all of them as one table at the end."""

    def __init__(self, json_file, only: str, rounds: int):
        self.figures: list = []
        self.failures: list = []
        self.json_file = json_file
        self.only = only
        self.rounds = rounds

    def wants(self, name: str) -> bool:
        return self.only in name

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        against: "tuple | None" = None,
        ratio: "tuple | None" = None,
        value_target: "tuple | None" = None,
    ) -> None:
        """`against`: (name, value). `ratio`, `value_target`: ('>=' or '<=', bound)."""
        if not self.wants(name):
            return
        figure = Figure(name, value, unit, *(against or ("", None)))
        measured, bound = (figure.ratio, ratio) if ratio else (value, value_target)
        if bound and measured is not None:
            sign, limit = bound
            figure.target = f"{'ratio ' if ratio else ''}{sign} {limit:g}"
            figure.met = measured >= limit if sign == ">=" else measured <= limit
        self.figures.append(figure)
        line = json.dumps({**asdict(figure), "ratio": figure.ratio})
        print(line, flush=True)
        if self.json_file:
            self.json_file.write(line + "\n")

    def value_of(self, name: str) -> "float | None":
        """What was measured under that name, if it was."""
        return next((figure.value for figure in self.figures if figure.name == name), None)

    def failed(self, name: str, error: BaseException) -> None:
        self.failures.append(name)
        print(json.dumps({"name": name, "failed": str(error)[-2000:]}), flush=True)

    def table(self) -> str:
        rows = [("what", "value", "beside", "its value", "ratio", "target", "")]
        for figure in self.figures:
            rows.append(
                (
                    figure.name,
                    f"{number(figure.value)} {figure.unit}",
                    figure.against_name,
                    f"{number(figure.against)} {figure.unit}" if figure.against is not None else "",
                    f"{figure.ratio:.3g}" if figure.ratio is not None else "",
                    figure.target,
                    {True: "ok", False: "MISSED", None: ""}[figure.met],
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def alternate(rounds: int, *measurements: Callable[[], float]) -> list:
    """The median of each measurement, taken in turns so that what else the machine does hits all of them alike."""
    taken: list = [[] for _ in measurements]
    for turn in range(rounds):
        order = list(enumerate(measurements))
        for index, measure in order if turn % 2 == 0 else reversed(order):
            taken[index].append(measure())
    return [statistics.median(values) for values in taken]
