"""What is solved, put to use: outputs for new images, and a cell's matrices and predictions as plain arrays."""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from exact_ntk.config import CnnColumn, KernelColumn
from exact_ntk.copies import are_zero
from exact_ntk.errors import ConfigError, DataError, Incomplete, NtkError, StoreError
from exact_ntk.files import read_npz, write_atomic
from exact_ntk.gram.compute import DTYPES
from exact_ntk.images import OrderedImages
from exact_ntk.kernel_names import family_of
from exact_ntk.kernels import Pass, cntk_pass, require_memory, resolve_backend, self_pass
from exact_ntk.progress import progress
from exact_ntk.regression.cell import KernelCell
from exact_ntk.regression.matrix import BATCH_BYTES, Matrix, hold, on_unit_diagonal, row_blocks
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


def require_alike(images: OrderedImages, x: np.ndarray, name: str) -> None:
    """Raises DataError for new images (m, H, W, C) of another size than those of the data set, or of another scale."""
    if x.shape[1:] != images.pixels.shape[1:]:
        raise DataError(f"{name}: images of H x W x C {x.shape[1:]}, and the data set's are {images.pixels.shape[1:]}")
    if (x.dtype == np.uint8) != (images.pixels.dtype == np.uint8):
        raise DataError(f"{name}: {x.dtype} images, and the data set's are {images.pixels.dtype}: save them alike")


def mean_outputs(
    cell: KernelCell, draws: Sequence[int], x: np.ndarray, backend: str, dtype: str, device: torch.device
) -> Tensor:
    """ker(x, X) alpha of solved draws, their mean: (m, classes) in float64. x: images as they are (m, H, W, C).

    Raises DataError for one that is zero once preprocessed, where the column's kernel has a unit diagonal.
    """
    mean = torch.zeros((len(x), len(cell.images.classes)), dtype=torch.float64)
    solved = [(cell.places[k], solved_arrays(cell, k)["alpha"]) for k in draws]
    column, size = cell.column, cell.images.shape[1:]
    job = Pass(family_of(column.readout), (cell.depth,), (column.kernel,), column.trains_first, column.trains_last)
    resolved = resolve_backend(backend, device, DTYPES[dtype], *size, column.readout)
    require_memory(resolved, device, job.family, DTYPES[dtype], *size)
    how: dict[str, Any] = {"job": job, "backend": resolved, "dtype": DTYPES[dtype]}
    between, within = partial(cntk_pass, **how), partial(self_pass, **how)
    known: OrderedImages | None = None
    with progress(f"{cell.name} L={cell.depth}", len(x) * len(draws), "image") as bar:
        for place, alpha in solved:
            if place.images is not known:  # draws share them, unless each has a preprocessing of its own
                known, images = place.images, place.images.with_new(x).x.to(device)
                if column.unit_diagonal:
                    _refuse_zero(cell.name, images, len(x))
            train, new = images[place.train], images[-len(x) :]
            for start in range(0, len(x), BLOCK_IMAGES):
                part = slice(start, start + BLOCK_IMAGES)
                kernel = _regressed(column, between, within, new[part], train)
                mean[part] += (kernel @ torch.from_numpy(alpha).to(kernel)).cpu() / len(draws)
                bar.update(len(new[part]))
    return mean


def _refuse_zero(name: str, images: Tensor, new: int) -> None:
    """Raises DataError where one of the last `new` images (n, C, H, W) is zero: its kernel has no unit diagonal."""
    zero = np.flatnonzero(are_zero(images.flatten(1).norm(dim=1).cpu().numpy())[-new:])
    if len(zero):
        raise DataError(
            f"column {name}: new image {zero[0]} is zero once preprocessed, so its kernel has no unit diagonal: leave "
            "such images out"
        )


def _regressed(
    column: KernelColumn, between: Callable[..., Tensor], within: Callable[..., Tensor], x: Tensor, train: Tensor
) -> Tensor:
    """The kernel of the column's regression between new and training images: as `KernelCell.matrix`."""
    found = [between(x, others)[0, 0] for others in ((train, train.flip(-1)) if column.flips else (train,))]
    if column.unit_diagonal:
        of_rows, of_columns = (within(images)[0, 0].rsqrt() for images in (x, train))
        found = [on_unit_diagonal(k, of_rows, of_columns, column.unit_diagonal == "projected") for k in found]
    return torch.stack(found).mean(0)


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
    arrays: dict[str, np.ndarray | Matrix] = {}
    if what in ("gram", "spectrum"):
        place = cell.places[k]
        _, store = cell.shelf.require(cell.request(k))
        k_train, k_test = (cell.matrix(store, rows, place.train) for rows in (place.train, place.test))
        arrays = {"gram_train": k_train, "gram_test": k_test} if what == "gram" else {}
    if what == "spectrum":
        arrays = {"eigenvalues": _spectrum(k_train, budget)}
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
        if isinstance(values, np.ndarray):
            write_atomic(path, partial(np.save, arr=values, allow_pickle=False))
        else:
            write_atomic(path, partial(_save_rows, values))
    return [folder / f"{name}.npy" for name in arrays]


def _save_rows(matrix: Matrix, file: BinaryIO) -> None:
    """A matrix as .npy, some rows at a time."""
    rows, columns = matrix.shape
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (rows, columns)})
    for _, part in row_blocks(matrix, torch.device("cpu"), BATCH_BYTES):
        file.write(np.ascontiguousarray(part.numpy(), "<f8").tobytes())


def _spectrum(matrix: Matrix, budget: int) -> np.ndarray:
    n = matrix.shape[0]
    if 8 * n * n * SPECTRUM_MATRICES > budget:
        raise DoesNotFit(f"the spectrum of {n:,} images", 8 * n * n * SPECTRUM_MATRICES, budget)
    return torch.linalg.eigvalsh(hold(matrix, torch.device("cpu")).values).numpy()
