"""Two tables side by side: `ntk compare` on the results folders of two runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exact_ntk.errors import ConfigError
from exact_ntk.grids import aligned
from exact_ntk.records import Results, read_record
from exact_ntk.report.figures import unpaired_error
from exact_ntk.report.notes import spread

ABSENT = "(absent)"


def read_results(folder: Path) -> Results:
    """Those of a results folder. Raises ConfigError where it holds none, StoreError where they are damaged."""
    path = folder / "results.json"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no results.json: name a folder that `ntk report` has written")
    return read_record(path, Results)


def compare_results(one: Results, other: Results) -> str:
    """Cells of one column name and depth in both, the second minus the first; what one lacks; differing config fields.

    The error takes the two as independent: for cells tested on the same images it is on the safe side.
    """
    cells = [{(r.column, r.depth): r for r in results.records} for results in (one, other)]
    rows = []
    for (column, depth), a in cells[0].items():
        b = cells[1].get((column, depth))
        if b:
            gap, error = b.accuracy - a.accuracy, unpaired_error(a, b)
            rows.append([column, str(depth), spread(a), spread(b), f"{gap:+.2f} ± {error:.2f}", f"{gap / error:+.1f}"])
    lines = [aligned(["column", "depth", "first", "second", "second - first", "in errors"], rows)] if rows else []
    lines += [] if rows else ["no cell is in both"]
    for which, mine, its in (("first", *cells), ("second", *reversed(cells))):
        alone = [f"{column}/{depth}" for column, depth in mine if (column, depth) not in its]
        lines += [f"only in the {which}: {', '.join(alone)}"] if alone else []
    fields = differing(one.config, other.config)
    lines += ["", *(f"{key}: {a} | {b}" for key, a, b in fields)] if fields else ["", "the configs are equal"]
    return "\n".join(lines)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The config fields that differ, with both values; columns are matched by name, one that lacks is one field."""
    a, b = dict(_fields(one, other)), dict(_fields(other, one))
    return [(k, a.get(k, ABSENT), b.get(k, ABSENT)) for k in {**a, **b} if a.get(k, ABSENT) != b.get(k, ABSENT)]


def _fields(config: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    known = {column["name"] for column in other["columns"]}
    yield from _flat({key: value for key, value in config.items() if key != "columns"}, "")
    for column in config["columns"]:
        key = f"columns.{column['name']}"
        yield from _flat(column, f"{key}.") if column["name"] in known else [(key, "(present)")]


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
