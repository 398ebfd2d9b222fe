"""Gram stores of a table, filled, and what they hold."""

import sys
from pathlib import Path

import numpy as np

from exact_ntk.table import Table
from tests.made_up import fill, table_of


def filled(config_path: Path, folder: Path, *overrides: str, **options) -> Table:
    table = table_of(config_path, folder, *overrides)
    fill(table, **options)
    return table


def blocks(table: Table) -> dict[str, np.ndarray]:
    """Everything the columns read."""
    out = {}
    for cell in table.kernel_cells:
        for k, place in enumerate(cell.places):
            _, store = table.shelf.require(cell.request(k))
            rows = np.concatenate([place.train, place.test])
            out[f"{cell.name}/{cell.depth}/{k}"] = store.read(*cell.array, rows, place.train)
    return out


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def chunks(folder: Path) -> dict[Path, int]:
    """Finished chunks and when each was written."""
    return {p: p.stat().st_mtime_ns for p in folder.glob("gram-*/*-L*/c/*/*") if p.name.isdigit()}


def command(config_path: Path, folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "exact_ntk.cli.main", "compute-gram", str(config_path), "--runs", str(folder), *more]
