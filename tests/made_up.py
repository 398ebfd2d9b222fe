"""A made-up table, as results.json would hold it, and the same with networks; and real ones of small configs."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from exact_ntk.canvas import picture_png
from exact_ntk.draws import load_images
from exact_ntk.files import digest, fingerprint
from exact_ntk.gram.fill import Filler
from exact_ntk.gram.shelf import Request
from exact_ntk.gram.tiles import array_name
from exact_ntk.records import (
    ColumnHead,
    DrawRecord,
    History,
    KernelRecord,
    MissingCell,
    NetworkRecord,
    PairedDifference,
    Results,
    RunRecord,
)
from exact_ntk.report.collect import Collected
from exact_ntk.report.pictures import Apart, Picture
from exact_ntk.settings import load_config
from exact_ntk.table import Table

IMAGES = {"train": {"n": "all", "draws": 1}, "test": {"n": 5}, "train_first": None, "train_last": None}
CELL = dict(standard_error=0.5, std=None, n_train=2000, n_test=100, test_from="test", fingerprint="0123456789abcdef")
DRAW = DrawRecord(
    accuracy=70.0,
    residual=1e-12,
    one_norm=5.0,
    inverse_one_norm=10.0,
    condition=50.0,
    indefinite=None,
    overlaps=False,
    early_stopping=None,
)


def kernel_record(column: str, depth: int, accuracy: float, **more) -> KernelRecord:
    plain = dict(model="cntk", readout="gap", draws=1, ridge=0.0, indefinite=False, backend="reference-cpu")
    rest = dict(dtype="float32", stored="float64", dropped_duplicates=0, by_draw=[DRAW], early_stopping=None)
    return KernelRecord(**{**CELL, **plain, **rest, **dict(column=column, depth=depth, accuracy=accuracy), **more})


def run_record(seed: int, epochs: int, fitted_at: int | None) -> RunRecord:
    history = History(
        loss=[0.4, 0.1][:epochs], train_accuracy=[50.0, 100.0][:epochs], test_accuracy=[40.0, 60.0][:epochs]
    )
    return RunRecord(
        seed=seed,
        accuracy=60.0,
        train_accuracy=75.0,
        epochs=epochs,
        fitted_at=fitted_at,
        diverged=None,
        history=history,
    )


def network_record(column: str, width: int, **more) -> NetworkRecord:
    how = dict(lr=0.5, lr_share=0.25, lr_unit="max", lr_rule="single", loss="", batch_size=10, momentum=0.9, kappa=1.0)
    found = dict(seeds=2, seeds_diverged=0, train_accuracy=75.0, epochs=1.5, diverged=[], parameters=100, width=width)
    cell = dict(model="cnn", readout="gap", column=column, depth=3, accuracy=50.0 + width)
    return NetworkRecord(
        **{**CELL, **how, **found, **cell, "runs": [run_record(0, 2, 2), run_record(1, 1, None)], **more}
    )


def made_up_table() -> Results:
    return Results(
        name="made",
        config={
            "name": "made",
            "data": {"dataset": "npz", "path": "mine.npz"},
            "columns": [
                {"name": "CNTK-GAP", "readout": "gap", **IMAGES},
                {"name": "CNTK-V", "readout": "vanilla", **IMAGES},
            ],
        },
        columns=[
            ColumnHead(name="CNTK-GAP", model="cntk", readout="gap", depths=[3, 4], paper=[70.47, 75.93]),
            ColumnHead(name="CNTK-V", model="cntk", readout="vanilla", depths=[3], paper=[]),
        ],
        records=[
            kernel_record("CNTK-GAP", 3, 70.123),
            kernel_record("CNTK-V", 3, 40.0, indefinite=True, readout="vanilla"),
        ],
        paired=[PairedDifference(column="CNTK-GAP", minus="CNTK-V", depth=3, difference=5.2, standard_error=2.13)],
        missing=[MissingCell(column="CNTK-GAP", depth=4, needs="run `ntk compute-gram` and `ntk solve`")],
    )


def with_networks(results: Results, widths: tuple[int, ...], **kernel_column) -> Results:
    """The same table with a network of several widths beside CNTK-GAP, on the same images."""
    names = [f"net-w{w}" for w in widths]
    kernel, *others = results.config["columns"]
    columns = [{**kernel, **kernel_column}, *others, *({"name": n, "readout": "gap", **IMAGES} for n in names)]
    heads = [ColumnHead(name=n, model="cnn", readout="gap", depths=[3], paper=[]) for n in names]
    records = [network_record(n, w) for n, w in zip(names, widths, strict=True)]
    return results.model_copy(
        update={
            "config": {**results.config, "columns": columns},
            "columns": [*results.columns, *heads],
            "records": [*results.records, *records],
        }
    )


def collected(results: Results) -> Collected:
    """The table as collected: of each cell one draw of four images, the last of three classes taken for another."""
    draw = {"label": np.array([0, 1, 2, 2]), "right": np.array([1.0, 1.0, 1.0, 0.0])}
    kernel = {"outputs": np.eye(3)[[0, 1, 2, 0]], "heat_map": np.eye(4, dtype=np.float32)}
    arrays = {(r.column, r.depth): [draw if r.model == "cnn" else {**draw, **kernel}] for r in results.records}
    report = {"device": "<cpu>", "threads": 2, "versions": {"torch": "2"}}
    cells = {"CNTK-GAP/3": {"draws": [{"seconds": 1.25}, {"seconds": 2.0}]}}
    stages = {"gram-0": {"columns": ["CNTK-GAP"], "seconds": 1234.56, "device": "<cpu>"}, "solve": {"seconds": 3}}
    provenance = {"cells": cells, "stages": stages, "report": report}
    picture = Picture(picture_png(np.full((2, 2, 3), 0.5)), "c < d, taken for a", "test image 3")
    apart = Apart(("CNTK-GAP", 3), ("CNTK-V", 3), total=9, tested=100, pictures=[picture])
    return Collected(results, provenance, arrays, ("a", "b", "c < d"), [apart] if results.records else [])


def replaced(results: Results, column: str, **changes) -> Results:
    """The same table with a column's records changed."""
    records = [r.model_copy(update=changes) if r.column == column else r for r in results.records]
    return results.model_copy(update={"records": records})


def table_of(config_path: Path | str, folder: Path, *overrides: str, device: str = "cpu") -> Table:
    """The table of a config with overrides, its run in `folder`."""
    config = load_config(str(config_path), list(overrides))
    folder.mkdir(parents=True, exist_ok=True)
    return Table(config, load_images(config), torch.device(device), folder)


_filled: dict[str, Path] = {}


def once_filled(table: Table) -> Table:
    """The table with the Gram stores that it asks for; where another asked for the same, they are a copy of its own."""
    asked = [
        [*map(array_name, r.arrays), r.sources[0].fields, *map(digest, chain(*r.blocks))] for r in table.requests()
    ]
    key = fingerprint({"asked": asked, "tile": table.config.gram.tile})
    fresh = not list(table.folder.glob("gram-*"))
    if fresh and key in _filled:
        shutil.copytree(_filled[key], table.folder, dirs_exist_ok=True)
    fill(table, every=False)
    if fresh and key not in _filled:
        _filled[key] = Path(tempfile.mkdtemp(prefix="filled-"))
        atexit.register(shutil.rmtree, _filled[key], ignore_errors=True)
        for store in table.folder.glob("gram-*"):
            shutil.copytree(store, _filled[key] / store.name)
    return table


def fill(
    table: Table, first: Sequence[Request] | None = None, every: bool = True, repair: bool = False, **options
) -> int:
    """Compute the table's Gram matrices, those of solved draws too; returns how many files are left to other shards."""
    assert table.backends is not None
    requests = table.requests(every)
    chosen = [r for r in requests if first is None or (r.column, r.array) in {(f.column, f.array) for f in first}]
    filler = Filler(table.shelf, table.device, table.config.gram.tile)
    check = table.requests(every=True) if repair else None
    return filler.fill(requests, None if first is None else chosen, repair=check, **options)
