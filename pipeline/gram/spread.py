"""Filling a store by many workers: batches of tiles, small enough to share out evenly and to lose."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from exact_ntk.gram.plan import Fill
from exact_ntk.gram.tiles import Array, Tile, array_name

if TYPE_CHECKING:
    from exact_ntk.workers.worker import Worker

# Long beside handing a batch out, short beside what a worker that dies has lost.
SECONDS_A_BATCH = 10.0
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Backends:
    """Which backend a worker computes each readout family with."""

    name = "its start"

    def do(self, worker: "Worker", tell: Callable[[int], None]) -> dict[str, str]:
        return worker.table.backends


@dataclass(frozen=True)
class MeasureRate:
    """Pairs/s of a worker, from the source of that fingerprint."""

    source: str
    arrays: tuple[Array, ...]
    columns: tuple[str, ...]
    name = "measuring its rate"

    def do(self, worker: "Worker", tell: Callable[[int], None]) -> float:
        return worker.filler.measure(worker.source(self.source), self.arrays, self.columns)


@dataclass(frozen=True)
class TileBatch:
    """Some missing tiles of one store, each with the arrays that lack it. source: its fingerprint."""

    source: str
    store: Path
    columns: tuple[str, ...]
    work: tuple[tuple[Tile, tuple[Array, ...]], ...]

    @property
    def name(self) -> str:
        tile, arrays = self.work[0]
        return f"tile {tile} of {array_name(arrays[0])} in {self.store.name}"

    def do(self, worker: "Worker", tell: Callable[[int], None]) -> list[Tile]:
        """Those that another process holds."""
        return worker.filler.fill_batch(self, worker.source(self.source), tell)


class SpreadFilling:
    """One store's missing tiles as work for a crew; those that other processes hold are asked for again."""

    def __init__(self, fill: Fill, tiles: Sequence[Tile], workers: int, bar: tqdm):
        self.fill, self.bar = fill, bar
        self.open, self.at_work = deque(tiles), 0
        self.held: list[Tile] = []
        self.looked = 0.0
        pairs = sum(map(fill.store.shape.pairs, tiles)) / len(tiles)
        # Few enough for every worker to have several batches.
        self.size = max(1, min(int(SECONDS_A_BATCH * fill.pace / pairs), len(tiles) // (4 * workers)))

    def next(self) -> TileBatch | None:
        if not self.open and self.held and time.monotonic() - self.looked > SECONDS_BETWEEN_LOOKS:
            self.open.extend(self.held)
            self.held.clear()
        tiles = [self.open.popleft() for _ in range(min(self.size, len(self.open)))]
        if not tiles:
            return None
        self.at_work += 1
        work = tuple((tile, tuple(self.fill.work[tile])) for tile in tiles)
        source, store = self.fill.source.name, self.fill.store.path.absolute()
        return TileBatch(source, store, tuple(self.fill.columns), work)

    def left(self) -> bool:
        return bool(self.open or self.held or self.at_work)

    def done(self, task: TileBatch, result: list[Tile]) -> None:
        self.at_work -= 1
        self.held += result
        self.looked = time.monotonic()

    def told(self, units: int) -> None:
        self.bar.update(units)
