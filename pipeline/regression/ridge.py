"""The ridge by leave-one-out or held-out error: never by the test images.

Leave-one-out is in closed form (Allen 1974, PRESS): of alpha = A^-1 y, A = K + ridge I, the residual at i is alpha_i /
(A^-1)_ii. One eigendecomposition of K gives every ridge. Where memory does not hold one, each ridge is a Cholesky
factorisation, for leave-one-out with the diagonal of its inverse; the errors are the same up to rounding.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exact_ntk.config import RidgeChoice
from exact_ntk.draws import count_held_out
from exact_ntk.errors import NtkError, StoreError
from exact_ntk.files import json_text
from exact_ntk.kept import keep, require_whole
from exact_ntk.memory import gigabytes
from exact_ntk.progress import duration, progress
from exact_ntk.records import RidgeCurve
from exact_ntk.regression.cholesky import Cholesky, NotPositiveDefinite
from exact_ntk.regression.matrix import Matrix, Window, block, multiply
from exact_ntk.regression.panels import PanelFiles
from exact_ntk.regression.plan import SolvePlan, eigen_seconds, plan_solve

# Relative to the mean of K's diagonal: from what float32 kernel values can bear to where K hardly counts.
RIDGES = tuple(10.0**exponent for exponent in range(-8, 3))
# K, its eigenvectors and the decomposition's own two.
EIGEN_MATRICES = 4
SECONDS_WITHOUT_BAR = 2.0
# Relative: errors that are equal, as those of one image alone, differ by less.
ROUNDING = 1e-12

log = logging.getLogger("ntk")


@dataclass(frozen=True)
class ErrorCurve:
    """ridges (R,), relative to the mean of K's diagonal; errors (R,): mean squared residual of the images left out,
    infinite where K + ridge mean(diag K) I is not positive definite."""

    ridges: Tensor
    errors: Tensor

    @property
    def ridge(self) -> float:
        """The one of least error, up to rounding the larger of equals. Raises NtkError where no ridge will do."""
        if not bool(self.errors.isfinite().any()):
            raise NtkError(
                f"no ridge up to {float(self.ridges.max()):g} makes the Gram matrix positive definite: give larger "
                "ones, or are all images zero?"
            )
        best = self.errors <= self.errors.min() * (1 + ROUNDING)
        return float(self.ridges[best].max())


@dataclass(frozen=True)
class Spectrum:
    """K = U diag(eigenvalues) U^T, overwritten by nothing."""

    k: Tensor

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        eigenvalues, u = torch.linalg.eigh(self.k)
        return eigenvalues, u

    def shifted(self, shift: float) -> Tensor | None:
        """The eigenvalues of K + shift I, or None where that is not positive definite in its precision."""
        eigenvalues, _ = self._parts
        floor = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * float(eigenvalues.abs().max())
        found = eigenvalues + shift
        return found if float(found.min()) > floor else None

    @property
    def vectors(self) -> Tensor:
        """U (n, n), an eigenvector a column."""
        return self._parts[1]


def leave_one_out(k: Tensor, y: Tensor, ridges: Sequence[float] = RIDGES, unit: float | None = None) -> ErrorCurve:
    """Errors of predicting each y_i from all others, for every ridge.

    k: symmetric float64 (n, n).  y: float64 (n, outputs), on k's device.  unit: what a ridge of 1 adds to the diagonal,
    by default its mean.
    """
    spectrum, unit = Spectrum(k), float(k.diagonal().mean()) if unit is None else unit
    u = spectrum.vectors
    projected, squares, errors = u.T @ y, u.square(), []
    for ridge in ridges:
        shifted = spectrum.shifted(ridge * unit)
        if shifted is None:
            errors.append(math.inf)
            continue
        alpha, inverse_diagonal = u @ (projected / shifted[:, None]), squares @ (1 / shifted)
        errors.append(float((alpha / inverse_diagonal[:, None]).square().mean()))
    return ErrorCurve(torch.tensor(ridges, dtype=k.dtype), torch.tensor(errors, dtype=k.dtype))


def held_out(
    k_fit: Tensor, k_held_out: Tensor, y_fit: Tensor, y_held_out: Tensor, ridges: Sequence[float], unit: float
) -> ErrorCurve:
    """Errors of predicting y_held_out (m, outputs) from y_fit (n, outputs), for every ridge.

    k_fit: symmetric float64 (n, n).  k_held_out (m, n).  unit: what a ridge of 1 adds to the diagonal.
    """
    spectrum, errors = Spectrum(k_fit), []
    projected, rows = spectrum.vectors.T @ y_fit, k_held_out @ spectrum.vectors
    for ridge in ridges:
        shifted = spectrum.shifted(ridge * unit)
        outputs = None if shifted is None else rows @ (projected / shifted[:, None])
        errors.append(math.inf if outputs is None else float((outputs - y_held_out).square().mean()))
    return ErrorCurve(torch.tensor(ridges, dtype=k_fit.dtype), torch.tensor(errors, dtype=k_fit.dtype))


@dataclass(frozen=True)
class ChoicePlan:
    """How a draw's ridge is chosen in a budget of memory.

    eigen_bytes: what the eigendecomposition takes at most.  factor: of one ridge's system, where that is too much.
    """

    choice: RidgeChoice
    n: int
    eigen_bytes: int
    factor: SolvePlan

    @property
    def by_eigen(self) -> bool:
        """Whether one eigendecomposition gives every ridge."""
        return self.eigen_bytes <= self.factor.budget

    def seconds(self, device: torch.device) -> float:
        """How long it takes at the measured rate."""
        if self.by_eigen:
            return eigen_seconds(self.factor.n, device)
        # The inverse's diagonal is as much again as the factor.
        each = 2 if self.choice.select == "loo" else 1
        return each * len(self.choice.grid) * self.factor.seconds(device)

    def words(self, device: torch.device) -> str:
        """One line: how, bytes and time."""
        grid, how = self.choice.grid, {"loo": "leave-one-out", "holdout": "held-out"}[self.choice.select]
        words = f"the ridge of {self.n:,} images out of {len(grid)} from {grid[0]:g} to {grid[-1]:g} by {how} error: "
        about = duration(self.seconds(device))
        if self.by_eigen:
            return words + f"an eigendecomposition in {gigabytes(self.eigen_bytes)}, about {about}"
        inverses = ", each with the diagonal of its inverse" if self.choice.select == "loo" else ""
        return (
            f"{words}{len(grid)} factorisations{inverses}, about {about}, since an eigendecomposition takes "
            f"{gigabytes(self.eigen_bytes)} and {gigabytes(self.factor.budget)} are left for it"
        )


def plan_choice(choice: RidgeChoice, n: int, outputs: int, piece_bytes: int, budget: int) -> ChoicePlan:
    """The plan for n training images that takes at most `budget` bytes.

    Raises NtkError as `plan_solve` and `count_held_out`.
    """
    held = count_held_out(n, choice.holdout, "ridge") if choice.select == "holdout" else 0
    fit = n - held
    eigen_bytes = piece_bytes + 8 * fit * max(EIGEN_MATRICES * fit, 2 * fit + 2 * held)
    return ChoicePlan(choice, n, eigen_bytes, plan_solve(fit, outputs, piece_bytes, budget))


@dataclass(frozen=True)
class Errors:
    """The errors found so far of one draw, in a file that a choice goes on from. path: None keeps none."""

    path: Path | None = None
    found: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Errors":
        """Those of a file; none where there is no file, or a damaged one."""
        try:
            require_whole(path)
            found: Any = json.loads(path.read_bytes())
            whole = isinstance(found, dict) and all(v is None or isinstance(v, float) for v in found.values())
        except (OSError, ValueError, StoreError):
            whole = False
        return cls(path, found if whole else {})

    def add(self, curve: dict[float, float]) -> None:
        """Keep errors by ridge, an infinite one as None."""
        self.found.update({repr(r): e if math.isfinite(e) else None for r, e in curve.items()})
        if self.path:
            keep(self.path, lambda file: file.write(json_text(self.found).encode()))

    def of(self, ridge: float) -> float | None:
        """The error of a ridge, infinite where its system has none; None where it is not known yet."""
        if repr(ridge) not in self.found:
            return None
        found = self.found[repr(ridge)]
        return math.inf if found is None else found


def choose_ridge(
    matrix: Matrix,
    y: Tensor,
    plan: ChoicePlan,
    unit: float,
    files: Callable[[str], PanelFiles | None] = lambda _: None,
    errors: Errors | None = None,
    label: str = "ridge",
) -> RidgeCurve:
    """The ridge of least squared error over all outputs, the larger of equals, and the errors of all.

    matrix: symmetric (n, n).  y: float64 (n, outputs), on the device that computes.  unit: what a ridge of 1 adds to
    the diagonal.  files: a ridge's name -> where the panels of its factor are kept, if they are.  errors: those that
    are known, added to. Raises NtkError where no ridge makes the matrix positive definite.
    """
    errors = errors or Errors()
    grid = plan.choice.grid
    missing = [ridge for ridge in grid if errors.of(ridge) is None]
    if missing and plan.by_eigen:
        found = _by_eigen(matrix, y, plan, missing, unit)
        errors.add(dict(zip(missing, found.errors.tolist(), strict=True)))
    elif missing:
        for ridge in missing:
            kept = files(f"{ridge:g}")
            errors.add({ridge: _by_factor(matrix, y, plan, ridge * unit, kept, f"{label}, ridge {ridge:g}")})
            if kept:
                kept.remove()
    values = [errors.of(ridge) for ridge in grid]
    curve = ErrorCurve(torch.tensor(grid, dtype=y.dtype), torch.tensor(values, dtype=y.dtype))
    return RidgeCurve(
        select=plan.choice.select,
        ridge=curve.ridge,
        ridges=list(grid),
        errors=[e if e is not None and math.isfinite(e) else None for e in values],
    )


def _by_eigen(matrix: Matrix, y: Tensor, plan: ChoicePlan, ridges: Sequence[float], unit: float) -> ErrorCurve:
    fit, held = _parts(plan)
    k = block(matrix, fit, fit, y.device)
    if plan.choice.select == "loo":
        return leave_one_out(k, y, ridges, unit)
    return held_out(k, block(matrix, held, fit, y.device), y[fit], y[held], ridges, unit)


def _parts(plan: ChoicePlan) -> tuple[slice, slice]:
    """What is fitted and what is held out: the first images, a fair sample of a seeded order."""
    held = plan.n - plan.factor.n
    return slice(held, plan.n), slice(0, held)


def _by_factor(
    matrix: Matrix, y: Tensor, plan: ChoicePlan, shift: float, files: PanelFiles | None, label: str
) -> float:
    """The error of one ridge; infinite where its system is not positive definite."""
    (fit, held), loo = _parts(plan), plan.choice.select == "loo"
    system = matrix if loo else Window(matrix, fit, fit)
    flops = plan.factor.flops * (2 if loo else 1)
    with progress(label, flops, "FLOP", delay=SECONDS_WITHOUT_BAR, leave=False) as bar:
        factor = Cholesky(system, shift, y.device, plan.factor.groups, files, bar)
        try:
            factor.factorise()
        except NotPositiveDefinite:
            return math.inf
        alpha = factor.solve(y[fit])
        if loo:
            return float((alpha / factor.inverse_diagonal()[:, None]).square().mean())
    del factor
    outputs = multiply(Window(matrix, held, fit), alpha, plan.factor.batch_bytes)
    return float((outputs - y[held]).square().mean())
