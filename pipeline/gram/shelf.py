"""The Gram stores of a run's folder, and what of them a column asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exact_ntk.errors import Incomplete
from exact_ntk.gram import store as stores
from exact_ntk.gram.sources import Source
from exact_ntk.gram.store import GramStore
from exact_ntk.gram.tiles import Array, Shape, Tile, is_self_kernel

Block = tuple[np.ndarray, np.ndarray]  # rows and columns, as positions


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


def elsewhere(folder: Path, source: Source) -> list[Path]:
    """Runs of other names that hold stores of the same source."""
    name = f"gram-{source.name}-*"
    return sorted({path.parent for path in folder.parent.glob(f"*/{name}") if path.parent != folder})
