"""The solve stage: kernel regression for every draw of every kernel cell whose blocks are in a store."""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from exact_ntk.config import RidgeChoice
from exact_ntk.draws import Draw
from exact_ntk.errors import Incomplete, NtkError, StoreError
from exact_ntk.gram.sources import Source
from exact_ntk.gram.store import GramStore
from exact_ntk.kept import keep_npz, keep_record, remove
from exact_ntk.locks import try_lock
from exact_ntk.memory import default_memory, gigabytes, peak_resident
from exact_ntk.progress import progress
from exact_ntk.records import DrawRecord, RidgeCurve, SolvedDraw
from exact_ntk.regression import early_stopping
from exact_ntk.regression.cell import KernelCell
from exact_ntk.regression.matrix import Matrix, block, hold, multiply, ridge_unit
from exact_ntk.regression.panels import PanelFiles
from exact_ntk.regression.plan import DoesNotFit, SolvePlan, plan_solve
from exact_ntk.regression.ridge import ChoicePlan, Errors, choose_ridge, plan_choice
from exact_ntk.regression.solve import accuracy, kernel_regression, targets
from exact_ntk.regression.spectrum import NoSpectrum, spectrum

HEAT_MAP_IMAGES = 64
# Suffix of the file with the errors of the ridges tried so far, beside the record to come.
ERRORS = ".ridge"
SECONDS_BETWEEN_LOOKS = 0.5
# What a process takes before it solves anything, but for its images: the interpreter and its libraries.
PROGRAM_BYTES = 750_000_000

log = logging.getLogger("ntk")


def solve_cells(cells: Sequence[KernelCell], device: torch.device, memory: int | None = None) -> int:
    """Solve every draw that is not done yet and whose blocks are there; returns how many that were.

    memory: bytes that the process may take, on a GPU the device's; by default a share of the limit.
    A draw that another process holds is left to it, and waited for at the end. Raises, after all else is solved, the
    NtkError of the first system that cannot be, or whose solution is none, or Incomplete where blocks are missing.
    """
    _sweep(cells)
    todo = [(cell, k) for cell in cells for k in cell.missing()]
    solver = Solver(device, memory or default_memory(device))
    solved, waiting, failed = 0, [], []
    with progress("solve", len(todo), "system", disable=not todo) as bar:
        while todo:
            busy = []
            for cell, k in todo:
                bar.set_postfix_str(f"{cell.name} L={cell.depth}", refresh=False)
                try:
                    done = solver.solve(cell, k)
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


def _sweep(cells: Sequence[KernelCell]) -> None:
    """Set damaged draws aside, and remove what draws that were killed once they were solved have left."""
    for cell in cells:
        cell.set_damaged_aside()
        for path in filter(None, map(cell.solved_path, range(len(cell.draws)))):
            _remove_aside(path)


def _remove_aside(path: Path) -> None:
    """Remove what a solve has kept beside a draw's record to go on from."""
    shutil.rmtree(path.with_suffix(".panels"), ignore_errors=True)
    remove(path.with_suffix(ERRORS))


def plan_draw(cell: KernelCell, k_train: Matrix, memory: int) -> SolvePlan:
    """How a draw is solved by a process that may take `memory` bytes; k_train is not read.

    Raises DoesNotFit where it cannot be.
    """
    n, early, budget = k_train.shape[0], cell.column.early_stopping, _budget(cell, memory)
    plan = plan_solve(n, len(cell.images.classes), k_train.piece_bytes, budget)
    if early:
        early_stopping.require_fit(n, early.holdout, k_train.piece_bytes, budget)
    return plan


def plan_ridge(cell: KernelCell, k_train: Matrix, solve: SolvePlan, device: torch.device) -> ChoicePlan | None:
    """How the draw's ridge is chosen before it is solved so, K held already if it is for that; None where it is given.

    k_train is not read. Raises as `plan_choice`.
    """
    choice, outputs = cell.column.ridge, len(cell.images.classes)
    if not isinstance(choice, RidgeChoice):
        return None
    left = solve.budget - solve.kernel_bytes(device)
    return plan_choice(choice, k_train.shape[0], outputs, k_train.piece_bytes, left)


def _budget(cell: KernelCell, memory: int) -> int:
    """What is left of `memory` beside the program and the images."""
    return memory - PROGRAM_BYTES - cell.images.nbytes


class Solver:
    """Solves draws on a device, in a budget of memory; says once a column how it goes about it."""

    def __init__(self, device: torch.device, memory: int):
        self.device, self.memory = device, memory
        self._said: set[str] = set()

    def solve(self, cell: KernelCell, k: int) -> bool | None:
        """Solve a draw under its lock: True; False if it was solved meanwhile, None if another process has it."""
        source, store = cell.shelf.require(cell.request(k))
        path = cell.path(k, source)
        lock = try_lock(path.with_suffix(".lock"))
        if lock is None:
            return None
        try:
            if cell.solved_path(k):
                return False
            lock.clear(*(path.with_suffix(suffix) for suffix in (".json", ".npz", ERRORS)))
            lock.clear_in(path.with_suffix(".panels"), "**/.*.partial")
            self._solve(cell, k, source, store)
        finally:
            lock.release(remove=True)
        return True

    def _solve(self, cell: KernelCell, k: int, source: Source, store: GramStore) -> None:
        """Solve a draw; coefficients, indices, outputs and a small heat map are kept beside the record."""
        start = time.perf_counter()
        d, place, images, path = cell.draws[k], cell.places[k], cell.images, cell.path(k, source)
        stored, k_test = (cell.matrix(store, rows, place.train) for rows in (place.train, place.test))
        k_train: Matrix = stored
        try:
            plan = plan_draw(cell, stored, self.memory)
            unit = ridge_unit(stored) if cell.column.ridge else 0.0
            if plan.kernel_bytes(self.device):
                k_train = hold(stored, self.device)
            choosing = plan_ridge(cell, stored, plan, self.device)
            chosen = self._chosen_ridge(cell, d, k_train, choosing, unit, path) if choosing else None
            files = self._files(cell, plan, PanelFiles(path.with_suffix(".panels"), path.stem, plan.trapezoid))
            record, alpha, outputs = _solve_draw(cell, d, (k_train, k_test), unit, self.device, plan, files, chosen)
        except (StoreError, Incomplete):
            raise
        except NtkError as error:
            raise NtkError(f"column {cell.name}, depth {cell.depth}: {error}{self._would_do(error)}") from error
        heat_map, heat_map_label = _heat_map(k_train, images.y[d.train])
        more, without = ({}, None) if k else self._spectrum(cell, d, (k_train, k_test), record, unit, plan)
        keep_npz(
            path.with_suffix(".npz"),
            alpha=alpha,
            outputs=outputs,
            right=(outputs.argmax(1) == images.y[d.test]).astype(np.float64),
            train_index=images.image_index[d.train],
            test_index=images.image_index[d.test],
            from_test_set=d.test >= images.n_train,
            label=images.y[d.test],
            heat_map=heat_map,
            heat_map_label=heat_map_label,
            **more,
        )
        solved = SolvedDraw(
            record=record,
            backend=source.backend,
            dtype=source.dtype,
            stored=source.stored,
            provenance={
                "seconds": round(time.perf_counter() - start, 3),
                "gram": store.path.name,
                "factor": "in memory" if plan.in_memory else f"in files, by {len(plan.groups)} groups",
                "memory_bytes": self.memory,
                "peak_resident_bytes": peak_resident(),
                **({"no_spectrum": without} if without else {}),
            },
            fields=cell.fields(k, source),
        )
        keep_record(path, solved)
        _remove_aside(path)

    def _spectrum(
        self,
        cell: KernelCell,
        d: Draw,
        kernels: tuple[Matrix, Matrix],
        record: DrawRecord,
        unit: float,
        plan: SolvePlan,
    ) -> tuple[dict[str, np.ndarray], str | None]:
        """Arrays for the report, or why there are none. Of a column's first draw alone: they take long and tell little
        apart."""
        y = targets(cell.images.y[d.train], len(cell.images.classes)).to(self.device)
        ridge = record.ridge.ridge if record.ridge else cast(float, cell.column.ridge)
        try:
            return spectrum(*kernels, ridge * unit, y, cell.images.y[d.test], plan), None
        except NoSpectrum as error:
            return {}, str(error)

    def _chosen_ridge(
        self, cell: KernelCell, d: Draw, k_train: Matrix, plan: ChoicePlan, unit: float, path: Path
    ) -> RidgeCurve:
        """The draw's own ridge; says once a column how it is chosen."""
        self._say(f"{cell.name}: {plan.words(self.device)}")

        def files(ridge: str) -> PanelFiles | None:
            folder = path.with_suffix(".panels") / f"ridge-{ridge}"
            return self._files(cell, plan.factor, PanelFiles(folder, f"{path.stem} {ridge}", plan.factor.trapezoid))

        y = targets(cell.images.y[d.train], len(cell.images.classes)).to(self.device)
        errors = Errors.read(path.with_suffix(ERRORS))
        found = choose_ridge(k_train, y, plan, unit, files, errors, f"{cell.name} L={cell.depth}")
        if found.at_the_top:
            self._say(
                f"{cell.name} L={cell.depth}: the ridge {found.ridge:g} is the largest there was: give a larger "
                "ridge.to",
                logging.WARNING,
            )
        return found

    def _say(self, words: str, level: int = logging.INFO) -> None:
        """One line, once, however many draws it is true of."""
        if words not in self._said:
            self._said.add(words)
            log.log(level, words)

    def _would_do(self, error: NtkError) -> str:
        """For what does not fit, how much memory would do."""
        if not isinstance(error, DoesNotFit):
            return ""
        return f": --memory is {gigabytes(self.memory)}, and would have to be {gigabytes(self.memory + error.missing)}"

    def _files(self, cell: KernelCell, plan: SolvePlan, files: PanelFiles) -> PanelFiles | None:
        """Where the factor's panels are kept, if they are; says once how a column's draws are solved."""
        folder = cell.shelf.folder / "solve"
        # Those of a run with less memory are gone on with.
        keeps = plan.keeps_files(self.device) or files.folder.is_dir()
        lacks = files.space_missing() if keeps else 0
        if lacks > 0 and not plan.in_memory:
            raise NtkError(
                f"the factor takes {gigabytes(plan.trapezoid.bytes)} in {folder}, whose disk lacks "
                f"{gigabytes(lacks)}: make room, or give more --memory"
            )
        words = f"{cell.name}: {plan.words(self.device)}"
        if lacks > 0:
            words += f"; not to be resumed: the disk of {folder} lacks {gigabytes(lacks)} for panels"
        elif keeps:
            words += f"; finished panels in {folder}, to resume from"
        self._say(words)
        return files if keeps and lacks <= 0 else None


def _heat_map(k: Matrix, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel of the first images at most, scaled to unit diagonal and sorted by class, and their labels."""
    first = np.argsort(y[:HEAT_MAP_IMAGES], kind="stable")
    kernel = block(k, slice(0, len(first)), slice(0, len(first))).numpy()[np.ix_(first, first)]
    scale = np.sqrt(np.maximum(np.diagonal(kernel), 0))
    scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return (kernel * scale[:, None] * scale).astype(np.float32), y[first]


def _solve_draw(
    cell: KernelCell,
    d: Draw,
    kernels: tuple[Matrix, Matrix],
    unit: float,
    device: torch.device,
    plan: SolvePlan,
    files: PanelFiles | None,
    chosen: RidgeCurve | None,
) -> tuple[DrawRecord, np.ndarray, np.ndarray]:
    """The draw's record, its coefficients (n, classes) and its outputs on the test images (n_test, classes).

    kernels: of training images, and of test images with these.  unit: what a relative ridge of 1 adds to the diagonal.
    """
    column, images, label = cell.column, cell.images, f"{cell.name} L={cell.depth}"
    (k_train, k_test), ridge = kernels, chosen.ridge if chosen else cast(float, column.ridge)
    y = targets(images.y[d.train], len(images.classes)).to(device)
    solution = kernel_regression(k_train, y, ridge, column.on_indefinite, plan, files, f"factor {label}", unit=unit)
    if solution.indefinite is not None:
        image = images.image_index[d.train[solution.indefinite - 1]]
        log.warning(
            f"{label}: not positive definite at training image {image} (leading minor {solution.indefinite}): "
            f"solved by LU, residual {solution.residual:.1e}, and marked"
        )
    outputs = multiply(k_test, solution.alpha, plan.batch_bytes).cpu()
    stopped = None
    if column.early_stopping:
        labels = images.y[d.train], images.y[d.test]
        of_average = unit if column.flips else None
        try:
            stopped = early_stopping.stop_early(
                *kernels, *labels, y, column.early_stopping.holdout, ridge, plan.batch_bytes, of_average
            )
        except early_stopping.NoFlow as error:
            log.warning(f"{label}: no early stopping: {error}")
    record = DrawRecord(
        accuracy=accuracy(outputs, images.y[d.test]),
        residual=solution.residual,
        one_norm=solution.one_norm,
        inverse_one_norm=solution.inverse_one_norm,
        condition=solution.condition,
        indefinite=solution.indefinite,
        overlaps=d.overlaps,
        early_stopping=stopped,
        ridge=chosen,
    )
    return record, solution.alpha.cpu().numpy(), outputs.numpy()
