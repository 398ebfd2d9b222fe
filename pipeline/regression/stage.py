"""The solve stage: kernel regression for every cell of every kernel column, from Gram stores to cell records."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exact_ntk.config import Config, KernelColumn
from exact_ntk.draws import Draw, OrderedImages, draw
from exact_ntk.errors import NtkError
from exact_ntk.files import digest, fingerprint, write_json, write_npz
from exact_ntk.gram.plan import GramJob, stored_jobs
from exact_ntk.gram.store import GramStore
from exact_ntk.progress import progress
from exact_ntk.records import DrawRecord, KernelRecord, SolvedCell, read_record
from exact_ntk.regression import early_stopping
from exact_ntk.regression.solve import accuracy, kernel_regression, targets
from exact_ntk.standard_error import standard_error

SOLVE_VERSION = 2

log = logging.getLogger("ntk")


@dataclass(frozen=True)
class KernelCell:
    """A kernel column at a depth: what its result depends on, and where that lies."""

    name: str
    column: KernelColumn
    depth: int
    job: GramJob
    images: OrderedImages
    folder: Path

    def fields(self) -> dict[str, Any]:
        """Exactly what the result depends on: the kernel values, the labels, the draws and the ridge.

        Early stopping is a field only where it is asked for: cells without it keep their names.
        """
        column = self.column
        early = {"early_stopping": column.early_stopping.model_dump()} if column.early_stopping else {}
        return {
            "gram": {k: v for k, v in self.job.fields.items() if k not in ("depths", "readouts")},
            "kernel": column.kernel,
            "depth": self.depth,
            "labels": digest(self.images.y),
            "order": [self.images.order_seed, self.images.balanced],
            "train": column.train.model_dump(),
            "test": column.test.model_dump(),
            "ridge": column.ridge,
            "on_indefinite": column.on_indefinite,
            "version": SOLVE_VERSION,
            **early,
        }

    def path(self) -> Path:
        """Where its record lies."""
        return self.folder / "solve" / f"{self.name}-L{self.depth}-{fingerprint(self.fields())}.json"

    @property
    def predictions(self) -> Path:
        """Where its predictions lie, beside the record."""
        return self.path().with_suffix(".npz")

    def solved(self) -> SolvedCell | None:
        """Its record and provenance, or None while it is not solved. Raises StoreError for a damaged file."""
        return read_record(self.path(), SolvedCell) if self.path().exists() and self.predictions.exists() else None


def kernel_cells(config: Config, images: OrderedImages, folder: Path, device: torch.device) -> list[KernelCell]:
    """Every kernel cell of the table with the job its values come from."""
    jobs = stored_jobs(config, images, folder, device)
    return [
        KernelCell(name, column, depth, job, images, folder)
        for name, column in zip(config.column_names, config.columns, strict=True)
        if isinstance(column, KernelColumn)
        for job in jobs
        if name in job.columns
        for depth in column.depths
    ]


def solve_cells(config: Config, images: OrderedImages, folder: Path, device: torch.device) -> int:
    """Solve every cell that is not done yet; returns how many that were.

    Raises Incomplete before anything is solved if tiles are missing.
    """
    todo = [cell for cell in kernel_cells(config, images, folder, device) if cell.solved() is None]
    if not todo:
        return 0
    stores = {cell.job.path(folder): cell.job.require(folder) for cell in todo}
    total = sum(cell.column.train.draws for cell in todo)
    with progress("solve", total, "system") as bar:
        for cell in todo:
            bar.set_postfix_str(f"{cell.name} L={cell.depth}", refresh=False)
            _solve_cell(cell, stores[cell.job.path(folder)], device)
            bar.update(cell.column.train.draws)
    return len(todo)


def _solve_cell(cell: KernelCell, gram: GramStore, device: torch.device) -> None:
    start = time.perf_counter()
    column, images = cell.column, cell.images
    draws = [draw(images, column, cell.name, k) for k in range(column.train.draws)]
    solved = [_solve_draw(cell, gram, d, device) for d in draws]
    by_draw, outputs = [r for r, _ in solved], [o for _, o in solved]
    accuracies = [r.accuracy for r in by_draw]
    fields = cell.fields()
    record = KernelRecord(
        model=column.model,
        column=cell.name,
        readout=column.readout,
        depth=cell.depth,
        accuracy=float(np.mean(accuracies)),
        standard_error=standard_error(
            [d.test for d in draws],
            [(o.argmax(1) == images.y[d.test]).astype(float) for d, o in zip(draws, outputs, strict=True)],
        ),
        std=float(np.std(accuracies, ddof=1)) if len(draws) > 1 else None,
        n_train=len(draws[0].train),
        n_test=len(draws[0].test),
        test_from=column.test.source,
        draws=len(draws),
        ridge=column.ridge,
        indefinite=any(r.indefinite is not None for r in by_draw),
        backend=cell.job.backend,
        dtype=cell.job.dtype,
        dropped_duplicates=len(images.dropped),
        fingerprint=fingerprint(fields),
        by_draw=by_draw,
        early_stopping=early_stopping.over_draws([r.early_stopping for r in by_draw]),
    )
    arrays = {f"outputs_{k}": o for k, o in enumerate(outputs)}
    arrays |= {f"image_index_{k}": images.image_index[d.test] for k, d in enumerate(draws)}
    arrays |= {f"from_test_set_{k}": d.test >= images.n_train for k, d in enumerate(draws)}
    arrays |= {f"label_{k}": images.y[d.test] for k, d in enumerate(draws)}
    write_npz(cell.predictions, **arrays)
    provenance = {"seconds": round(time.perf_counter() - start, 3), "gram": gram.path.name}
    write_json(cell.path(), SolvedCell(record=record, provenance=provenance, fields=fields).json_value())


def _solve_draw(cell: KernelCell, gram: GramStore, d: Draw, device: torch.device) -> tuple[DrawRecord, np.ndarray]:
    """The draw's record and its outputs on the test images (n_test, classes)."""
    column, images, label = cell.column, cell.images, f"{cell.name} L={cell.depth}"
    k_train = torch.from_numpy(gram.read(column.kernel, cell.depth, d.train, d.train)).to(device)
    y = targets(images.y[d.train], len(images.classes)).to(device)
    try:
        solution = kernel_regression(k_train, y, column.ridge, column.on_indefinite)
    except NtkError as error:
        raise NtkError(f"column {cell.name}, depth {cell.depth}: {error}") from error
    kept = k_train if column.early_stopping else None
    del k_train
    if solution.indefinite is not None:
        image = images.image_index[d.train[solution.indefinite - 1]]
        log.warning(
            f"{label}: not positive definite at training image {image} (leading minor {solution.indefinite}): "
            "solved by LU and marked"
        )
    k_test = torch.from_numpy(gram.read(column.kernel, cell.depth, d.test, d.train)).to(device)
    outputs = (k_test @ solution.alpha).cpu()
    stopped = None
    if column.early_stopping and kept is not None:
        labels = images.y[d.train], images.y[d.test]
        try:
            stopped = early_stopping.stop_early(kept, k_test, *labels, y, column.early_stopping.holdout, column.ridge)
        except early_stopping.NoFlow as error:
            log.warning(f"{label}: no early stopping: {error}")
        except NtkError as error:
            raise NtkError(f"column {cell.name}, depth {cell.depth}, early_stopping: {error}") from error
    record = DrawRecord(
        accuracy=accuracy(outputs, images.y[d.test]),
        residual=solution.residual,
        condition=solution.condition,
        indefinite=solution.indefinite,
        overlaps=d.overlaps,
        early_stopping=stopped,
    )
    return record, outputs.numpy()
