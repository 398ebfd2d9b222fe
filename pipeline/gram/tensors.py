"""Gram matrices of tensors on disk, without a config: filled, resumed, and read in blocks of rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from exact_ntk.config import Gram
from exact_ntk.errors import Incomplete, StoreError
from exact_ntk.files import digest, expanded, require_writable
from exact_ntk.gram import store as stores
from exact_ntk.gram.compute import DTYPES
from exact_ntk.gram.fill import Filler
from exact_ntk.gram.shelf import Request, Shelf
from exact_ntk.gram.sources import preferring, sources_of
from exact_ntk.gram.store import GramStore
from exact_ntk.gram.tiles import Array, array_name, self_kernel
from exact_ntk.kernels import resolve_backend
from exact_ntk.kernels.inputs import Values, as_device, as_flag, as_integers, as_names, as_tensor, require_range
from exact_ntk.kernels.passes import plan_passes

BLOCK_BYTES = 256 << 20


def gram_store(
    path: Path | str,
    x_train: Values,
    x_test: Values | None = None,
    *,
    depths: Sequence[int],
    readouts: Sequence[str] = ("vanilla", "gap"),
    train_first: bool | None = None,
    train_last: bool | None = None,
    backend: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    store: torch.dtype = torch.float64,
    tile: int | str = "auto",
    diagonal: bool = False,
    repair: bool = False,
) -> "StoredKernels":
    """Kernels of images in a folder: computes what is not there yet, shows progress, and returns what reads them.

    Killed anywhere and called again, it goes on, to the same bits; further depths and readouts are added to what is
    there. Any number of processes may fill one folder at once.

    Arguments:
        path: a folder for these images alone, made if it is not there.
        x_train: normalised images (n_train, C, H, W), as a tensor, a NumPy array or nested lists.
        x_test: normalised images (n_test, C, H, W), or None.
        depths, readouts, train_first, train_last, backend, device, dtype: as in `cntk`. Values of a backend or an
            arithmetic that serves as well are taken from the folder where they are there already: with "auto" those of
            any backend, and those of float64 arithmetic for float32.
        store: the values on disk, torch.float64 or, half as large, torch.float32.
        tile: images a side of what is computed, written and at most lost at once; "auto" is half a minute of work.
        diagonal: whether `StoredKernels.diagonal` is wanted: K(x, x) of every image, the test images among them.
        repair: whether to read what is there first, and compute anew what is damaged.

    Raises ValueError as `cntk` does; StoreError where the folder holds other images, or what is damaged or foreign;
    NtkError where the disk or the memory is too small.
    """
    depths, readouts = as_integers(depths, "depths"), as_names(readouts, "readouts")
    jobs = plan_passes(depths, readouts, as_flag(train_first, "train_first"), as_flag(train_last, "train_last"))
    images = _images(x_train, x_test)
    target, gram = as_device(device, images.x), _gram(backend, dtype, store, tile)
    folder, arithmetic = expanded(Path(path)), DTYPES[gram.dtype]
    _refuse_other_images(folder, images)
    _, height, width = images.shape
    blocks = ((images.train, images.train), *([(images.test, images.train)] if images.n_test else []))
    requests = []
    for job in jobs:
        for readout in job.readouts:
            resolved = resolve_backend(backend, target, arithmetic, height, width, readout)
            require_range(images.x, "x", resolved, arithmetic)
            known = sources_of(readout, (job.train_first, job.train_last), gram, images)
            sources = preferring(known, resolved)
            for array in ((readout, depth) for depth in job.depths):
                arrays = (array, self_kernel(array)) if diagonal else (array,)
                requests.append(Request(readout, arrays, sources, blocks))
    if not folder.is_dir():
        require_writable(folder)
    shelf = Shelf(folder)
    Filler(shelf, target, gram.tile).fill(requests, repair=requests if repair else None)
    return StoredKernels(images.n_train, images.n_test, {r.array: shelf.require(r)[1] for r in requests})


@dataclass(frozen=True)
class StoredKernels:
    """Kernels on disk, K (n_train + n_test, n_train) in float64 for each readout and depth.

    Rows are the training images, then the test images, in the order given; columns the training images. stores: where
    each readout and depth lies; `GramStore.read` takes any rows and columns.
    """

    n_train: int
    n_test: int
    stores: Mapping[Array, GramStore]

    def matrix(self, readout: str, depth: int) -> np.ndarray:
        """All of K, (n_train + n_test, n_train). Raises ValueError for another readout or depth than were asked for,
        StoreError where a tile is damaged."""
        return self._of(readout, depth).read(readout, depth, self._rows, self._rows[: self.n_train])

    def row_blocks(self, readout: str, depth: int, rows: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """K in blocks of whole rows, as (rows, values (rows, n_train)): no more than one is in memory.

        rows: of a block; None is as many tiles as 256 MiB hold, at least one. Raises as `matrix` does.
        """
        store = self._of(readout, depth)
        if rows is None:
            side = store.shape.side
            rows = max(1, BLOCK_BYTES // (8 * self.n_train * side)) * side
        if rows < 1:
            raise ValueError(f"rows must be at least 1, not {rows}")
        for first in range(0, len(self._rows), rows):
            part = self._rows[first : first + rows]
            block = store.read(readout, depth, part, self._rows[: self.n_train])
            yield slice(first, first + len(part)), block

    def diagonal(self, readout: str, depth: int) -> np.ndarray:
        """K(x, x) of every image, (n_train + n_test,). Raises as `matrix` does, and where it was not asked for."""
        try:
            return self._of(readout, depth).self_values(readout, depth, self._rows)
        except Incomplete as error:
            name = array_name((readout, depth))
            raise ValueError(f"the diagonal of {name} is not there: call gram_store with diagonal=True") from error

    def _of(self, readout: str, depth: int) -> GramStore:
        if (readout, depth) not in self.stores:
            there = ", ".join(map(array_name, self.stores))
            raise ValueError(
                f"{array_name((readout, depth))} was not asked for: call gram_store for it; here are {there}"
            )
        return self.stores[readout, depth]

    @property
    def _rows(self) -> np.ndarray:
        return np.arange(self.n_train + self.n_test)


@dataclass(frozen=True, eq=False)
class TensorImages:
    """Images given as tensors, x (n_train + n_test, C, H, W): what a store is of (see `plan.Images`)."""

    x: Tensor
    n_train: int
    of_a_draw: bool = False

    @property
    def n_test(self) -> int:
        return len(self.x) - self.n_train

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.x.shape
        return channels, height, width

    @cached_property
    def fields(self) -> dict[str, Any]:
        channels, height, width = self.shape
        return {
            "images": digest(self.x.cpu().numpy()),
            "train_images": self.n_train,
            "test_images": self.n_test,
            "image_shape": [height, width, channels],
        }

    @property
    def train(self) -> np.ndarray:
        return np.arange(self.n_train)

    @property
    def test(self) -> np.ndarray:
        return np.arange(self.n_train, len(self.x))

    @property
    def image_index(self) -> np.ndarray:
        return np.concatenate([self.train, self.test - self.n_train])

    def passing(self) -> Tensor:
        return self.x


def _images(x_train: Values, x_test: Values | None) -> TensorImages:
    train = as_tensor(x_train, "x_train", "n_train, C, H, W")
    if x_test is None:
        return TensorImages(train, len(train))
    test = as_tensor(x_test, "x_test", "n_test, C, H, W")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"x_train and x_test must hold images of one shape, not {tuple(train.shape)} and {tuple(test.shape)}"
        )
    return TensorImages(torch.cat([train, test.to(train.device)]), len(train))


def _gram(backend: str, dtype: torch.dtype | None, store: torch.dtype, tile: int | str) -> Gram:
    """How to compute and keep, in the words of a config. Raises ValueError, naming the argument."""
    names: dict[Any, str] = {value: name for name, value in DTYPES.items()}
    arithmetic = "float32" if dtype is None else names.get(dtype, dtype)
    try:
        return Gram.model_validate(
            {"backend": backend, "dtype": arithmetic, "store": names.get(store, store), "tile": tile}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise ValueError(f"{problem['loc'][0]} {message}, not {problem['input']!r}") from error


def _refuse_other_images(folder: Path, images: TensorImages) -> None:
    """Raises StoreError where a folder holds the kernels of other images."""
    for path in filter(stores.is_made, sorted(folder.glob("gram-*-*"))):
        found = stores.open(path).fields
        if any(found.get(key) != value for key, value in images.fields.items()):
            train, test, shape = (found.get(key) for key in ("train_images", "test_images", "image_shape"))
            raise StoreError(
                f"{folder} holds kernels of other images ({train} training and {test} test images of H x W x C "
                f"{tuple(shape or ())}): give another folder, or the images that it was begun with, in their order"
            )
