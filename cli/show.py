"""What a command has found: tables on a terminal, plain text anywhere else, JSON where it is asked for."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from exact_ntk.cli.console import pasteable
from exact_ntk.grids import Grid

LONGEST_RIGHT = 30  # characters: longer cells are sentences, which begin at the left


def show(text: str, grids: Sequence[Grid], notes: Sequence[str], value: Any, as_json: bool) -> None:
    """Print one of three forms of the same: text; grids, each a header and rows, with notes below; value."""
    if as_json:
        print(json.dumps(value, indent=1, allow_nan=False))
    elif sys.stdout.isatty():
        _show_grids([grid for grid in grids if grid[1]])
        for note in notes:
            print(pasteable(note))
    else:
        print(pasteable(text))


def _show_grids(grids: Sequence[Grid]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    for header, rows in grids:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for k, title in enumerate(header):
            sentences = max((len(row[k]) for row in rows), default=0) > LONGEST_RIGHT
            table.add_column(Text(title), justify="left" if sentences or k == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(pasteable(cell)) for cell in row))
        console.print(table)
