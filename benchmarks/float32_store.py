"""What `gram.store: float32` costs: kernel cells solved with the values of their float64 store, and with them rounded.

    python benchmarks/float32_store.py CONFIG RUNS [N ...]

RUNS is the folder of runs that holds the config's Gram matrices. Of draw 0 the first N training images are taken, by
default all. A line a cell: accuracy either way, how many test images are classified otherwise, the residual
|K alpha - y| / |y| of the rounded solution in the unrounded system, and both smallest eigenvalues over the mean
diagonal.
"""

import sys
from pathlib import Path

import torch

from exact_ntk.draws import load_images
from exact_ntk.regression.cell import KernelCell
from exact_ntk.regression.solve import accuracy, kernel_regression, targets
from exact_ntk.settings import load_config
from exact_ntk.table import Table


def compare(cell: KernelCell, n: int | None) -> str:
    """One line for draw 0 of a cell."""
    d, images = cell.draws[0], cell.images
    _, store = cell.shelf.require(cell.request(0))
    if store.shape.stored != "float64":
        raise SystemExit(f"{store.path} is in {store.shape.stored}: nothing to compare with")
    train = d.train[:n]
    exact = [torch.from_numpy(store.read(*cell.array, rows, train)) for rows in (train, d.test)]
    y = targets(images.y[train], len(images.classes))
    outputs, smallest, residual = [], [], 0.0
    for k, k_test in (exact, [part.float().double() for part in exact]):
        alpha = kernel_regression(k, y, cell.column.ridge).alpha
        outputs.append(k_test @ alpha)
        smallest.append(float(torch.linalg.eigvalsh(k)[0] / k.diagonal().mean()))
        shift = cell.column.ridge * exact[0].diagonal().mean()
        residual = float((exact[0] @ alpha + shift * alpha - y).norm() / y.norm())
    right = [accuracy(o, images.y[d.test]) for o in outputs]
    changed = int((outputs[0].argmax(1) != outputs[1].argmax(1)).sum())
    return (
        f"| {cell.name} | {cell.depth} | {len(train)} | {right[0]:.2f} | {right[1]:.2f} | {changed} of {len(d.test)} | "
        f"{residual:.1e} | {smallest[0]:.2e} | {smallest[1]:.2e} |"
    )


def main() -> None:
    """Print a table."""
    config, runs, sizes = load_config(sys.argv[1]), Path(sys.argv[2]), [int(n) for n in sys.argv[3:]] or [None]
    table = Table(config, load_images(config), torch.device("cpu"), runs / config.name)
    print(
        "| column | depth | n | float64 | float32 | classified otherwise | residual | smallest eigenvalue | rounded |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for n in sizes:
        for cell in table.kernel_cells:
            if n is None or n <= len(cell.draws[0].train):
                print(compare(cell, n), flush=True)


if __name__ == "__main__":
    main()
