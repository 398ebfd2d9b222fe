"""What is solved, put to use: outputs for new images, and a cell's matrices and predictions as plain arrays."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from exact_ntk.config import CnnColumn
from exact_ntk.data import normalise
from exact_ntk.draws import OrderedImages
from exact_ntk.errors import ConfigError, DataError, Incomplete, NtkError, StoreError
from exact_ntk.files import read_npz, write_atomic
from exact_ntk.gram.plan import DTYPES
from exact_ntk.kernels import cntk
from exact_ntk.progress import progress
from exact_ntk.regression.cell import KernelCell
from exact_ntk.regression.matrix import Stored, block
from exact_ntk.regression.plan import DoesNotFit
from exact_ntk.table import Table

BLOCK_IMAGES = 256
# K, its copy that is decomposed in place, and what that works on.
SPECTRUM_MATRICES = 3


def find_cell(table: Table, column: str, depth: int) -> KernelCell:
    """The kernel cell of that name. Raises ConfigError, naming what there is."""
    named = [cell for cell in table.cells if cell.name == column]
    if not named:
        raise ConfigError(f"--column {column}: there are {', '.join(dict.fromkeys(c.name for c in table.cells))}")
    if isinstance(named[0].column, CnnColumn):
        kernels = list(dict.fromkeys(cell.name for cell in table.kernel_cells))
        there = f"kernel columns are {', '.join(kernels)}" if kernels else "there are no kernel columns"
        raise ConfigError(f"--column {column}: its networks keep no weights: {there}")
    found = [cell for cell in named if cell.depth == depth]
    if not found:
        raise ConfigError(f"--depth {depth}: {column} has depths {', '.join(str(cell.depth) for cell in named)}")
    assert isinstance(found[0], KernelCell)
    return found[0]


def chosen_draws(cell: KernelCell, draw: int | None) -> list[int]:
    """The draws asked for, all where none is named. Raises ConfigError, or NtkError where the cell has no solution."""
    draws = range(len(cell.draws))
    if draw is not None and draw not in draws:
        raise ConfigError(f"--draw {draw}: {cell.name} has draws 0 to {len(draws) - 1}")
    if trouble := cell.trouble():
        raise NtkError(f"column {cell.name}, depth {cell.depth}: {trouble}")
    return list(draws) if draw is None else [draw]


def solved_arrays(cell: KernelCell, k: int) -> dict[str, np.ndarray]:
    """What is kept of a solved draw. Raises Incomplete while it is not solved, for these images, StoreError where it
    belongs to others."""
    path = cell.solved_path(k)
    if path is None:
        raise Incomplete(
            f"{cell.name} at depth {cell.depth}, draw {k}: not solved for this config's images: run `ntk run` first"
        )
    arrays = read_npz(path.with_suffix(".npz"), f"delete {path} to have it solved again")
    if not np.array_equal(arrays["train_index"], cell.images.image_index[cell.draws[k].train]):
        raise StoreError(f"{path.with_suffix('.npz')}: of other training images: delete {path} to have it solved again")
    return arrays


def normalised(images: OrderedImages, x: np.ndarray, name: str) -> Tensor:
    """New images (n, H, W, C) as the training images were normalised: (n, C, H, W). Raises DataError for another
    shape."""
    expected = tuple(images.fields["image_shape"])
    if x.shape[1:] != expected:
        raise DataError(f"{name}: images of H x W x C {x.shape[1:]}, and the column was solved on {expected}")
    statistics = images.fields["normalisation"]
    return normalise(x, np.array(statistics["mean"]), np.array(statistics["std"]))


def mean_outputs(
    cell: KernelCell, draws: Sequence[int], x: Tensor, backend: str, dtype: str, device: torch.device
) -> Tensor:
    """ker(x, X) alpha of solved draws, their mean: (n, classes) in float64. x: normalised images (n, C, H, W)."""
    column, mean = cell.column, torch.zeros((len(x), len(cell.images.classes)), dtype=torch.float64)
    solved = [(cell.draws[k].train, solved_arrays(cell, k)["alpha"]) for k in draws]
    with progress(f"{cell.name} L={cell.depth}", len(x) * len(draws), "image") as bar:
        for train, alpha in solved:
            for start in range(0, len(x), BLOCK_IMAGES):
                part = slice(start, start + BLOCK_IMAGES)
                kernel = cntk(
                    x[part],
                    cell.images.x[train],
                    depths=(cell.depth,),
                    readouts=(column.kernel,),
                    train_first=column.trains_first if column.model == "cntk" else None,
                    train_last=column.trains_last if column.model == "cntk" else None,
                    backend=backend,
                    device=device,
                    dtype=DTYPES[dtype],
                )[0, 0]
                mean[part] += (kernel @ torch.from_numpy(alpha).to(device)).cpu() / len(draws)
                bar.update(len(x[part]))
    return mean


def predictions_csv(found: Tensor, classes: Sequence[str]) -> str:
    """image, label, and an output a class: a row an image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", *classes])
    for i, row in enumerate(found.tolist()):
        writer.writerow([i, classes[int(np.argmax(row))], *(f"{value:.6g}" for value in row)])
    return text.getvalue()


def write_arrays(cell: KernelCell, k: int, what: str, folder: Path, budget: int) -> list[Path]:
    """Write a draw's arrays as .npy, with the index of their images in the data set; returns the files.

    what: "gram" K_train (n, n) and K_test (n_test, n); "labels" by class number; "predictions" outputs (n_test,
    classes) and the class of the largest; "spectrum" K_train's eigenvalues (n,), ascending, in at most `budget` bytes.
    train_index, test_index: places among the data set's own training images, or test images where from_test_set.
    Raises Incomplete where tiles are missing or the draw is not solved, NtkError where memory is short.
    """
    d, images = cell.draws[k], cell.images
    arrays: dict[str, np.ndarray | Stored] = {}
    if what in ("gram", "spectrum"):
        _, store = cell.shelf.require(cell.request([k]))
        arrays["gram_train"] = Stored(store, cell.array, d.train, d.train)
        arrays["gram_test"] = Stored(store, cell.array, d.test, d.train)
    if what == "spectrum":
        arrays = {"eigenvalues": _spectrum(Stored(store, cell.array, d.train, d.train), budget)}
    if what == "labels":
        arrays = {"label_train": images.y[d.train], "label_test": images.y[d.test], "classes": np.array(images.classes)}
    if what == "predictions":
        found = solved_arrays(cell, k)["outputs"]
        arrays = {"outputs": found, "predicted": found.argmax(1), "classes": np.array(images.classes)}
    arrays |= {
        "train_index": images.image_index[d.train],
        "test_index": images.image_index[d.test],
        "from_test_set": d.test >= images.n_train,
    }
    for name, values in arrays.items():
        path = folder / f"{name}.npy"
        if isinstance(values, Stored):
            write_atomic(path, partial(_save_rows, values))
        else:
            write_atomic(path, partial(np.save, arr=values, allow_pickle=False))
    return [folder / f"{name}.npy" for name in arrays]


def _save_rows(matrix: Stored, file: BinaryIO) -> None:
    """A stored matrix as .npy, some rows at a time."""
    rows, columns = matrix.shape
    header = {"descr": "<f8", "fortran_order": False, "shape": (rows, columns)}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, rows, matrix.store.shape.side):
        part = slice(start, min(rows, start + matrix.store.shape.side))
        file.write(np.ascontiguousarray(block(matrix, part, slice(0, columns)).numpy(), "<f8").tobytes())


def _spectrum(matrix: Stored, budget: int) -> np.ndarray:
    n = matrix.shape[0]
    if 8 * n * n * SPECTRUM_MATRICES > budget:
        raise DoesNotFit(f"the spectrum of {n:,} images", 8 * n * n * SPECTRUM_MATRICES, budget)
    return torch.linalg.eigvalsh(block(matrix, slice(0, n), slice(0, n))).numpy()
