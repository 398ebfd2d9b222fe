"""How a table is laid out: its columns side by side or, where they are many, in rows.

Columns that differ in their training images alone are a series: they are one row of a wide table, and one line of a
figure.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from exact_ntk.grids import Grid
from exact_ntk.records import ColumnHead, Results

# More columns than these fit side by side neither on a page nor on a terminal.
MOST_ACROSS = 12
# What columns of a series may differ in.
APART = ("name", "paper", "depths", "train")


@dataclass(frozen=True)
class Series:
    """label: what the columns' names share.  columns: by the number of training images that the config asks for."""

    label: str
    columns: dict[int | str, ColumnHead]


def is_wide(results: Results) -> bool:
    """Whether there are more columns than fit side by side."""
    return len(results.columns) > MOST_ACROSS


def configured(results: Results) -> dict[str, dict[str, Any]]:
    """What the config says of each column, by its name; preprocess also where a column leaves it to the data."""
    default = results.config["data"].get("preprocess", "standard")
    return {column["name"]: {"preprocess": default, **column} for column in results.config["columns"]}


def all_series(results: Results) -> list[Series]:
    """Every column in its series, in the order of their first columns in the table."""
    made: list[dict[int | str, ColumnHead]] = []
    groups: dict[str, list[dict[int | str, ColumnHead]]] = {}
    asked = configured(results)
    for head in results.columns:
        column = asked[head.name]
        alike = groups.setdefault(repr(sorted((k, v) for k, v in column.items() if k not in APART)), [])
        n = column["train"]["n"]
        place = next((found for found in alike if n not in found), None)
        if place is None:
            place = {}
            alike.append(place)
            made.append(place)
        place[n] = head
    series = [dict(sorted(columns.items(), key=lambda item: _number(item[0]))) for columns in made]
    names = [[head.name for head in columns.values()] for columns in series]
    labels = [_shared(some) for some in names]

    def own(label: str, some: list[str]) -> bool:
        return bool(label) and labels.count(label) == 1 and (label in some or label not in asked)

    return [
        Series(label if own(label, some) else some[0], columns)
        for label, some, columns in zip(labels, names, series, strict=True)
    ]


def _number(n: int | str) -> float:
    return float("inf") if n == "all" else float(n)


def _shared(names: list[str]) -> str:
    """V-flips for V-flips-10 and V-flips-1K, CNN-w8 for CNN-n10-w8 and CNN-n20-w8."""
    if len(names) == 1:
        return names[0]
    parts = [re.findall(r"[0-9]+K?|[A-Za-z]+|[._-]", name) for name in names]
    begin = _beginning(parts)
    end = _beginning([part[len(begin) :][::-1] for part in parts])[::-1]
    if begin[-1:] == ["n"]:
        begin = begin[:-1]
    return re.sub(r"([._-])[._-]+", r"\1", "".join([*begin, *end])).strip("._-")


def _beginning(lists: list[list[str]]) -> list[str]:
    """What all of them begin with."""
    return [some[0] for some in takewhile(lambda some: len(set(some)) == 1, zip(*lists, strict=False))]


def leading(results: Results) -> list[ColumnHead]:
    """The columns, first those that have the most training images of their series, then those of second most, and so
    on: what a page of few figures shows."""
    rank = {head.name: k for s in all_series(results) for k, head in enumerate(reversed(s.columns.values()))}
    return sorted(results.columns, key=lambda head: rank[head.name])


def depths(results: Results) -> list[int]:
    """Every depth of the table, in order."""
    return sorted({d for c in results.columns for d in c.depths})


def laid_out(results: Results, cell: Callable[[ColumnHead, int], str]) -> Grid:
    """Header and rows of what `cell` says of a column at a depth: a row a depth, of a wide table a row a series.

    Where that has more across than fits and fewer rows, rows and columns change places.
    """
    down = depths(results)
    if not is_wide(results):
        rows = [[str(d), *(cell(c, d) if d in c.depths else "" for c in results.columns)] for d in down]
        return ["depth", *(c.name for c in results.columns)], rows
    found = all_series(results)
    numbers = sorted({n for series in found for n in series.columns}, key=_number)
    if len(numbers) == 1:
        header, places = ["column", *(f"depth {d}" for d in down)], {"": [(numbers[0], d) for d in down]}
    else:
        places = {f" at depth {d}" * (len(down) > 1): [(n, d) for n in numbers] for d in down}
        header = ["column" if len(down) > 1 else f"depth {down[0]}", *(f"n = {n}" for n in numbers)]
    rows = []
    for series in found:
        for at, across in places.items():
            heads = [(series.columns.get(n), d) for n, d in across]
            row = [cell(head, d) if head and d in head.depths else "" for head, d in heads]
            rows += [[series.label + at, *row]] if any(row) else []
    if len(rows) < len(header) - 1 > MOST_ACROSS:
        header, *rows = map(list, zip(header, *rows, strict=True))
        header[0] = header[0].replace("column", "")
    return header, rows
