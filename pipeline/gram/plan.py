"""Which tiles are still to compute for what is asked for, in which stores, and how long that takes."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exact_ntk.gram.shelf import Look, Request, Shelf
from exact_ntk.gram.sources import Images, Source
from exact_ntk.gram.store import GramStore
from exact_ntk.gram.tiles import Array, Shape, Tile, is_self_kernel
from exact_ntk.locks import locked

SECONDS_A_TILE = 30.0
SECONDS_A_FILE = 0.002
LARGEST_TILE_BYTES = 256 << 20
SMALLEST_TILE = 16  # smaller ones cost more to handle than to lose
FEWEST_TILES_ACROSS = 4
MOST_FILES = 20_000
# A store in tiles of another side is gone on with unless it takes this many times, and this many seconds more.
UNFIT, UNFIT_SECONDS = 4.0, 60.0


@dataclass
class Fill:
    """One store's work: for each tile the arrays that lack it, in the order in which columns want them.

    requests: what it serves.  needed: every (array, tile) that they read.  columns: whose they are.  pace: pairs/s on
    one device, measured only where something is missing.
    """

    source: Source
    store: GramStore
    work: dict[Tile, list[Array]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    needed: dict[Array, set[Tile]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    pace: float = math.inf
    _queued: dict[Array, set[Tile]] = field(default_factory=dict)

    def add(self, request: Request, look: Look) -> None:
        """Take a request in: its tiles, and of each only what is not there."""
        self.requests.append(request)
        self.columns += [request.column] if request.column not in self.columns else []
        for array, tiles in request.reads(self.store.shape).items():
            self.needed.setdefault(array, set()).update(tiles)
            queued = self._queued.setdefault(array, set())
            new = tiles - look.there(self.store, array) - queued
            queued |= new
            for tile in sorted(new):
                self.work.setdefault(tile, []).append(array)

    @property
    def files(self) -> int:
        """Chunks still to write."""
        return sum(map(len, self.work.values()))


@dataclass(frozen=True)
class Share:
    """Some of a Fill's missing tiles."""

    fill: Fill
    tiles: list[Tile]

    @property
    def pairs(self) -> int:
        """Image pairs to compute."""
        return sum(map(self.fill.store.shape.pairs, self.tiles))

    @property
    def files(self) -> int:
        """Chunks to write: one for each array that lacks a tile."""
        return sum(len(self.fill.work[tile]) for tile in self.tiles)

    @property
    def bytes(self) -> int:
        """What these files take on disk."""
        return self.bytes_in(self.fill.store.shape)

    def bytes_in(self, shape: Shape) -> int:
        """The same in a store of another shape."""
        return sum(len(self.fill.work[tile]) * shape.chunk_bytes(tile) for tile in self.tiles)

    @property
    def seconds(self) -> float:
        """How long that takes on one device."""
        return self.pairs / self.fill.pace + self.files * SECONDS_A_FILE


def shares(fills: Sequence[Fill], requests: Sequence[Request]) -> dict[str, list[Share]]:
    """For each column, in the order of `requests`, the missing tiles that no column before it reads."""
    found: dict[str, list[Share]] = {request.column: [] for request in requests}
    for fill in fills:
        reads: dict[str, set[Tile]] = {}
        for request in fill.requests if fill.work else ():
            reads.setdefault(request.column, set()).update(request.tiles(fill.store.shape))
        left = list(fill.work)
        for column in (column for column in found if column in reads):
            tiles = [tile for tile in left if tile in reads[column]]
            if tiles:
                found[column].append(Share(fill, tiles))
            left = [tile for tile in left if tile not in reads[column]]
    return found


def plan_fills(
    requests: Sequence[Request],
    shelf: Shelf,
    rate: Callable[[Source, Sequence[Request]], float],
    side: int | str = "auto",
) -> list[Fill]:
    """What to compute so that every request has a store that holds it, one `Fill` a store.

    A request that some store holds already is in a Fill without work. rate: measures a source's pairs/s at what some
    requests read, called only where that is missing. side: of new stores' tiles, "auto" by work and by files.
    """
    fills: dict[Path, Fill] = {}
    open_requests: dict[str, list[Request]] = {}
    look = shelf.look()
    for request in requests:
        found = look.complete(request)
        if found:
            fills.setdefault(found[1].path, Fill(*found)).add(request, look)
        else:
            open_requests.setdefault(request.sources[0].name, []).append(request)
    for name, group in open_requests.items():
        first = group[0].sources[0]
        pace = rate(first, group)
        # Measured first, chosen under a lock: processes that start together agree on one store.
        lock = shelf.folder / "locks" / f"gram-{name}"
        with nullcontext() if shelf.read_only else locked(lock):
            look = shelf.look()
            source, store = _choose(group, look, pace, side)
        fill = fills.setdefault(store.path, Fill(source, store))
        fill.pace = pace if source == first else rate(source, group)
        for request in group:
            fill.add(request, look)
    return list(fills.values())


def _choose(group: Sequence[Request], look: Look, pace: float, side: int | str) -> tuple[Source, GramStore]:
    """The store to compute a group of requests in: of those begun and fit for it that of least work left, or a new one.

    Stores of another arithmetic or of other trained ends that this machine can compute, and that serve every request,
    are gone on with where that is much less.
    """
    first = group[0].sources[0]
    best = side if isinstance(side, int) else tile_side(group, first.images, pace)
    whole = _seconds(group, first.images, best, pace)
    most_files = max(MOST_FILES, _files(group, first.images, best))
    options: list[tuple[float, int, Source, GramStore]] = []
    for source in group[0].sources:
        if source.backend != first.backend or any(source not in request.sources for request in group):
            continue
        for store in look.stores(source):
            left = _seconds_left(group, look, store, pace) * (1.0 if source == first else UNFIT)
            if isinstance(side, int) and source == first:
                fit = store.shape.side == side
            else:
                fit = left <= (UNFIT * whole + UNFIT_SECONDS if source == first else whole)
                fit = fit and _files(group, first.images, store.shape.side) <= most_files
            if fit:
                options.append((left, len(options), source, store))
    if not options:
        return first, look.shelf.store(first, best)
    _, _, source, store = min(options)
    return source, store


def _seconds_left(group: Iterable[Request], look: Look, store: GramStore, pace: float) -> float:
    missing: dict[Array, set[Tile]] = {}
    for request in group:
        for array, left in look.missing(request, store).items():
            missing.setdefault(array, set()).update(left)
    pairs = sum(store.shape.pairs(tile) for tile in set().union(*missing.values()))
    return pairs / pace + SECONDS_A_FILE * sum(map(len, missing.values()))


def tile_side(group: Sequence[Request], images: Images, pace: float) -> int:
    """Half a minute of work, at most 256 MB, several across the images in use, and at most 20,000 files in all.

    pace: pairs/s. A divisor of the smallest draw is preferred: its blocks then end where tiles end.
    """
    arrays = len({array for request in group for array in request.arrays})
    used = len(np.unique(np.concatenate([columns for request in group for _, columns in request.blocks])))
    largest = int((LARGEST_TILE_BYTES / (8 * arrays)) ** 0.5)
    side = max(SMALLEST_TILE, (pace * SECONDS_A_TILE) ** 0.5)
    side = max(1, int(min(side, largest, -(-used // FEWEST_TILES_ACROSS))))
    # No side makes fewer files than its tiles have room for: the search starts where that alone allows enough.
    asked = sum(len(rows) * len(columns) * len(r.arrays) for r in group for rows, columns in r.blocks)
    side = max(side, min(largest, int((asked / 2 / MOST_FILES) ** 0.5)))
    while side < largest and _files(group, images, side) > MOST_FILES:
        side = int(side * 1.1) + 1
    smallest = min(len(columns) for request in group for _, columns in request.blocks)
    whole = [s for s in range(side, side // 2, -1) if smallest % s == 0]
    return next((s for s in whole if s == side or _files(group, images, s) <= MOST_FILES), side)


def _grids(group: Iterable[Request], images: Images, side: int) -> dict[Array, np.ndarray]:
    """For each array which tiles are read: (tiles down, tiles across) booleans."""
    shape = Shape(images.n_train + images.n_test, images.n_train, side)
    rows, columns = (-(-n // side) for n in (shape.rows, shape.columns))
    found: dict[Array, np.ndarray] = {}
    for request in group:
        tiles = [(shape.along(r)[:, None], shape.along(c)) for r, c in request.blocks]
        # Of K(x, x) there are a few small tiles, which decide nothing.
        for array in (a for a in request.arrays if not is_self_kernel(a)):
            grid = found.setdefault(array, np.zeros((rows, columns), bool))
            for i, j in tiles:
                grid[np.maximum(i, j), np.minimum(i, j)] = True
    return found


def _files(group: Iterable[Request], images: Images, side: int) -> int:
    return sum(int(grid.sum()) for grid in _grids(group, images, side).values())


def _seconds(group: Iterable[Request], images: Images, side: int, pace: float) -> float:
    grids = list(_grids(group, images, side).values())
    read = np.logical_or.reduce(grids)
    diagonal = int(np.diagonal(read).sum())
    pairs = (int(read.sum()) - diagonal / 2) * side**2
    return pairs / pace + SECONDS_A_FILE * sum(int(grid.sum()) for grid in grids)


def shard_of(tile: Tile, shards: int) -> int:
    """The shard, from 1 on, that computes a tile: by its indices alone, so that hosts of any needs agree on it."""
    i, j = tile
    return (i * (i + 1) // 2 + j) % shards + 1
