"""The solve stage: kernel regression for every draw of every kernel cell whose blocks are in a store."""

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from exact_ntk.draws import Draw
from exact_ntk.errors import Incomplete, NtkError
from exact_ntk.files import remove_partials, write_json, write_npz
from exact_ntk.gram.plan import Source
from exact_ntk.gram.store import GramStore
from exact_ntk.locks import try_lock
from exact_ntk.progress import progress
from exact_ntk.records import DrawRecord, SolvedDraw
from exact_ntk.regression import early_stopping
from exact_ntk.regression.cell import KernelCell
from exact_ntk.regression.solve import accuracy, kernel_regression, targets

HEAT_MAP_IMAGES = 64
SECONDS_BETWEEN_LOOKS = 0.5

log = logging.getLogger("ntk")


def solve_cells(cells: Sequence[KernelCell], device: torch.device) -> int:
    """Solve every draw that is not done yet and whose blocks are there; returns how many that were.

    A draw that another process holds is left to it, and waited for at the end. Raises, after all else is solved, the
    NtkError of the first system that cannot be, or whose solution is none, or Incomplete where blocks are missing.
    """
    todo = [(cell, k) for cell in cells for k in cell.missing()]
    solved, waiting, failed = 0, [], []
    with progress("solve", len(todo), "system", disable=not todo) as bar:
        while todo:
            busy = []
            for cell, k in todo:
                bar.set_postfix_str(f"{cell.name} L={cell.depth}", refresh=False)
                try:
                    done = _solve_alone(cell, k, device)
                except Incomplete as error:
                    waiting.append(error)
                    continue
                except NtkError as error:
                    failed.append(error)
                    continue
                if done is None:
                    busy.append((cell, k))
                    continue
                solved += done
                bar.update()
            todo = busy
            if todo:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    found = ((cell, cell.trouble()) for cell in cells)
    failed += [NtkError(f"column {cell.name}, depth {cell.depth}: {trouble}") for cell, trouble in found if trouble]
    for other in failed[1:]:
        log.warning(f"{other}")
    if failed:
        raise failed[0]
    if waiting:
        rest = f" ({len(waiting)} systems of the table are waiting for tiles)" if len(waiting) > 1 else ""
        raise Incomplete(f"{waiting[0]}{rest}")
    return solved


def _solve_alone(cell: KernelCell, k: int, device: torch.device) -> bool | None:
    """Solve a draw under its lock: True; False if it was solved meanwhile, None if another process has it."""
    source, store = cell.shelf.require(cell.request([k]))
    path = cell.path(k, source)
    lock = try_lock(path.with_suffix(".lock"))
    if lock is None:
        return None
    try:
        if cell.solved_path(k):
            return False
        if lock.sure:
            remove_partials(path)
            remove_partials(path.with_suffix(".npz"))
        _solve(cell, k, source, store, device)
    finally:
        lock.release(remove=True)
    return True


def _solve(cell: KernelCell, k: int, source: Source, store: GramStore, device: torch.device) -> None:
    """Solve a draw; coefficients, indices, outputs and a small heat map are kept beside the record."""
    start = time.perf_counter()
    d, images = cell.draws[k], cell.images
    kernel = store.read(*cell.array, np.concatenate([d.train, d.test]), d.train)
    k_train, k_test = (torch.from_numpy(part).to(device) for part in np.split(kernel, [len(d.train)]))
    heat_map, heat_map_label = _heat_map(kernel[: len(d.train)], images.y[d.train])
    del kernel
    record, alpha, outputs = _solve_draw(cell, d, k_train, k_test)
    write_npz(
        cell.path(k, source).with_suffix(".npz"),
        alpha=alpha,
        outputs=outputs,
        right=(outputs.argmax(1) == images.y[d.test]).astype(np.float64),
        train_index=images.image_index[d.train],
        test_index=images.image_index[d.test],
        from_test_set=d.test >= images.n_train,
        label=images.y[d.test],
        heat_map=heat_map,
        heat_map_label=heat_map_label,
    )
    solved = SolvedDraw(
        record=record,
        backend=source.backend,
        dtype=source.dtype,
        provenance={"seconds": round(time.perf_counter() - start, 3), "gram": store.path.name},
        fields=cell.fields(k, source),
    )
    write_json(cell.path(k, source), solved.json_value())


def _heat_map(k: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel of the first images at most, scaled to unit diagonal and sorted by class, and their labels."""
    first = np.argsort(y[:HEAT_MAP_IMAGES], kind="stable")
    block = k[np.ix_(first, first)]
    scale = np.sqrt(np.maximum(np.diagonal(block), 0))
    scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return (block * scale[:, None] * scale).astype(np.float32), y[first]


def _solve_draw(
    cell: KernelCell, d: Draw, k_train: torch.Tensor, k_test: torch.Tensor
) -> tuple[DrawRecord, np.ndarray, np.ndarray]:
    """The draw's record, its coefficients (n, classes) and its outputs on the test images (n_test, classes)."""
    column, images, label = cell.column, cell.images, f"{cell.name} L={cell.depth}"
    y = targets(images.y[d.train], len(images.classes)).to(k_train.device)
    try:
        solution = kernel_regression(k_train, y, column.ridge, column.on_indefinite)
    except NtkError as error:
        raise NtkError(f"column {cell.name}, depth {cell.depth}: {error}") from error
    if solution.indefinite is not None:
        image = images.image_index[d.train[solution.indefinite - 1]]
        log.warning(
            f"{label}: not positive definite at training image {image} (leading minor {solution.indefinite}): "
            f"solved by LU, residual {solution.residual:.1e}, and marked"
        )
    outputs = (k_test @ solution.alpha).cpu()
    stopped = None
    if column.early_stopping:
        labels = images.y[d.train], images.y[d.test]
        try:
            stopped = early_stopping.stop_early(
                k_train, k_test, *labels, y, column.early_stopping.holdout, column.ridge
            )
        except early_stopping.NoFlow as error:
            log.warning(f"{label}: no early stopping: {error}")
        except NtkError as error:
            raise NtkError(f"column {cell.name}, depth {cell.depth}, early_stopping: {error}") from error
    record = DrawRecord(
        accuracy=accuracy(outputs, images.y[d.test]),
        residual=solution.residual,
        largest_eigenvalue=solution.largest_eigenvalue,
        smallest_eigenvalue=solution.smallest_eigenvalue,
        condition=solution.condition,
        indefinite=solution.indefinite,
        overlaps=d.overlaps,
        early_stopping=stopped,
    )
    return record, solution.alpha.cpu().numpy(), outputs.numpy()
