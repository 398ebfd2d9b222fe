"""Which columns belong together, and what they are called.

Columns that differ in their training images alone are a series: one row of a wide table, one line of a figure. Those
that differ in choices alone (`CHOICES`) are of one kernel.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from exact_ntk.records import ColumnHead, Results
from exact_ntk.report.differing import configured, in_words
from exact_ntk.report.paired import CHOICES

# What columns of a series may differ in.
APART = ("name", "paper", "depths", "train")
# What columns of one kernel may differ in.
OF_ONE_KERNEL = ("name", "paper", *CHOICES)
PLAIN = "plain"  # a column that none of the choices was made for


@dataclass(frozen=True)
class Series:
    """label: what the columns' names share.  columns: by the number of training images that the config asks for."""

    label: str
    columns: dict[int | str, ColumnHead]


def all_series(results: Results) -> list[Series]:
    """Every column in its series, in the order of their first columns in the table."""
    groups = _alike(results, APART, lambda column: column["train"]["n"])
    series = [dict(sorted(columns.items(), key=lambda item: as_number(item[0]))) for columns in groups]
    return [Series(label, columns) for label, columns in zip(labels_of(series, results), series, strict=True)]


def _alike(
    results: Results, apart: Sequence[str], place: Callable[[dict[str, Any]], Hashable]
) -> list[dict[Any, ColumnHead]]:
    """The columns in groups that differ in the keys `apart` alone, by the place that each has in its group.

    Of two that have one place the second begins another group.
    """
    made: list[dict[Any, ColumnHead]] = []
    groups: dict[str, list[dict[Any, ColumnHead]]] = {}
    asked = configured(results)
    for head in results.columns:
        column = asked[head.name]
        alike = groups.setdefault(repr(sorted((k, v) for k, v in column.items() if k not in apart)), [])
        at = place(column)
        group = next((found for found in alike if at not in found), None)
        if group is None:
            group = {}
            alike.append(group)
            made.append(group)
        group[at] = head
    return made


def labels_of(groups: Sequence[dict[Any, ColumnHead]], results: Results) -> list[str]:
    """What the names of each group's columns share, or the first of them where that is not the group's alone."""
    names = [[head.name for head in group.values()] for group in groups]
    labels = [_shared(some) for some in names]
    taken = {head.name for head in results.columns}

    def own(label: str, some: list[str]) -> bool:
        return bool(label) and labels.count(label) == 1 and (label in some or label not in taken)

    return [label if own(label, some) else some[0] for label, some in zip(labels, names, strict=True)]


def as_number(n: int | str) -> float:
    """A number of training images, to sort by: all are the most."""
    return float("inf") if n == "all" else float(n)


def _shared(names: list[str]) -> str:
    """V-flips for V-flips-10 and V-flips-1K, CNN-w8 for CNN-n10-w8 and CNN-n20-w8."""
    if len(names) == 1:
        return names[0]
    begin, end = _common(names)
    if begin[-1:] == ["n"]:
        begin = begin[:-1]
    return re.sub(r"([._-])[._-]+", r"\1", "".join([*begin, *end])).strip("._-")


def _parts(name: str) -> list[str]:
    return re.findall(r"[0-9]+K?|[A-Za-z]+|[._-]", name)


def _common(names: list[str]) -> tuple[list[str], list[str]]:
    """The parts that all of them begin with, and those that the rest of all of them ends with."""
    parts = [_parts(name) for name in names]
    begin = _beginning(parts)
    return begin, _beginning([part[len(begin) :][::-1] for part in parts])[::-1]


def _beginning(lists: list[list[str]]) -> list[str]:
    """What all of them begin with."""
    return [some[0] for some in takewhile(lambda some: len(set(some)) == 1, zip(*lists, strict=False))]


def by_kernel(results: Results) -> list[dict[Any, ColumnHead]]:
    """The columns in groups that differ in choices alone, by what was chosen."""
    return _alike(results, OF_ONE_KERNEL, lambda column: repr([column.get(key) or False for key in CHOICES]))


def leading(results: Results) -> list[ColumnHead]:
    """The columns, first those that have the most training images of their series, then those of second most, and so
    on, and of these first one of each kernel: what a page of few figures shows."""
    rank = {head.name: k for s in all_series(results) for k, head in enumerate(reversed(s.columns.values()))}
    place = {head.name: k for columns in by_kernel(results) for k, head in enumerate(columns.values())}
    return sorted(results.columns, key=lambda head: (rank[head.name], place[head.name]))


def choice_names(results: Results, groups: list[dict[Any, ColumnHead]]) -> dict[Any, str]:
    """How each choice is called: by what it adds to the names of its columns, else in words."""
    asked = configured(results)
    chosen = {choice: asked[head.name] for columns in groups for choice, head in columns.items()}
    added: dict[Any, set[str]] = {choice: set() for choice in chosen}
    for columns in (some for some in groups if len(some) > 1):
        begin, end = _common([head.name for head in columns.values()])
        for choice, head in columns.items():
            parts = _parts(head.name)
            added[choice].add("".join(parts[len(begin) : len(parts) - len(end)]).strip("._-") or PLAIN)
    names = {choice: min(some) for choice, some in added.items() if len(some) == 1}
    if len(set(names.values())) == len(chosen):
        return names
    keys = [key for key in CHOICES if len({repr(column.get(key) or False) for column in chosen.values()}) > 1]
    return {
        choice: ", ".join(in_words(key, column[key]) for key in keys if column.get(key)) or PLAIN
        for choice, column in chosen.items()
    }
