"""`ntk status`: how far the Gram stores and the cells of a table are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exact_ntk.gram.tiles import Array, Tile
from exact_ntk.grids import Grid
from exact_ntk.provenance import time_left
from exact_ntk.records import Results
from exact_ntk.table import Table

SHOWN_TILES = 5


@dataclass(frozen=True)
class Store:
    """A Gram store and the columns that still read it.

    tiles: how many they need, done: are there.  begun: whether there is a store at all.  damaged: tiles with their
    arrays.  time_left: at the pace so far, or None where that is not known.
    """

    columns: tuple[str, ...]
    begun: bool
    tiles: int
    done: int
    damaged: tuple[tuple[Array, Tile], ...]
    time_left: str | None

    def __str__(self) -> str:
        text = f"Gram {'/'.join(self.columns)}: "
        text += f"{self.done} of {self.tiles} tiles done" if self.begun else "nothing computed yet"
        if self.damaged:
            some = list(self.damaged[:SHOWN_TILES])
            text += f", {len(self.damaged)} damaged (mend with `ntk compute-gram --repair`): {some}"
        return text + (f", about {self.time_left} left" if self.time_left else "")


def stores(table: Table, run: Path, verify: bool) -> list[Store]:
    """Those that draws still to solve read; verify: those of solved draws too, and every finished tile is read."""
    table.shelf.read_only = True
    found = []
    for state in table.shelf.states(table.requests(every=verify)):
        bad = state.store.damaged(state.finished) if verify and state.store else []
        pace = time_left(run, state.store.path.name, state.left) if state.store and state.left else None
        found.append(Store(tuple(state.columns), bool(state.store), state.needed, state.done, tuple(bad), pace))
    return found


def counted(results: Results) -> str:
    """How many cells are done, missing and failed."""
    failed = sum(cell.failed for cell in results.missing)
    missing = len(results.missing) - failed
    return f"cells: {len(results.records)} done, {missing} missing" + (f", {failed} failed" if failed else "")


def as_text(found: Sequence[Store], files: Sequence[Path], results: Results | None) -> str:
    """A line a store, a line a damaged file, and a line a cell without a result."""
    lines = [*map(str, found), *(f"damaged: {path}" for path in files)]
    if results:
        cells = (f"  {c.column} at depth {c.depth}: {'failed: ' * c.failed}{c.needs}" for c in results.missing)
        lines += [counted(results), *cells]
    return "\n".join(lines)


def as_grids(found: Sequence[Store], files: Sequence[Path], results: Results | None) -> list[Grid]:
    """The same as tables: stores, damaged files, and cells without a result."""
    rows = [
        [
            "/".join(s.columns),
            f"{s.done:,} of {s.tiles:,}" if s.begun else "none",
            f"{len(s.damaged)}",
            s.time_left or "",
        ]
        for s in found
    ]
    missing = results.missing if results else []
    cells = [[f"{c.column}/{c.depth}", "failed" if c.failed else "missing", c.needs] for c in missing]
    return [
        (("Gram matrices of", "tiles", "damaged", "time left"), rows),
        *([(("damaged file",), [[str(path)] for path in files])] if files else []),
        *([(("cell", "", "what it needs"), cells)] if results else []),
    ]


def as_value(found: Sequence[Store], files: Sequence[Path], results: Results | None) -> dict[str, Any]:
    """The same for JSON."""
    value: dict[str, Any] = {"gram": [asdict(s) for s in found], "damaged_files": [str(path) for path in files]}
    if results:
        value["done"] = [{"column": r.column, "depth": r.depth} for r in results.records]
        value["missing"] = [c.json_value() for c in results.missing]
    return value
