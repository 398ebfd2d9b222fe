"""How a table is laid out: its columns side by side or, where they are many, in rows."""

from collections.abc import Callable

from exact_ntk.grids import Grid
from exact_ntk.records import ColumnHead, Results
from exact_ntk.report.series import all_series, as_number, by_kernel, choice_names, labels_of

# More columns than these fit side by side neither on a page nor on a terminal.
MOST_ACROSS = 12
Cell = Callable[[ColumnHead, int], str]  # what a table says of a column at a depth


def is_wide(results: Results) -> bool:
    """Whether there are more columns than fit side by side."""
    return len(results.columns) > MOST_ACROSS


def depths(results: Results) -> list[int]:
    """Every depth of the table, in order."""
    return sorted({d for c in results.columns for d in c.depths})


def numbers(results: Results) -> list[int | str]:
    """Every number of training images that a column asks for, in order."""
    return sorted({n for series in all_series(results) for n in series.columns}, key=as_number)


def by_choice(results: Results) -> dict[str, dict[str, ColumnHead]] | None:
    """Of a wide table of one depth and number of training images each kernel's columns, by what was chosen.

    None where kernels and choices have more across than fits, or make more empty cells than others.
    """
    if not is_wide(results) or not len(numbers(results)) == len(depths(results)) == 1:
        return None
    groups = by_kernel(results)
    names = choice_names(results, groups)
    if not 1 < len(names) <= MOST_ACROSS or 2 * len(results.columns) < len(groups) * len(names):
        return None
    named = [{name: columns[choice] for choice, name in names.items() if choice in columns} for columns in groups]
    return dict(zip(labels_of(groups, results), named, strict=True))


def laid_out(results: Results, cell: Cell) -> Grid:
    """Header and rows of what `cell` says of a column at a depth: a row a depth, of a wide table a row a series or,
    where `by_choice` knows them, a kernel."""
    if kernels := by_choice(results):
        return _choices_across(kernels, cell, *depths(results))
    if is_wide(results):
        return _rows_of_series(results, cell)
    rows = [[str(d), *(cell(c, d) if d in c.depths else "" for c in results.columns)] for d in depths(results)]
    return ["depth", *(c.name for c in results.columns)], rows


def _choices_across(kernels: dict[str, dict[str, ColumnHead]], cell: Cell, depth: int) -> Grid:
    choices = list(dict.fromkeys(name for columns in kernels.values() for name in columns))
    return [f"depth {depth}", *choices], [
        [label, *(cell(columns[name], depth) if name in columns else "" for name in choices)]
        for label, columns in kernels.items()
    ]


def _rows_of_series(results: Results, cell: Cell) -> Grid:
    """Numbers of training images across or, if that is one, depths. Where that has more across than fits and fewer
    rows, rows and columns change places."""
    down, across = depths(results), numbers(results)
    if len(across) == 1:
        header, places = ["column", *(f"depth {d}" for d in down)], {"": [(across[0], d) for d in down]}
    else:
        places = {f" at depth {d}" * (len(down) > 1): [(n, d) for n in across] for d in down}
        header = ["column" if len(down) > 1 else f"depth {down[0]}", *(f"n = {n}" for n in across)]
    rows = []
    for series in all_series(results):
        for at, cells in places.items():
            heads = [(series.columns.get(n), d) for n, d in cells]
            row = [cell(head, d) if head and d in head.depths else "" for head, d in heads]
            rows += [[series.label + at, *row]] if any(row) else []
    if len(rows) < len(header) - 1 > MOST_ACROSS:
        header, *rows = map(list, zip(header, *rows, strict=True))
        header[0] = header[0].replace("column", "")
    return header, rows
