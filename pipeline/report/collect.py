"""Collecting finished cells into what results.json holds, where they came from, and the heat map of a Gram matrix."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exact_ntk.config import Config, KernelColumn
from exact_ntk.device import describe
from exact_ntk.draws import OrderedImages, draw
from exact_ntk.errors import Incomplete
from exact_ntk.gram.plan import stored_jobs
from exact_ntk.networks.cell import network_cells
from exact_ntk.provenance import read_provenance
from exact_ntk.records import CellRecord, ColumnHead, MissingCell, Results
from exact_ntk.regression.stage import kernel_cells
from exact_ntk.report.paired import paired_differences

HEAT_MAP_IMAGES = 400


@dataclass(frozen=True)
class Collected:
    """results: what a rerun reproduces.  provenance: seconds, devices and versions, which may differ."""

    results: Results
    provenance: dict[str, Any]


@dataclass(frozen=True)
class HeatMap:
    """A Gram matrix k (n, n) of training images with labels y (n,); title: its column and depth."""

    k: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    title: str


def collect(config: Config, images: OrderedImages, folder: Path, device: torch.device) -> Collected:
    """The columns, a record for each finished cell, and what the missing ones need."""
    found: dict[tuple[str, int], tuple[CellRecord, dict[str, Any]]] = {}
    needs: dict[tuple[str, int], str] = {}
    predictions: dict[tuple[str, int], Path] = {}
    for kernel in kernel_cells(config, images, folder, device):
        at = kernel.name, kernel.depth
        solved = kernel.solved()
        if solved:
            found[at] = solved.record, solved.provenance
            predictions[at] = kernel.predictions
        needs[at] = "run `ntk compute-gram` and `ntk solve`"
    for network in network_cells(config, images, folder):
        at = network.name, network.depth
        recorded = network.record()
        if recorded:
            found[at] = recorded
        needs[at] = network.trouble() or "run `ntk train-cnn`"
    named = list(zip(config.column_names, config.columns, strict=True))
    table = [(name, depth) for name, column in named for depth in column.depths]
    results = Results(
        name=config.name,
        config=config.resolved(),
        columns=[
            ColumnHead(name=n, model=c.model, readout=c.readout, depths=list(c.depths), paper=list(c.paper))
            for n, c in named
        ],
        records=[found[at][0] for at in table if at in found],
        paired=paired_differences(config, predictions),
        missing=[MissingCell(column=at[0], depth=at[1], needs=needs[at]) for at in table if at not in found],
    )
    cells = {f"{name}/{depth}": found[name, depth][1] for name, depth in table if (name, depth) in found}
    return Collected(results, {"cells": cells, "stages": read_provenance(folder), "report": describe(device)})


def heat_map(config: Config, images: OrderedImages, folder: Path, device: torch.device) -> HeatMap | None:
    """The last kernel column's deepest Gram matrix, its first images, or None where none is computed."""
    named = zip(config.column_names, config.columns, strict=True)
    columns = {name: c for name, c in named if isinstance(c, KernelColumn)}
    for job in reversed(stored_jobs(config, images, folder, device)):
        name = job.columns[0]
        column, store = columns[name], job.open(folder)
        rows = draw(images, column, name, 0).train[:HEAT_MAP_IMAGES]
        try:
            if store and len(rows) > 1:
                k = store.read(column.kernel, column.depths[-1], rows, rows)
                return HeatMap(k, images.y[rows], images.classes, f"{name}, depth {column.depths[-1]}")
        except Incomplete:
            continue
    return None
