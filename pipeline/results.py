"""Collecting finished cells into results.json (what a rerun reproduces) and provenance.json (what may differ)."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from pipeline import sweep
from pipeline.config import CnnColumn, Config, KernelColumn
from pipeline.device import describe
from pipeline.draws import OrderedImages
from pipeline.files import read_json, write_json
from pipeline.paired import differences
from pipeline.solve import cell_fields, cell_path, cells, finished_cell


def add_provenance(folder: Path, entry: str, device: torch.device, facts: dict[str, Any]) -> None:
    """Add a stage's facts to a run's folder; seconds and counts of earlier, interrupted runs are summed."""
    path = folder / "provenance" / f"{entry}.json"
    earlier = read_json(path) if path.exists() else {}
    summed = {k: round(earlier.get(k, 0) + v, 3) for k, v in facts.items() if isinstance(v, int | float)}
    write_json(path, {**facts, **summed, **describe(device)})


def time_left(folder: Path, entry: str, tiles: int) -> str | None:
    """How long so many more tiles take at the store's own pace so far, or None while that is not known."""
    path = folder / "provenance" / f"{entry}.json"
    facts = read_json(path) if path.exists() else {}
    if not facts.get("tiles_computed"):
        return None
    return str(timedelta(seconds=round(tiles * facts["seconds"] / facts["tiles_computed"])))


def collect(config: Config, images: OrderedImages, folder: Path, device: torch.device) -> dict[str, Any]:
    """What results.json holds: the columns, a record for each finished cell, and what the missing ones need."""
    records: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    provenance: dict[str, Any] = {}
    kernel_cells = {(name, depth): job for name, _, depth, job in cells(config, images, folder, device)}
    predictions: dict[tuple[str, int], Path] = {}
    for name, column in zip(config.column_names, config.columns, strict=True):
        if isinstance(column, KernelColumn):
            found = _kernel_cells(name, column, images, folder, kernel_cells)
            needs = dict.fromkeys(column.depths, "run `ntk compute-gram` and `ntk solve`")
            for depth in found:
                fields = cell_fields(column, depth, kernel_cells[name, depth], images)
                predictions[name, depth] = cell_path(folder, name, depth, fields).with_suffix(".npz")
        else:
            found, needs = _cnn_cells(name, column, images, folder)
        for depth in column.depths:
            if depth in found:
                records.append(found[depth]["record"])
                provenance[f"{name}/{depth}"] = found[depth]["provenance"]
            else:
                missing.append({"column": name, "depth": depth, "needs": needs[depth]})
    stages = {p.stem: read_json(p) for p in sorted((folder / "provenance").glob("*.json"))}
    return {
        "results": {
            "name": config.name,
            "config": config.resolved(),
            "columns": [
                {"name": n, "model": c.model, "readout": c.readout, "depths": list(c.depths), "paper": list(c.paper)}
                for n, c in zip(config.column_names, config.columns, strict=True)
            ],
            "records": records,
            "paired": differences(config, predictions),
            "missing": missing,
        },
        "provenance": {"cells": provenance, "stages": stages, "report": describe(device)},
    }


def _kernel_cells(
    name: str, column: KernelColumn, images: OrderedImages, folder: Path, jobs: dict[tuple[str, int], Any]
) -> dict[int, dict[str, Any]]:
    found = {}
    for depth in column.depths:
        cell = finished_cell(folder, name, depth, cell_fields(column, depth, jobs[name, depth], images))
        if cell is not None:
            found[depth] = cell
    return found


def _cnn_cells(
    name: str, column: CnnColumn, images: OrderedImages, folder: Path
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    found, needs = {}, {}
    for depth in column.depths:
        cell = sweep.Cell(name, column, depth, images, folder)
        record = cell.record()
        if record:
            found[depth] = record
        needs[depth] = cell.trouble() or "run `ntk train-cnn`"
    return found, needs


def write_results(collected: dict[str, Any], folder: Path) -> None:
    """Write results.json and provenance.json."""
    write_json(folder / "results.json", collected["results"])
    write_json(folder / "provenance.json", collected["provenance"])
