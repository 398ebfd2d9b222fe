"""What a Gram store is cut into: arrays, one for each readout and depth, and tiles of these."""

import math
from dataclasses import dataclass

import numpy as np

CHECKSUM_BYTES = 4
BLOCK_BYTES = 4096  # what a file takes on disk is a multiple of it
Tile = tuple[int, int]
Array = tuple[str, int]  # a readout and a depth
SELF = -1  # in the place of a tile's column: K(x, x) of the images of its rows


@dataclass(frozen=True)
class Shape:
    """The grid of a store. rows: training, then test images; columns: training images; side: of a tile, in images.

    stored: the dtype of its values.
    """

    rows: int
    columns: int
    side: int
    stored: str = "float64"

    def bounds(self, tile: Tile) -> tuple[slice, slice]:
        """Rows and columns of a tile."""
        i, j = (k * self.side for k in tile)
        if tile[1] == SELF:
            return slice(i, min(i + self.side, self.rows)), slice(0, 1)
        return slice(i, min(i + self.side, self.rows)), slice(j, min(j + self.side, self.columns))

    def along(self, positions: np.ndarray) -> np.ndarray:
        """Which tiles along a side positions lie in, increasing."""
        return np.flatnonzero(np.bincount(positions // self.side))

    def covering(self, rows: np.ndarray, columns: np.ndarray) -> set[Tile]:
        """The tiles that hold K[rows, columns], above the diagonal replaced by their mirror images."""
        down, across = self.along(rows), self.along(columns)
        i, j = np.maximum.outer(down, across), np.minimum.outer(down, across)
        return set(zip(i.ravel().tolist(), j.ravel().tolist(), strict=True))

    def on_diagonal(self, rows: np.ndarray) -> set[Tile]:
        """The tiles that hold K(x, x) of the images at positions `rows`."""
        return {(i, SELF) for i in self.along(rows).tolist()}

    def pairs(self, tile: Tile) -> int:
        """Image pairs of a tile; what of it lies on the diagonal is symmetric."""
        rows, columns = self.bounds(tile)
        r, c = rows.stop - rows.start, columns.stop - columns.start
        if tile[1] == SELF:
            return r
        return r * c - (c * (c - 1) // 2 if rows.start == columns.start else 0)

    def chunk_bytes(self, tile: Tile) -> int:
        """What a tile's chunk takes on disk: zarr writes ragged edge tiles in full."""
        numbers = self.side * (1 if tile[1] == SELF else self.side)
        return math.ceil((numbers * np.dtype(self.stored).itemsize + CHECKSUM_BYTES) / BLOCK_BYTES) * BLOCK_BYTES


def mirrored(array: Array) -> Array:
    """The array of K(x, Fx') beside that of K(x, x')."""
    return f"{array[0]}-flip", array[1]


def self_kernel(array: Array) -> Array:
    """The array of K(x, x) beside that of K(x, x')."""
    return f"{array[0]}-self", array[1]


def is_mirrored(array: Array) -> bool:
    """Whether an array holds K(x, Fx')."""
    return array[0].endswith("-flip")


def is_self_kernel(array: Array) -> bool:
    """Whether an array holds K(x, x)."""
    return array[0].endswith("-self")


def kernel_of(array: Array) -> str:
    """The readout of the kernel that an array holds values of."""
    return array[0].removesuffix("-flip").removesuffix("-self")


def array_name(array: Array) -> str:
    """gap-nngp at depth 21: gap-nngp-L21."""
    readout, depth = array
    return f"{readout}-L{depth}"
