"""Kernel matrices that are read in pieces, so that no more of one is in memory than what is being worked on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from exact_ntk.errors import NtkError
from exact_ntk.gram.store import READ_AHEAD, GramStore
from exact_ntk.gram.tiles import Array, kernel_of
from exact_ntk.kernels.arccos import relu_duals, snap_to_unit

# Rows multiplied at once: fixed, for it decides the last bits of a product. How many are read at once does not.
BLOCK_ROWS = 512
BATCH_BYTES = 2 << 30

Piece = tuple[np.ndarray, np.ndarray, Tensor]


class Matrix(Protocol):
    """A matrix (rows, columns) of kernel values; a square one is symmetric."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def piece_bytes(self) -> int:
        """What the largest piece takes in memory while it is read."""
        ...

    def pieces(self, rows: slice, columns: slice) -> Iterator[Piece]:
        """Every entry of a block once, as (i, j, values): the entries i x j of the whole matrix, in any order."""
        ...


@dataclass(frozen=True)
class Held:
    """A matrix that is in memory, on any device."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def piece_bytes(self) -> int:
        return 0

    def pieces(self, rows: slice, columns: slice) -> Iterator[Piece]:
        yield np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop), self.values[rows, columns]


@dataclass(frozen=True)
class Stored:
    """K[rows, columns] of an array of a Gram store, by positions; read tile by tile."""

    store: GramStore
    array: Array
    rows: np.ndarray
    columns: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    @property
    def piece_bytes(self) -> int:
        # The tiles that are read ahead, and of one its file, its values and their copy in another order.
        return (READ_AHEAD + 3) * 8 * self.store.shape.side**2

    def pieces(self, rows: slice, columns: slice) -> Iterator[Piece]:
        for i, j, values in self.store.pieces(*self.array, self.rows[rows], self.columns[columns]):
            yield i + rows.start, j + columns.start, torch.from_numpy(values)


@dataclass(frozen=True)
class Window:
    """A block of a matrix as a matrix of its own."""

    matrix: Matrix
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def piece_bytes(self) -> int:
        return self.matrix.piece_bytes

    def pieces(self, rows: slice, columns: slice) -> Iterator[Piece]:
        top, left = self.rows.start, self.columns.start
        inside = slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)
        for i, j, values in self.matrix.pieces(*inside):
            yield i - top, j - left, values


def on_unit_diagonal(k: Tensor, of_rows: Tensor, of_columns: Tensor, projected: bool) -> Tensor:
    """K(x, x') / sqrt(K(x, x) K(x', x')); projected: the kernel of one more ReLU, of these correlations.

    of_rows, of_columns: 1 / sqrt(K(x, x)) of each image.
    """
    scaled = torch.outer(of_rows, of_columns) * k  # in this order symmetric to the last bit, as K is
    return relu_duals(snap_to_unit(scaled))[0] if projected else scaled


@dataclass(frozen=True)
class UnitDiagonal:
    """A kernel `on_unit_diagonal`, K(x, x') or K(x, Fx'), from a store."""

    stored: Stored
    projected: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape

    @property
    def piece_bytes(self) -> int:
        return self.stored.piece_bytes + (5 if self.projected else 1) * 8 * self.stored.store.shape.side**2

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """1 / sqrt(K(x, x)) of rows and columns. Raises NtkError for an image that has none."""
        k, (_, depth) = self.stored, self.stored.array
        found = []
        for at in (k.rows, k.columns):
            values = k.store.self_values(kernel_of(k.array), depth, at)
            if not (values > 0).all():
                image = k.store.image_index[at[np.argmin(values)]]
                raise NtkError(f"unit_diagonal: K(x, x) of image {image} is {values.min():g}: leave such images out")
            found.append(torch.from_numpy(values).rsqrt())
        return found[0], found[1]

    def pieces(self, rows: slice, columns: slice) -> Iterator[Piece]:
        of_rows, of_columns = self._factors
        for i, j, values in self.stored.pieces(rows, columns):
            yield i, j, on_unit_diagonal(values, of_rows[i], of_columns[j], self.projected)


@dataclass(frozen=True)
class Averaged:
    """(K(x, x') + K(x, Fx')) / 2: regression with it is that on the images and their mirror images, at half the ridge.

    plain, mirrored: matrices from one store.
    """

    plain: Matrix
    mirrored: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.plain.shape

    @property
    def piece_bytes(self) -> int:
        return self.plain.piece_bytes + self.mirrored.piece_bytes

    def pieces(self, rows: slice, columns: slice) -> Iterator[Piece]:
        both = zip(self.plain.pieces(rows, columns), self.mirrored.pieces(rows, columns), strict=True)
        for (i, j, values), (also_i, also_j, of_mirrored) in both:
            assert all(np.array_equal(*same) for same in ((i, also_i), (j, also_j)))
            yield i, j, (values + of_mirrored) / 2


def _span(index: np.ndarray) -> slice | Tensor:
    """The same places as a slice where they are consecutive: nothing is then copied on the way."""
    first, last = int(index[0]), int(index[-1])
    if last - first == len(index) - 1 and bool((np.diff(index) == 1).all()):
        return slice(first, last + 1)
    return torch.from_numpy(index)


def select(values: Tensor, i: np.ndarray, j: np.ndarray) -> Tensor:
    """values[i, j], the block of all i x j."""
    return values[_span(i)][:, _span(j)]


def place(out: Tensor, i: np.ndarray, j: np.ndarray, values: Tensor) -> None:
    """out[i, j] = values, the block of all i x j."""
    rows, columns = _span(i), _span(j)
    if isinstance(rows, Tensor) and isinstance(columns, Tensor):
        out[rows.to(out.device)[:, None], columns.to(out.device)] = values.to(out)
    else:
        out[rows, columns] = values.to(out.device)


def block(matrix: Matrix, rows: slice, columns: slice, device: torch.device | None = None) -> Tensor:
    """A block as float64 on a device, the CPU if none is given.

    Raises StoreError where it is damaged, Incomplete where tiles are missing.
    """
    out = torch.empty((rows.stop - rows.start, columns.stop - columns.start), dtype=torch.float64, device=device)
    for i, j, values in matrix.pieces(rows, columns):
        place(out, i - rows.start, j - columns.start, values)
    return out


def hold(matrix: Matrix, device: torch.device) -> Held:
    """All of a matrix on a device, each tile of it read once. Raises as `block` does."""
    height, width = matrix.shape
    return Held(block(matrix, slice(0, height), slice(0, width), device))


def row_blocks(matrix: Matrix, device: torch.device, budget: int) -> Iterator[tuple[slice, Tensor]]:
    """The matrix in blocks of BLOCK_ROWS whole rows on a device; many are read at once, so that few tiles are twice."""
    height, width = matrix.shape
    step = max(1, min(budget, BATCH_BYTES) // (8 * width * BLOCK_ROWS)) * BLOCK_ROWS
    for first in range(0, height, step):
        batch = block(matrix, slice(first, min(first + step, height)), slice(0, width), device)
        for at in range(0, len(batch), BLOCK_ROWS):
            part = batch[at : at + BLOCK_ROWS]
            yield slice(first + at, first + at + len(part)), part


def multiply(matrix: Matrix, x: Tensor, budget: int) -> Tensor:
    """K x, (rows, outputs) on x's device, holding at most about `budget` bytes of K."""
    out = torch.empty((matrix.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
    for rows, part in row_blocks(matrix, x.device, budget):
        out[rows] = part @ x
    return out


def ridge_unit(matrix: Matrix) -> float:
    """What a relative ridge of 1 adds to the diagonal of a square matrix: its mean.

    Of an average over mirror images half the mean of the plain kernel's, what the same ridge is to both sets of images.
    """
    if isinstance(matrix, Averaged):
        return ridge_unit(matrix.plain) / 2
    n, total = matrix.shape[0], 0.0
    for first in range(0, n, BLOCK_ROWS):
        at = slice(first, min(first + BLOCK_ROWS, n))
        total += float(block(matrix, at, at).diagonal().sum())
    return total / n
