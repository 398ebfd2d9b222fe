"""The Gram store: a zarr group on disk that any number of processes may fill, and that is itself the queue.

One array for each readout and depth, K (rows, columns), in square tiles of one chunk each. A chunk that is there is
finished; a missing one is work left. Above the diagonal of the train-train square nothing is stored: `read` mirrors it.
Beside an array may stand K(x, Fx'), F the mirror image, which is symmetric too, and K(x, x), (rows, 1).
"""

import contextlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_ntk.errors import Incomplete, NtkError, StoreError
from exact_ntk.files import digest, fingerprint, temporary_beside
from exact_ntk.gram.tiles import (
    SELF,
    Array,
    Shape,
    Tile,
    array_name,
    is_self_kernel,
    self_kernel,
)
from exact_ntk.locks import Lock, locked, try_lock
from exact_ntk.progress import progress

if TYPE_CHECKING:
    from zarr.storage import MemoryStore

# zarr is imported where a store is opened: to see which tiles there are takes none.
FORMAT = 2
READ_AHEAD = 4  # tiles that are read at once, each by a thread
ADVICE = "move it away to have it computed anew"
OR_IN_PYTHON = "(in Python, gram_store(..., repair=True))"


def _selected(block: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """block[rows][:, columns]; not a copy of it where both are consecutive."""
    if all((np.diff(index) == 1).all() for index in (rows, columns)):
        return block[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return block[np.ix_(rows, columns)]


def shape_of(fields: dict[str, Any], side: int) -> Shape:
    """The grid of the store of these fingerprint fields in tiles of this side."""
    train, test = fields["train_images"], fields["test_images"]
    return Shape(train + test, train, side, fields.get("stored", "float64"))


def store_path(folder: Path, fields: dict[str, Any], side: int) -> Path:
    """Where the store of these fingerprint fields in tiles of this side lies in a run's folder."""
    return folder / f"gram-{fingerprint(fields)}-{side}"


def sides_in(folder: Path) -> dict[str, list[int]]:
    """Fingerprint -> the sides of the tiles in which a run's folder has stores of such fields, the largest first."""
    found: dict[str, list[int]] = {}
    for path in folder.glob("gram-*"):
        if name := re.fullmatch(r"gram-([0-9a-f]{16})-(\d+)", path.name):
            found.setdefault(name[1], []).append(int(name[2]))
    return {fields: sorted(sides, reverse=True) for fields, sides in found.items()}


def other_formats(folder: Path) -> list[Path]:
    """Stores of an earlier format, which nothing here reads."""
    return [path for path in sorted(folder.glob("gram-*")) if re.fullmatch(r"gram-[0-9a-f]{16}", path.name)]


def make(folder: Path, fields: dict[str, Any], side: int, image_index: np.ndarray) -> "GramStore":
    """Open the store of `fields` in tiles of `side`, made if it is not there; lost group metadata are written anew.

    fields: what the values depend on; train_images and test_images are read from it. image_index (rows,): position ->
    index in the data set. Raises StoreError, naming the field, where what is there belongs to other fields.
    """
    path = store_path(folder, fields, side)
    if not is_made(path):
        with _making(path):
            if not is_made(path):
                _make(path, fields, side, image_index)
    return open(path, fields)


@contextlib.contextmanager
def _making(path: Path) -> Iterator[None]:
    """Hold the lock under which a store's group and arrays are made, and remove what killed makers have left."""
    with locked(path.parent / "locks" / path.name) as lock:
        lock.clear(path)
        lock.clear_in(path, ".*-L*.partial")
        yield


def is_made(path: Path) -> bool:
    """Whether a store's metadata are there."""
    return (path / "zarr.json").exists() and (path / "image_index" / "zarr.json").exists()


def _make(path: Path, fields: dict[str, Any], side: int, image_index: np.ndarray) -> None:
    """Write what of a store's metadata is missing; under the store's lock."""
    import zarr
    from zarr.codecs import Crc32cCodec

    temporary = temporary_beside(path)
    attributes = {"format": FORMAT, "fields": fields, "side": side, "image_index_digest": digest(image_index)}
    try:
        group = zarr.create_group(str(temporary), zarr_format=3, attributes=attributes)
        index = image_index.astype(np.int64)
        group.create_array("image_index", data=index, chunks=(len(index),), compressors=[Crc32cCodec()])
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():  # one without metadata, or made by another host
                raise
            _publish(temporary / "image_index", path / "image_index")
            (temporary / "zarr.json").replace(path / "zarr.json")
    except OSError as error:
        raise NtkError(f"cannot make a Gram store at {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, place: Path) -> None:
    """Rename a new array into place; where one is, made by another host or without metadata, those alone are written:
    to what they are already, if they are there."""
    try:
        temporary.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        (temporary / "zarr.json").replace(place / "zarr.json")


def open(path: Path | str, fields: dict[str, Any] | None = None) -> "GramStore":
    """Open a store for reading and writing.

    Raises StoreError, naming the field, if its attributes do not belong to its name, or to the `fields` that the
    config asks for; if it is of another format; and if the group or an array of it is damaged.
    """
    import zarr

    path = Path(path)
    try:
        attributes: dict[str, Any] = dict(zarr.open_group(str(path), mode="r+", zarr_format=3).attrs)
        if attributes.get("format") != FORMAT:
            raise StoreError(f"{path}: has format {attributes.get('format')}, not {FORMAT}; {ADVICE}")
        found, side = attributes["fields"], int(attributes["side"])
        shape = shape_of(found, side)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: not a Gram store, or its metadata are damaged ({error}); {ADVICE}") from error
    expected = found if fields is None else fields
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise StoreError(
                f"{path}: was computed for another {key} than this config's ({_short(found.get(key))}, not "
                f"{_short(expected.get(key))}): it was renamed, copied or edited; {ADVICE}"
            )
    name = store_path(path.parent, found, side).name
    if path.name != name:
        raise StoreError(f"{path}: its attributes belong to {name}: it was renamed or edited; {ADVICE}")
    store = GramStore(path, found, shape)
    store.check_image_index(attributes.get("image_index_digest"))
    return store


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class TileLock:
    """A tile that this process alone may write, until `release`."""

    store: "GramStore"
    tile: Tile
    lock: Lock

    def release(self) -> None:
        """Let go; the lock file goes once every array of the store has the tile."""
        self.lock.release(remove=all(self.store.has(array, self.tile) for array in self.store.arrays_with(self.tile)))


class DamagedTile(StoreError):
    """A tile whose checksum fails or that cannot be decoded."""


class GramStore:
    """An open store (see `make` and `open`); one that is constructed alone is not on disk and has no finished tile."""

    def __init__(self, path: Path, fields: dict[str, Any], shape: Shape):
        self.path = path
        self.fields = fields
        self.shape = shape
        self._opened: dict[Array, Any] = {}

    @property
    def image_index(self) -> np.ndarray:
        """(rows,) position -> index in the data set: training images, then test images."""
        import zarr

        return np.asarray(zarr.open_array(str(self.path / "image_index"), mode="r")[:])

    def check_image_index(self, expected: str | None) -> None:
        """Raise StoreError unless the image index has the digest that the attributes state."""
        try:
            good = digest(self.image_index) == expected
        except (ValueError, OSError, RuntimeError, LookupError, TypeError):
            good = False
        if not good:
            raise StoreError(f"{self.path}: image_index is damaged or belongs to another store; {ADVICE}")

    def arrays(self) -> list[Array]:
        """The readouts and depths that the store has an array for, complete or not."""
        names = [m for e in os.scandir(self.path) if (m := re.fullmatch(r"(.+)-L(\d+)", e.name))]
        return sorted((m[1], int(m[2])) for m in names)

    def arrays_with(self, tile: Tile) -> list[Array]:
        """Those of `arrays` that a tile is of."""
        return [array for array in self.arrays() if is_self_kernel(array) == (tile[1] == SELF)]

    def _layout(self, array: Array) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shape of an array and of its chunks."""
        s = self.shape
        return ((s.rows, 1), (s.side, 1)) if is_self_kernel(array) else ((s.rows, s.columns), (s.side, s.side))

    def add(self, array: Array) -> None:
        """Make the array if it is not there; where only its metadata are lost they are written anew."""
        place = self.path / array_name(array)
        if not (place / "zarr.json").exists():
            with _making(self.path):
                if not (place / "zarr.json").exists():
                    self._make_array(array, place)
        self._array(array)

    def _make_array(self, array: Array, place: Path) -> None:
        temporary = temporary_beside(place)
        try:
            self._lay_out(str(temporary), array)
            _publish(temporary, place)
        except OSError as error:
            raise NtkError(f"cannot make an array in {self.path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _lay_out(self, where: "str | MemoryStore", array: Array) -> Any:
        """A new zarr array of this store's layout."""
        import zarr
        from zarr.codecs import BytesCodec, Crc32cCodec

        shape, chunks = self._layout(array)
        return zarr.create_array(
            where,
            shape=shape,
            chunks=chunks,
            dtype=self.shape.stored,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            fill_value=float("nan"),
            dimension_names=("row", "column"),
            attributes=self._attributes(array),
        )

    def _attributes(self, array: Array) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint(self.fields),
            "readout": array[0],
            "depth": array[1],
            "side": self.shape.side,
        }

    def _array(self, array: Array) -> Any:
        """The zarr array, opened once. Raises StoreError unless it is laid out and named as this store's."""
        if array not in self._opened:
            import zarr
            from zarr.storage import MemoryStore

            path = self.path / array_name(array)
            if not (path / "zarr.json").exists() and path.is_dir():
                self.add(array)
            try:
                opened = zarr.open_array(str(path), mode="r+", zarr_format=3)
                found = opened.metadata.to_dict()
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise StoreError(
                    f"{path}: not an array of a Gram store, or its metadata are damaged ({error}): delete its "
                    "zarr.json to have that written anew, at no tile's cost"
                ) from error
            for key, value in self._attributes(array).items():
                if opened.attrs.get(key) != value:
                    raise StoreError(
                        f"{path}: belongs to another {key} ({_short(opened.attrs.get(key))}, not {_short(value)}): it "
                        f"was renamed or copied; {ADVICE}"
                    )
            # As text, for the fill value is NaN.
            if repr(found) != repr(self._lay_out(MemoryStore(), array).metadata.to_dict()):
                raise StoreError(
                    f"{path}: its zarr.json is not laid out as the store's attributes state: delete it to have it "
                    "written anew, at no tile's cost"
                )
            self._opened[array] = opened
        return self._opened[array]

    def _chunk(self, array: Array, tile: Tile) -> Path:
        return self.path / array_name(array) / "c" / str(tile[0]) / str(max(tile[1], 0))

    def has(self, array: Array, tile: Tile) -> bool:
        """Whether a tile of an array is finished."""
        return self._chunk(array, tile).exists()

    def finished(self, array: Array) -> set[Tile]:
        """Every finished tile of an array."""
        folder = self.path / array_name(array) / "c"
        if not folder.is_dir():
            return set()
        return {
            (int(row.name), SELF if is_self_kernel(array) else int(e.name))
            for row in os.scandir(folder)
            if row.name.isdigit()
            for e in os.scandir(row.path)
            if e.name.isdigit()
        }

    def complete(self, arrays: Iterable[Array], tiles: set[Tile]) -> bool:
        """Whether every one of `tiles` is finished in every one of `arrays`."""
        return all(tiles <= self.finished(array) for array in arrays)

    def claim(self, tile: Tile) -> TileLock | None:
        """Lock a tile on this host, in every array, or None if another process holds it.

        The lock goes with the process, however that ends. Whoever gets it removes what a killed writer left.
        """
        lock = try_lock(self.path / ".locks" / f"{tile[0]}.{tile[1]}")
        if lock is None:
            return None
        for array in self.arrays_with(tile):
            chunk = self._chunk(array, tile)
            lock.clear_in(chunk.parent, f"{chunk.name}.*.partial")
        return TileLock(self, tile, lock)

    def write(self, tile: Tile, values: Mapping[Array, np.ndarray]) -> None:
        """Write a tile of each array: (rows, columns) of its bounds, rounded to the dtype that is stored.

        Raises StoreError for values that are not finite, which must never look finished or be computed for ever.
        """
        with np.errstate(over="ignore"):
            values = {array: block.astype(self.shape.stored, copy=False) for array, block in values.items()}
        for (readout, depth), block in values.items():
            finite = np.isfinite(block)
            if not finite.all():
                i, j = np.argwhere(~finite)[0]
                index, (rows, columns) = self.image_index, self.shape.bounds(tile)
                columns = columns if tile[1] != SELF else slice(rows.start + i, None)
                raise StoreError(
                    f"{self.path}: tile {tile} came out {block[i, j]} for {readout} at depth {depth}, images "
                    f"{index[rows][i]} and {index[columns][j]}: not written; are these images extreme?"
                )
        for array, block in values.items():
            try:
                self._array(array)[self.shape.bounds(tile)] = block
            except OSError as error:
                raise NtkError(
                    f"cannot write tile {tile} of {self.path}: {error.strerror or error}; finished tiles are safe: "
                    "make room or mend the folder, then run the same command again"
                ) from error

    def _read_tile(self, array: Array, tile: Tile) -> np.ndarray:
        opened = self._array(array)
        try:
            return np.asarray(opened[self.shape.bounds(tile)])
        except OSError as error:
            raise NtkError(f"cannot read tile {tile} of {self.path}: {error.strerror or error}") from error
        except (ValueError, RuntimeError) as error:
            why = "its checksum does not match" if "checksum" in str(error) else error
            raise DamagedTile(
                f"{self.path}: tile {tile} of {array_name(array)} is damaged ({why}): run `ntk compute-gram --repair` "
                f"{OR_IN_PYTHON} to compute it anew"
            ) from error

    def read(self, readout: str, depth: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """K[rows, columns] of one readout at one depth: float64 (len(rows), len(columns)). Each tile is read once.

        rows, columns: positions (see `image_index`). Raises Incomplete if a tile of it is missing, StoreError if
        one is damaged, ValueError for a readout or depth that the store does not hold.
        """
        rows, columns = np.asarray(rows), np.asarray(columns)
        out = np.empty((len(rows), len(columns)))
        for i, j, values in self.pieces(readout, depth, rows, columns):
            out[np.ix_(i, j)] = values
        return out

    def pieces(
        self, readout: str, depth: int, rows: np.ndarray, columns: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """What `read` gives, tile by tile, as (i, j, values): K[rows[i], columns[j]], every entry once.

        Raises as `read` does.
        """
        array = readout, depth
        if array not in self.arrays():
            raise ValueError(f"{self.path} holds {[array_name(a) for a in self.arrays()]}, not {array_name(array)}")
        tiles = self.shape.covering(rows, columns)
        missing = tiles - self.finished(array)
        if missing:
            raise Incomplete(f"{self.path}: {len(missing)} tiles are missing: run `ntk compute-gram` first")
        for tile, whole in self._read_ahead(array, sorted(tiles)):
            if np.isnan(whole).any():
                raise StoreError(
                    f"{self.path}: {array_name(array)} holds NaN: run `ntk compute-gram --repair` {OR_IN_PYTHON} to "
                    "compute it anew"
                )
            for at, block in ((tile, whole), (tile[::-1], whole.T))[: 1 if tile[0] == tile[1] else 2]:
                i, j = (np.flatnonzero(x // self.shape.side == k) for x, k in zip((rows, columns), at, strict=True))
                if len(i) and len(j):
                    top, left = (k * self.shape.side for k in at)
                    yield i, j, _selected(block, rows[i] - top, columns[j] - left)

    def self_values(self, readout: str, depth: int, rows: np.ndarray) -> np.ndarray:
        """K(x, x) of the images at positions `rows`, float64 (len(rows),). Raises as `read` does."""
        array = self_kernel((readout, depth))
        tiles = self.shape.on_diagonal(rows)
        if not self.complete([array], tiles):
            raise Incomplete(f"{self.path}: {array_name(array)} is not complete: run `ntk compute-gram` first")
        found = np.empty(len(rows))
        for tile in tiles:
            inside, (at, _) = rows // self.shape.side == tile[0], self.shape.bounds(tile)
            found[inside] = self._read_tile(array, tile)[rows[inside] - at.start, 0]
        return found

    def _read_ahead(self, array: Array, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, np.ndarray]]:
        """Tiles in their order, each read once, the next ones while the caller works on one."""
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            coming = deque(pool.submit(self._read_tile, array, tile) for tile in tiles[:READ_AHEAD])
            try:
                for tile, later in zip_longest(tiles, tiles[READ_AHEAD:]):
                    whole = coming.popleft().result()
                    if later is not None:
                        coming.append(pool.submit(self._read_tile, array, later))
                    yield tile, whole
            finally:
                for one in coming:
                    one.cancel()

    def damaged(self, work: Mapping[Array, Iterable[Tile]]) -> list[tuple[Array, Tile]]:
        """Those of the finished tiles of each array whose checksum fails or that hold NaN; reads them all."""
        todo = [(array, tile) for array, tiles in work.items() for tile in sorted(tiles)]
        bad = []
        with progress(f"checking {self.path.name}", len(todo), "tile", delay=2.0) as bar:
            for array, tile in todo:
                try:
                    if not np.isfinite(self._read_tile(array, tile)).all():
                        bad.append((array, tile))
                except DamagedTile:
                    bad.append((array, tile))
                bar.update()
        return bad

    def discard(self, array: Array, tile: Tile) -> bool:
        """Set a tile that is still damaged aside as *.damaged, so that it counts as missing; whether that was done."""
        lock = self.claim(tile)
        if lock is None:
            return False  # another process is at it
        try:
            chunk = self._chunk(array, tile)
            still = chunk.exists() and bool(self.damaged({array: [tile]}))
            if still:
                chunk.replace(chunk.with_name(f"{chunk.name}.damaged"))
            return still
        finally:
            lock.release()
