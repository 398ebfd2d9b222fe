"""`ntk status`: how far the Gram stores and the cells of a table are. Of a finished one without torch, in a second."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exact_ntk.cli.console import remember
from exact_ntk.cli.defaults import RESULTS
from exact_ntk.cli.show import show
from exact_ntk.draws import load_images
from exact_ntk.errors import Incomplete, NtkError
from exact_ntk.gram.tiles import Array, Tile
from exact_ntk.grids import Grid, named
from exact_ntk.kept import damaged
from exact_ntk.provenance import time_left
from exact_ntk.records import MissingCell, by_need
from exact_ntk.table import Table
from exact_ntk.workspace import open_workspace

if TYPE_CHECKING:
    import torch

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
        text = f"Gram {named(self.columns)}: "
        text += f"{self.done} of {self.tiles} tiles done" if self.begun else "nothing computed yet"
        if self.damaged:
            some = list(self.damaged[:SHOWN_TILES])
            text += f", {len(self.damaged)} damaged (mend with `ntk compute-gram --repair`): {some}"
        return text + (f", about {self.time_left} left" if self.time_left else "")


def stores(table: Table, run: Path, verify: bool) -> list[Store]:
    """Those that draws still to solve read; verify: those of solved draws too, and every finished tile is read."""
    table.shelf.read_only = True
    found = []
    for state in table.shelf.look().states(table.requests(every=verify)):
        bad = state.store.damaged(state.finished) if verify and state.store else []
        pace = time_left(run, state.store.path.name, state.left) if state.store and state.left else None
        found.append(Store(tuple(state.columns), bool(state.store), state.needed, state.done, tuple(bad), pace))
    return found


@dataclass(frozen=True)
class Cells:
    """The table's cells: column and depth of those done, and what the others need."""

    done: tuple[tuple[str, int], ...]
    missing: tuple[MissingCell, ...]

    @property
    def failed(self) -> int:
        """How many have no result though all that there is to compute has been."""
        return sum(cell.failed for cell in self.missing)

    @property
    def unfinished(self) -> int:
        """How many lack something that can be computed."""
        return len(self.missing) - self.failed

    @property
    def count(self) -> str:
        """How many are done, missing and failed."""
        return f"cells: {len(self.done)} done, {self.unfinished} missing" + f", {self.failed} failed" * bool(
            self.failed
        )


def cells(table: Table) -> Cells:
    """Which are done. Raises StoreError for a damaged file."""
    done, missing = [], []
    for cell in table.cells:
        lacking = cell.lacks()
        if lacking is None:
            done.append((cell.name, cell.depth))
        else:
            missing.append(lacking)
    return Cells(tuple(done), tuple(missing))


def _looked_up(device: str) -> "torch.device | str":
    """A device that was asked for by name is there, or ConfigError is raised; auto waits until something needs one."""
    if device == "auto":
        return device
    from exact_ntk.device import resolve_devices

    return resolve_devices(device)[0]


def _damaged_files(run: Path) -> list[Path]:
    from exact_ntk.regression.panels import damaged_panels

    return [*damaged(run / "solve"), *damaged_panels(run / "solve"), *damaged(run / "cnn")]


def show_status(config: str, overrides: list[str], runs: Path, device: str, verify: bool, as_json: bool) -> None:
    """Print stores and cells, done and missing; verify: read every finished tile, record, checkpoint and panel.

    Raises Incomplete where some are missing or damaged, NtkError where all that is not done has failed.
    """
    workspace = open_workspace(config, overrides, runs, RESULTS)
    remember(config, overrides, runs, RESULTS, device)
    table = Table(workspace.config, load_images(workspace.config), _looked_up(device), workspace.run)
    if verify or any(cell.missing() for cell in table.kernel_cells):
        import exact_ntk.kernels  # noqa: F401 - which store would serve depends on what computes here
    found = stores(table, workspace.run, verify)
    files = _damaged_files(workspace.run) if verify else []
    counted = None if files else cells(table)  # which reads them
    text, grids = as_text(found, files, counted), as_grids(found, files, counted)
    show(text, grids, [counted.count] if counted else [], as_value(found, files, counted), as_json)
    if counted is None:
        count, them = (f"{len(files)} files are", "them") if len(files) > 1 else ("1 file is", "it")
        raise Incomplete(f"{count} damaged: `ntk run` sets {them} aside and makes {them} again")
    name, lost = workspace.config.name, any(store.damaged for store in found)
    if counted.failed and not (counted.unfinished or lost):
        raise NtkError(f"{counted.failed} cells of {name} failed, the others are done")
    if counted.unfinished or lost:
        raise Incomplete(f"{name} is not finished: `ntk run` goes on where it stopped")


def as_text(found: Sequence[Store], files: Sequence[Path], counted: Cells | None) -> str:
    """A line a store, a line a damaged file, and a line for all cells that need the same."""
    lines = [*map(str, found), *(f"damaged: {path}" for path in files)]
    if counted:
        needs = (f"  {cells}: {'failed: ' * (how == 'failed')}{what}" for cells, how, what in _needs(counted))
        lines += [counted.count, *needs]
    return "\n".join(lines)


def as_grids(found: Sequence[Store], files: Sequence[Path], counted: Cells | None) -> list[Grid]:
    """The same as tables: stores, damaged files, and cells without a result."""
    rows = [
        [
            named(s.columns),
            f"{s.done:,} of {s.tiles:,}" if s.begun else "none",
            f"{len(s.damaged)}",
            s.time_left or "",
        ]
        for s in found
    ]
    return [
        (("Gram matrices of", "tiles", "damaged", "time left"), rows),
        *([(("damaged file",), [[str(path)] for path in files])] if files else []),
        *([(("cells", "", "what they need"), _needs(counted))] if counted else []),
    ]


def _needs(counted: Cells) -> list[list[str]]:
    """Cells without a result, whether they have failed, and what they need."""
    return [
        [named(cells, "cells"), "failed" if failed else "missing", needs]
        for (failed, needs), cells in by_need(counted.missing).items()
    ]


def as_value(found: Sequence[Store], files: Sequence[Path], counted: Cells | None) -> dict[str, Any]:
    """The same for JSON."""
    value: dict[str, Any] = {"gram": [asdict(s) for s in found], "damaged_files": [str(path) for path in files]}
    if counted:
        value["done"] = [{"column": column, "depth": depth} for column, depth in counted.done]
        value["missing"] = [c.json_value() for c in counted.missing]
    return value
