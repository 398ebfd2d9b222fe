"""The Gram store: a zarr group of tiles on disk that any number of processes may fill, and that is itself the queue.

A tile that is there is finished; a missing one is work left. Each tile holds one chunk of every readout, all depths
at once. Above the diagonal of the train-train square nothing is stored: `read` mirrors it.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from exact_ntk.errors import Incomplete, NtkError, StoreError
from exact_ntk.files import digest, fingerprint
from exact_ntk.locks import Lock, try_lock
from exact_ntk.progress import progress

FORMAT = 1
Tile = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """What a store holds: float64 (depths, rows, columns) for each readout, in square tiles.

    rows: training, then test images; columns: training images; tile: the side of a tile in images.
    """

    readouts: tuple[str, ...]
    depths: tuple[int, ...]
    rows: int
    columns: int
    tile: int

    def bounds(self, tile: Tile) -> tuple[slice, slice]:
        """Rows and columns of a tile."""
        i, j = (k * self.tile for k in tile)
        return slice(i, min(i + self.tile, self.rows)), slice(j, min(j + self.tile, self.columns))

    def covering(self, rows: np.ndarray, columns: np.ndarray) -> set[Tile]:
        """The tiles that hold K[rows, columns], above the diagonal replaced by their mirror images."""
        return {
            (int(max(i, j)), int(min(i, j)))
            for i in np.unique(rows // self.tile)
            for j in np.unique(columns // self.tile)
        }

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile on disk: zarr writes ragged edge tiles in full."""
        return len(self.readouts) * (len(self.depths) * self.tile**2 * 8 + 4)


def store_path(folder: Path, fields: dict[str, Any]) -> Path:
    """Where the store of these fingerprint fields lies in a run's folder."""
    return folder / f"gram-{fingerprint(fields)}"


def create(path: Path, fields: dict[str, Any], tile: int, image_index: np.ndarray) -> "GramStore":
    """Make an empty store at `path`, or open the one that another process has just made.

    fields: what the values depend on; readouts, depths, train_images and test_images are read from it.
    """
    shape = Shape(
        tuple(fields["readouts"]),
        tuple(fields["depths"]),
        fields["train_images"] + fields["test_images"],
        fields["train_images"],
        tile,
    )
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    attributes = {"format": FORMAT, "fields": fields, "tile": tile, "image_index_digest": digest(image_index)}
    try:
        group = zarr.create_group(str(temporary), zarr_format=3, attributes=attributes)
        for readout in shape.readouts:
            group.create_array(
                readout,
                shape=(len(shape.depths), shape.rows, shape.columns),
                chunks=(len(shape.depths), tile, tile),
                dtype="float64",
                serializer=BytesCodec(),
                compressors=[Crc32cCodec()],
                fill_value=float("nan"),
                dimension_names=("depth", "row", "column"),
            )
        group.create_array(
            "image_index", data=image_index.astype(np.int64), chunks=(len(image_index),), compressors=[Crc32cCodec()]
        )
        with contextlib.suppress(FileExistsError, OSError):
            temporary.rename(path)
    except OSError as error:
        raise NtkError(f"cannot make a Gram store at {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not path.is_dir():
        raise NtkError(f"cannot make a Gram store at {path}: is the folder writable?")
    return open(path, fields)


def open(path: Path | str, fields: dict[str, Any] | None = None) -> "GramStore":
    """Open a store for reading and writing.

    Raises StoreError, naming the field, if its attributes do not belong to its name, or to the `fields` that the
    config asks for; and if the group or its arrays are damaged.
    """
    path = Path(path)
    advice = "move it away to have it computed anew"
    try:
        group = zarr.open_group(str(path), mode="r+", zarr_format=3)
        attributes: dict[str, Any] = dict(group.attrs)
        found = attributes["fields"]
        shape = Shape(
            tuple(found["readouts"]),
            tuple(found["depths"]),
            found["train_images"] + found["test_images"],
            found["train_images"],
            attributes["tile"],
        )
        arrays = {name: group[name] for name in (*shape.readouts, "image_index")}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: not a Gram store, or its metadata are damaged ({error}); {advice}") from error
    expected = found if fields is None else fields
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise StoreError(
                f"{path}: was computed for another {key} than this config's ({_short(found.get(key))}, not "
                f"{_short(expected.get(key))}): it was renamed, copied or edited; {advice}"
            )
    if attributes.get("format") != FORMAT:
        raise StoreError(f"{path}: has format {attributes.get('format')}, not {FORMAT}; {advice}")
    if fields is None and path.name != f"gram-{fingerprint(found)}":
        raise StoreError(
            f"{path}: its attributes (fields) belong to gram-{fingerprint(found)}: it was renamed or edited; {advice}"
        )
    store = GramStore(path, found, shape, arrays)
    store.check_arrays(attributes, advice)
    return store


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_space(folder: Path, need: int) -> None:
    """Raise NtkError unless the folder's disk has room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise NtkError(
            f"{folder}: the missing tiles need {need / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free: "
            "make room, or give another folder with --runs"
        )


@dataclass(frozen=True)
class TileLock:
    """A tile that this process alone may write, until `release`."""

    store: "GramStore"
    tile: Tile
    lock: Lock

    def release(self) -> None:
        """Let go; the lock file of a finished tile goes too, and whoever waits on it finds the tile finished."""
        self.lock.release(remove=self.store.has(self.tile))


class GramStore:
    """One open store; see `create` and `open`."""

    def __init__(self, path: Path, fields: dict[str, Any], shape: Shape, arrays: dict[str, Any]):
        self.path = path
        self.fields = fields
        self.shape = shape
        self._arrays = arrays

    def check_arrays(self, attributes: dict[str, Any], advice: str) -> None:
        """Raise StoreError unless every array has the layout and the image index that the attributes state."""
        s = self.shape
        whole, chunk = (len(s.depths), s.rows, s.columns), (len(s.depths), s.tile, s.tile)
        for name in s.readouts:
            array = self._arrays[name]
            if (array.shape, array.chunks, str(array.dtype)) != (whole, chunk, "float64"):
                raise StoreError(f"{self.path}: array {name} is not laid out as the attributes state; {advice}")
        try:
            good = digest(self.image_index) == attributes.get("image_index_digest")
        except (ValueError, OSError):
            good = False
        if not good:
            raise StoreError(f"{self.path}: image_index is damaged or belongs to another store; {advice}")

    @property
    def image_index(self) -> np.ndarray:
        """(rows,) position -> index in the data set: training images, then test images."""
        return np.asarray(self._arrays["image_index"][:])

    def _chunk(self, readout: str, tile: Tile) -> Path:
        return self.path / readout / "c" / "0" / str(tile[0]) / str(tile[1])

    def has(self, tile: Tile) -> bool:
        """Whether a tile is finished: each of its readouts is on disk."""
        return all(self._chunk(readout, tile).exists() for readout in self.shape.readouts)

    def missing(self, tiles: Iterable[Tile]) -> list[Tile]:
        """Those of `tiles` that are not finished, in row-major order."""
        there = [self._listed(readout) for readout in self.shape.readouts]
        return sorted(t for t in tiles if not all(t in listed for listed in there))

    def _listed(self, readout: str) -> set[Tile]:
        found: set[Tile] = set()
        folder = self.path / readout / "c" / "0"
        if folder.is_dir():
            for row in os.scandir(folder):
                if row.name.isdigit():
                    found.update((int(row.name), int(e.name)) for e in os.scandir(row.path) if e.name.isdigit())
        return found

    def claim(self, tile: Tile) -> "TileLock | None":
        """Lock a tile on this host, or None if another process holds it.

        The lock goes with the process, however that ends. Whoever gets it removes what a killed writer left.
        """
        lock = try_lock(self.path / ".locks" / f"{tile[0]}.{tile[1]}")
        if lock is None:
            return None
        for readout in self.shape.readouts:
            chunk = self._chunk(readout, tile)
            for leftover in chunk.parent.glob(f"{chunk.name}.*.partial"):
                leftover.unlink(missing_ok=True)
        return TileLock(self, tile, lock)

    def write(self, tile: Tile, values: np.ndarray) -> None:
        """Write a tile: float64 (readouts, depths, rows, columns) of its bounds.

        Raises StoreError for values that are not finite, which must never look finished or be computed for ever.
        """
        rows, columns = self.shape.bounds(tile)
        finite = np.isfinite(values)
        if not finite.all():
            r, d, i, j = np.argwhere(~finite)[0]
            index = self.image_index
            raise StoreError(
                f"{self.path}: tile {tile} came out {values[r, d, i, j]} for {self.shape.readouts[r]} at depth "
                f"{self.shape.depths[d]}, images {index[rows][i]} and {index[columns][j]}: not written; are these "
                "images extreme?"
            )
        for readout, chunk in zip(self.shape.readouts, values, strict=True):
            try:
                self._arrays[readout][:, rows, columns] = chunk
            except OSError as error:
                raise NtkError(
                    f"cannot write tile {tile} of {self.path}: {error.strerror or error}; finished tiles are safe: "
                    "make room or mend the folder, then run the same command again"
                ) from error

    def _read_tile(self, readout: str, depth: int | slice, tile: Tile) -> np.ndarray:
        rows, columns = self.shape.bounds(tile)
        try:
            return np.asarray(self._arrays[readout][depth, rows, columns])
        except (ValueError, OSError, RuntimeError) as error:
            why = "its checksum does not match" if "checksum" in str(error) else error
            raise StoreError(
                f"{self.path}: tile {tile} of {readout} is damaged ({why}): run `ntk compute-gram --repair` to "
                "compute it anew"
            ) from error

    def read(self, readout: str, depth: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """K[rows, columns] of one readout at one depth: float64 (len(rows), len(columns)).

        rows, columns: positions (see `image_index`). Raises Incomplete if a tile of it is missing, StoreError if
        one is damaged, ValueError for a readout or depth that the store does not hold.
        """
        s = self.shape
        if readout not in s.readouts or depth not in s.depths:
            raise ValueError(f"{self.path} holds {s.readouts} at depths {s.depths}, not {readout} at {depth}")
        rows, columns = np.asarray(rows), np.asarray(columns)
        missing = self.missing(s.covering(rows, columns))
        if missing:
            raise Incomplete(f"{self.path}: {len(missing)} tiles are missing: run `ntk compute-gram` first")
        out = np.empty((len(rows), len(columns)))
        for i in np.unique(rows // s.tile).tolist():
            r = np.flatnonzero(rows // s.tile == i)
            for j in np.unique(columns // s.tile).tolist():
                c = np.flatnonzero(columns // s.tile == j)
                block = self._read_tile(readout, s.depths.index(depth), (max(i, j), min(i, j)))
                block = block if i >= j else block.T
                out[np.ix_(r, c)] = block[np.ix_(rows[r] - i * s.tile, columns[c] - j * s.tile)]
        if np.isnan(out).any():
            raise StoreError(f"{self.path}: {readout} holds NaN: run `ntk compute-gram --repair` to compute it anew")
        return out

    def damaged(self, tiles: Iterable[Tile]) -> list[Tile]:
        """Those of the finished `tiles` whose checksum fails or that hold NaN; reads them all."""
        tiles, bad = list(tiles), set()
        with progress(f"checking {self.path.name}", len(tiles), "tile", delay=2.0) as bar:
            for tile in tiles:
                for readout in self.shape.readouts:
                    try:
                        if not np.isfinite(self._read_tile(readout, slice(None), tile)).all():
                            bad.add(tile)
                    except StoreError:
                        bad.add(tile)
                bar.update()
        return sorted(bad)

    def discard(self, tile: Tile) -> None:
        """Set a damaged tile aside as *.damaged, so that it counts as missing."""
        for readout in self.shape.readouts:
            chunk = self._chunk(readout, tile)
            if chunk.exists():
                chunk.replace(chunk.with_name(f"{chunk.name}.damaged"))
