"""Collecting finished cells into what results.json holds, where they came from, and the heat map of a Gram matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from exact_ntk.device import describe
from exact_ntk.provenance import read_provenance
from exact_ntk.records import CellRecord, ColumnHead, MissingCell, Results
from exact_ntk.regression.cell import KernelCell
from exact_ntk.report.paired import paired_differences
from exact_ntk.table import Table


@dataclass(frozen=True)
class HeatMap:
    """A Gram matrix k (n, n) of unit diagonal, its training images sorted by class, their labels y (n,)."""

    k: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    title: str


@dataclass(frozen=True)
class Collected:
    """results: what a rerun reproduces.  provenance: seconds, devices and versions, which may differ."""

    results: Results
    provenance: dict[str, Any]
    heat_map: HeatMap | None


def collect(table: Table) -> Collected:
    """The columns, a record for each finished cell, and what the missing ones need; reads neither data nor stores."""
    config = table.config
    records: list[CellRecord] = []
    provenance: dict[str, Any] = {}
    missing: list[MissingCell] = []
    predictions: dict[tuple[str, int], list[dict[str, np.ndarray]]] = {}
    for cell in table.cells:
        found = cell.record()
        if found is None:
            failed = cell.trouble() is not None
            missing.append(MissingCell(column=cell.name, depth=cell.depth, needs=cell.needs(), failed=failed))
            continue
        records.append(found[0])
        provenance[f"{cell.name}/{cell.depth}"] = found[1]
        if isinstance(cell, KernelCell):
            predictions[cell.name, cell.depth] = cell.arrays()
    results = Results(
        name=config.name,
        config=config.resolved(),
        columns=[
            ColumnHead(name=n, model=c.model, readout=c.readout, depths=list(c.depths), paper=list(c.paper))
            for n, c in zip(config.column_names, config.columns, strict=True)
        ],
        records=records,
        paired=paired_differences(config, predictions),
        missing=missing,
    )
    stages = read_provenance(table.folder)
    made = {"cells": provenance, "stages": stages, "report": describe(table.device)}
    return Collected(results, made, _heat_map(table, predictions))


def _heat_map(table: Table, predictions: dict[tuple[str, int], list[dict[str, np.ndarray]]]) -> HeatMap | None:
    """That of the last kernel column's deepest cell, or None where none is solved."""
    if not predictions:
        return None
    (name, depth), draws = list(predictions.items())[-1]
    first = draws[0]
    title = f"{name}, depth {depth}"
    return HeatMap(first["heat_map"], first["heat_map_label"], table.images.classes, title)
