"""Which kernel values are asked for, which stores may hold them, and which tiles are still to compute."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from exact_ntk.config import Gram
from exact_ntk.errors import Incomplete
from exact_ntk.files import fingerprint
from exact_ntk.gram import store as stores
from exact_ntk.gram.store import GramStore
from exact_ntk.gram.tiles import Array, Shape, Tile, is_self_kernel
from exact_ntk.kernel_names import KERNEL_VERSION, RESOLVED_BACKENDS, family_of, pooling_of, trained_by_default
from exact_ntk.locks import locked

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_A_TILE = 30.0
SECONDS_A_FILE = 0.002
LARGEST_TILE_BYTES = 256 << 20
SMALLEST_TILE = 16  # smaller ones cost more to handle than to lose
FEWEST_TILES_ACROSS = 4
MOST_FILES = 20_000
# A store in tiles of another side is gone on with unless it takes this many times, and this many seconds more.
UNFIT, UNFIT_SECONDS = 4.0, 60.0
PRECISIONS = "float32", "float64"  # a later one serves for an earlier

Block = tuple[np.ndarray, np.ndarray]  # rows and columns, as positions


class Images(Protocol):
    """Training images, then test images; a position among them is a row of a store."""

    @property
    def n_train(self) -> int: ...

    @property
    def n_test(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        ...

    @property
    def fields(self) -> dict[str, Any]:
        """What names these images in a fingerprint, `train_images` and `test_images` among it."""
        ...

    @property
    def image_index(self) -> np.ndarray:
        """Position -> index among the training or the test images as they were given."""
        ...

    @property
    def of_a_draw(self) -> bool:
        """Whether these are one draw's images alone, done with when their store is."""
        ...

    def passing(self) -> "Tensor":
        """As the kernels take them, (n_train + n_test, C, H, W)."""
        ...


@dataclass(frozen=True)
class Source:
    """Where kernel values may come from: images, a readout family with its trained ends, a backend, an arithmetic.

    stored: the dtype of the values on disk.
    """

    family: str
    train_first: bool
    train_last: bool
    backend: str
    dtype: str
    images: Images
    stored: str = "float64"

    @property
    def values(self) -> dict[str, Any]:
        """What the values of an NNGP kernel depend on: all but the trained ends."""
        return {
            **self.images.fields,
            "family": self.family,
            "backend": self.backend,
            "dtype": self.dtype,
            "stored": self.stored,
            "kernel_version": KERNEL_VERSION,
        }

    @property
    def fields(self) -> dict[str, Any]:
        """What names a store of it."""
        return {**self.values, "train_first": self.train_first, "train_last": self.train_last}

    @cached_property
    def name(self) -> str:
        """The fingerprint of its fields."""
        return fingerprint(self.fields)


def sources_of(kernel: str, ends: tuple[bool, bool], gram: Gram, images: Images) -> tuple[Source, ...]:
    """Every source that can serve a kernel readout, those of other machines' backends too, as `gram.backend` admits.

    ends: trained first and last layer of its pass; an NNGP kernel, which does not depend on them, may come from any
    other. A float64 pass serves where float32 is asked for, and values kept in float64 where float32 is.
    """
    family, allowed = family_of(kernel), [ends]
    if kernel != pooling_of(kernel):
        default = trained_by_default(family)
        every = [(a, b) for a in (False, True) for b in (False, True)]
        allowed = list(dict.fromkeys([ends, (default, default), *every]))
    backends = [b for b in RESOLVED_BACKENDS if gram.backend in ("auto", b.split("-")[0])]
    dtypes, stored = (PRECISIONS[PRECISIONS.index(asked) :] for asked in (gram.dtype, gram.store))
    return tuple(
        Source(family, first, last, name, dtype, images, kept)
        for dtype in dtypes
        for kept in stored
        for name in backends
        for first, last in allowed
        # The fused kernels compute in float32 only, and the reference Myrtle networks in float64 only.
        if not (dtype == "float64" and name.startswith("fused"))
        if not (dtype == "float32" and name.startswith("reference") and family == "myrtle")
    )


def preferring(sources: Sequence[Source], backend: str | None) -> tuple[Source, ...]:
    """The sources of a column in order of preference; backend: as resolved here, None where nothing can compute.

    What this machine would compute goes before the others.
    """
    return tuple(sorted(sources, key=lambda source: source.backend != backend))


@dataclass(frozen=True)
class Request:
    """Blocks of arrays that a column reads, from one store of any of `sources`, in order of preference.

    arrays: its kernel's, and those beside it that it reads as well.
    """

    column: str
    arrays: tuple[Array, ...]
    sources: tuple[Source, ...]
    blocks: tuple[Block, ...]

    @property
    def array(self) -> Array:
        """Its kernel's."""
        return self.arrays[0]

    def reads(self, shape: Shape) -> dict[Array, set[Tile]]:
        """For each array the tiles that are read of it."""
        blocks = set().union(*(shape.covering(rows, columns) for rows, columns in self.blocks))
        images: set[Tile] = set()
        if any(map(is_self_kernel, self.arrays)):
            images.update(*(shape.on_diagonal(at) for block in self.blocks for at in block))
        return {array: images if is_self_kernel(array) else blocks for array in self.arrays}

    def tiles(self, shape: Shape) -> set[Tile]:
        """The tiles that are read of some array."""
        return set().union(*self.reads(shape).values())


class Shelf:
    """The Gram stores of a run's folder.

    read_only: nothing is made: a store whose metadata are lost is passed over, not mended.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        self.folder, self.read_only = folder, read_only
        self._opened: dict[Path, GramStore] = {}

    def look(self) -> "Look":
        """What is there now."""
        return Look(self)

    def store(self, source: Source, side: int) -> GramStore:
        """The store of a source in tiles of a side, made if it is not there and this shelf is not read-only."""
        path = stores.store_path(self.folder, source.fields, side)
        if self.read_only and not stores.is_made(path):
            return GramStore(path, source.fields, stores.shape_of(source.fields, side))
        if path not in self._opened:
            self._opened[path] = stores.make(self.folder, source.fields, side, source.images.image_index)
        return self._opened[path]

    def require(self, request: Request) -> tuple[Source, GramStore]:
        """As `Look.complete`. Raises Incomplete, with how much is missing, where there is none."""
        look = self.look()
        found = look.complete(request)
        if found:
            return found
        store, (readout, depth) = look.begun(request), request.array
        if not store:
            raise Incomplete(f"{request.column} at depth {depth}: no Gram matrix yet: run `ntk compute-gram` first")
        needed = sum(map(len, request.reads(store.shape).values()))
        missing = sum(map(len, look.missing(request, store).values()))
        raise Incomplete(
            f"{request.column} at depth {depth}: {missing} of {needed} tiles of {readout} are missing in "
            f"{store.path}: run `ntk compute-gram` to finish them"
        )


class Look:
    """What a shelf holds at one moment: a folder is listed once, however many requests are asked about."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf
        self._sides = stores.sides_in(shelf.folder)
        self._stores: dict[str, list[GramStore]] = {}
        self._finished: dict[tuple[Path, Array], set[Tile]] = {}

    def stores(self, source: Source) -> list[GramStore]:
        """The stores of a source, the largest side first."""
        if source.name not in self._stores:
            folder, sides = self.shelf.folder, self._sides.get(source.name, [])
            if self.shelf.read_only:
                sides = [s for s in sides if stores.is_made(stores.store_path(folder, source.fields, s))]
            self._stores[source.name] = [self.shelf.store(source, side) for side in sides]
        return self._stores[source.name]

    def missing(self, request: Request, store: GramStore) -> dict[Array, set[Tile]]:
        """What a request reads and a store lacks."""
        return {array: tiles - self.there(store, array) for array, tiles in request.reads(store.shape).items()}

    def there(self, store: GramStore, array: Array) -> set[Tile]:
        """The tiles of an array that a store has."""
        key = store.path, array
        if key not in self._finished:
            self._finished[key] = store.finished(array)
        return self._finished[key]

    def complete(self, request: Request) -> tuple[Source, GramStore] | None:
        """The first source with a store that holds every block of a request, or None."""
        for source in request.sources:
            for store in self.stores(source):
                if not any(self.missing(request, store).values()):
                    return source, store
        return None

    def begun(self, request: Request) -> GramStore | None:
        """The first store that may serve a request, or None."""
        return next((store for source in request.sources for store in self.stores(source)), None)

    def states(self, requests: Sequence[Request]) -> list["State"]:
        """How far each store is for the requests; those without one together. Makes nothing."""
        found: dict[Path | None, State] = {}
        for request in requests:
            complete = self.complete(request)
            store = complete[1] if complete else self.begun(request)
            state = found.setdefault(store.path if store else None, State(store))
            state.columns += [request.column] if request.column not in state.columns else []
            if store:
                missing = self.missing(request, store)
                for array, tiles in request.reads(store.shape).items():
                    state.finished.setdefault(array, set()).update(tiles - missing[array])
                    state.missing.setdefault(array, set()).update(missing[array])
        return list(found.values())


@dataclass
class State:
    """How far one store is for the requests it is to serve, or that there is none for them yet."""

    store: GramStore | None
    columns: list[str] = field(default_factory=list)
    finished: dict[Array, set[Tile]] = field(default_factory=dict)
    missing: dict[Array, set[Tile]] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Tiles that some array lacks."""
        return len(set().union(*self.missing.values())) if self.missing else 0

    @property
    def needed(self) -> int:
        """Tiles that some request reads."""
        return len(set().union(*self.finished.values(), *self.missing.values())) if self.finished else 0

    @property
    def done(self) -> int:
        """Tiles that no array lacks."""
        return self.needed - self.left


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


def elsewhere(folder: Path, source: Source) -> list[Path]:
    """Runs of other names that hold stores of the same source."""
    name = f"gram-{source.name}-*"
    return sorted({path.parent for path in folder.parent.glob(f"*/{name}") if path.parent != folder})
