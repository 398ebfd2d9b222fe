"""The solve stage: kernel regression for every cell of every kernel column, from Gram stores to cell records."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import early_stopping
from pipeline.config import Config, KernelColumn
from pipeline.draws import Draw, OrderedImages, draw
from pipeline.errors import NtkError
from pipeline.files import digest, fingerprint, read_json, write_json, write_npz
from pipeline.gram import GramJob, require, stored
from pipeline.progress import progress
from pipeline.regression import accuracy, solve, standard_error, targets
from pipeline.store import GramStore

SOLVE_VERSION = 1


def cell_fields(column: KernelColumn, depth: int, job: GramJob, images: OrderedImages) -> dict[str, Any]:
    """Exactly what a cell's result depends on: the kernel values, the labels, the draws and the ridge.

    Early stopping is a field only where it is asked for: cells without it keep their names.
    """
    early = {"early_stopping": column.early_stopping.model_dump()} if column.early_stopping else {}
    return {
        "gram": {k: v for k, v in job.fields.items() if k not in ("depths", "readouts")},
        "kernel": column.kernel,
        "depth": depth,
        "labels": digest(images.y),
        "order": [images.order_seed, images.balanced],
        "train": column.train.model_dump(),
        "test": column.test.model_dump(),
        "ridge": column.ridge,
        "on_indefinite": column.on_indefinite,
        "version": SOLVE_VERSION,
        **early,
    }


def cell_path(folder: Path, name: str, depth: int, fields: dict[str, Any]) -> Path:
    """Where a cell's record lies; its predictions are beside it as npz."""
    return folder / "solve" / f"{name}-L{depth}-{fingerprint(fields)}.json"


def finished_cell(folder: Path, name: str, depth: int, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The record and provenance of a cell that is done, or None. Raises StoreError for a damaged file."""
    path = cell_path(folder, name, depth, fields)
    return read_json(path) if path.exists() and path.with_suffix(".npz").exists() else None


def cells(
    config: Config, images: OrderedImages, folder: Path, device: torch.device
) -> list[tuple[str, KernelColumn, int, GramJob]]:
    """Every kernel cell of the table with the job its values come from."""
    jobs = stored(config, images, folder, device)
    return [
        (name, column, depth, job)
        for name, column in zip(config.column_names, config.columns, strict=True)
        if isinstance(column, KernelColumn)
        for job in jobs
        if name in job.columns
        for depth in column.depths
    ]


def solve_all(config: Config, images: OrderedImages, folder: Path, device: torch.device, say: Any = print) -> int:
    """Solve every cell that is not done yet; returns how many that were.

    Raises Incomplete before anything is solved if tiles are missing.
    """
    todo = [
        (name, column, depth, job)
        for name, column, depth, job in cells(config, images, folder, device)
        if finished_cell(folder, name, depth, cell_fields(column, depth, job, images)) is None
    ]
    if not todo:
        return 0
    stores = {job.path(folder): require(job, folder) for _, _, _, job in todo}
    total = sum(column.train.draws for _, column, _, _ in todo)
    with progress("solve", total, "system") as bar:
        for name, column, depth, job in todo:
            bar.set_postfix_str(f"{name} L={depth}", refresh=False)
            _solve_cell(name, column, depth, job, images, stores[job.path(folder)], folder, device, say)
            bar.update(column.train.draws)
    return len(todo)


def _solve_cell(
    name: str,
    column: KernelColumn,
    depth: int,
    job: GramJob,
    images: OrderedImages,
    gram: GramStore,
    folder: Path,
    device: torch.device,
    say: Any,
) -> None:
    start = time.perf_counter()
    draws = [draw(images, column, name, k) for k in range(column.train.draws)]
    results = [_solve_draw(name, column, depth, images, gram, d, device, say) for d in draws]
    early = [r["early_stopping"] for r, _ in results if "early_stopping" in r]
    fields = cell_fields(column, depth, job, images)
    values = [r["accuracy"] for r, _ in results]
    mean = float(np.mean(values))
    n_test = len(draws[0].test)
    record = {
        "model": column.model,
        "column": name,
        "readout": column.readout,
        "depth": depth,
        "accuracy": mean,
        "standard_error": standard_error(mean, n_test),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "n_train": len(draws[0].train),
        "n_test": n_test,
        "test_from": column.test.source,
        "draws": len(draws),
        "ridge": column.ridge,
        "indefinite": any(r["indefinite"] is not None for r, _ in results),
        "backend": job.backend,
        "dtype": job.dtype,
        "dropped_duplicates": len(images.dropped),
        "fingerprint": fingerprint(fields),
        "by_draw": [r for r, _ in results],
        **({"early_stopping": early_stopping.average(early)} if early else {}),
    }
    path = cell_path(folder, name, depth, fields)
    arrays = {f"outputs_{k}": outputs for k, (_, outputs) in enumerate(results)}
    arrays |= {f"image_index_{k}": images.image_index[d.test] for k, d in enumerate(draws)}
    arrays |= {f"from_test_set_{k}": d.test >= images.n_train for k, d in enumerate(draws)}
    arrays |= {f"label_{k}": images.y[d.test] for k, d in enumerate(draws)}
    write_npz(path.with_suffix(".npz"), **arrays)
    provenance = {"seconds": round(time.perf_counter() - start, 3), "gram": gram.path.name}
    write_json(path, {"record": record, "provenance": provenance, "fields": fields})


def _solve_draw(
    name: str,
    column: KernelColumn,
    depth: int,
    images: OrderedImages,
    gram: GramStore,
    d: Draw,
    device: torch.device,
    say: Any,
) -> tuple[dict[str, Any], np.ndarray]:
    k_train = torch.from_numpy(gram.read(column.kernel, depth, d.train, d.train)).to(device)
    y = targets(images.y[d.train], len(images.classes)).to(device)
    try:
        solution = solve(k_train, y, column.ridge, column.on_indefinite)
    except NtkError as error:
        raise NtkError(f"column {name}, depth {depth}: {error}") from error
    kept = k_train if column.early_stopping else None
    del k_train
    if solution.indefinite is not None:
        image = images.image_index[d.train[solution.indefinite - 1]]
        say(
            f"{name} L={depth}: not positive definite at training image {image} (leading minor "
            f"{solution.indefinite}): solved by LU and marked"
        )
    k_test = torch.from_numpy(gram.read(column.kernel, depth, d.test, d.train)).to(device)
    outputs = (k_test @ solution.alpha).cpu()
    result: dict[str, Any] = {
        "accuracy": accuracy(outputs, images.y[d.test]),
        "residual": solution.residual,
        "condition": solution.condition,
        "indefinite": solution.indefinite,
        "overlaps": d.overlaps,
    }
    if column.early_stopping and kept is not None:
        labels = images.y[d.train], images.y[d.test]
        try:
            result["early_stopping"] = early_stopping.stop_early(
                kept, k_test, *labels, y, column.early_stopping.holdout, column.ridge
            )
        except early_stopping.NoFlow as error:
            say(f"{name} L={depth}: no early stopping: {error}")
        except NtkError as error:
            raise NtkError(f"column {name}, depth {depth}, early_stopping: {error}") from error
    return result, outputs.numpy()
