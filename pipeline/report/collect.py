"""Collecting finished cells into what results.json holds, where they came from, and what their stages keep of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exact_ntk.device import describe
from exact_ntk.errors import Incomplete
from exact_ntk.provenance import read_provenance
from exact_ntk.records import CellRecord, ColumnHead, MissingCell, Results
from exact_ntk.report.paired import paired_differences
from exact_ntk.report.pictures import Apart, told_apart
from exact_ntk.table import Table

Arrays = dict[tuple[str, int], list[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Collected:
    """results: what a rerun reproduces.  provenance: seconds, devices and versions, which may differ.

    arrays: (column, depth) -> what is kept of each draw or run of that cell.  apart: images that tell two cells apart,
    where they may be shown.
    """

    results: Results
    provenance: dict[str, Any]
    arrays: Arrays
    classes: tuple[str, ...]
    apart: Sequence[Apart] = ()


def collect(table: Table, pictures: bool = False) -> Collected:
    """The columns, a record for each finished cell, and what the missing ones need; reads no stores.

    pictures: some images of the data set, too.
    """
    config = table.config
    records: list[CellRecord] = []
    provenance: dict[str, Any] = {}
    missing: list[MissingCell] = []
    arrays: Arrays = {}
    for cell in table.cells:
        found = cell.record()
        if found is None and (lacking := cell.lacks()):
            missing.append(lacking)
            continue
        found = found or cell.record()  # another process may have finished it since
        if found is None:
            raise Incomplete(f"{cell.name} at depth {cell.depth} changed while it was read: run the same command again")
        records.append(found[0])
        provenance[f"{cell.name}/{cell.depth}"] = found[1]
        arrays[cell.name, cell.depth] = cell.arrays()
    results = Results(
        name=config.name,
        config=config.resolved(),
        columns=[
            ColumnHead(name=n, model=c.model, readout=c.readout, depths=list(c.depths), paper=list(c.paper))
            for n, c in zip(config.column_names, config.columns, strict=True)
        ],
        records=records,
        paired=paired_differences(config, arrays),
        missing=missing,
    )
    stages = read_provenance(table.folder)
    made = {"cells": provenance, "stages": stages, "report": describe(table.device)}
    apart = told_apart(results, table.kernel_cells, table.network_cells, arrays, table.images) if pictures else []
    return Collected(results, made, arrays, table.images.classes, apart)
