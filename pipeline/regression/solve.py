"""Kernel regression: exact solution in float64, with what tells whether to trust it."""

import logging
import math
import sys
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor

from exact_ntk.errors import NtkError
from exact_ntk.memory import gigabytes
from exact_ntk.progress import progress
from exact_ntk.regression.cholesky import Cholesky, NotPositiveDefinite
from exact_ntk.regression.condition import inverse_norm, signs, smallest_pivots
from exact_ntk.regression.lu import LU
from exact_ntk.regression.matrix import Held, Matrix, ridge_unit, row_blocks
from exact_ntk.regression.panels import PanelFiles
from exact_ntk.regression.plan import DoesNotFit, SolvePlan, flops_per_second, plan_solve

SECONDS_WITHOUT_BAR = 2.0

log = logging.getLogger("ntk")


def targets(y: np.ndarray, classes: int) -> Tensor:
    """One-hot minus 1 / classes: labels (n,) -> float64 (n, classes)."""
    one_hot = torch.zeros((len(y), classes), dtype=torch.float64)
    one_hot[torch.arange(len(y)), torch.from_numpy(y)] = 1.0
    return one_hot - 1.0 / classes


@dataclass(frozen=True)
class Solution:
    """alpha (n, outputs) with (K + ridge mean(diag K) I) alpha = targets.

    residual: ||K alpha - y|| / ||y||.  one_norm: the 1-norm of what was solved.  inverse_one_norm: that of its inverse,
    estimated from below (see `regression.condition`); None where float64 cannot hold it or the condition.
    indefinite: None, or the order of the first leading minor that is not positive: the system was then solved by LU.
    """

    alpha: Tensor
    residual: float
    one_norm: float
    inverse_one_norm: float | None
    indefinite: int | None

    @property
    def condition(self) -> float | None:
        """The condition number in the 1-norm, or None where it is not finite."""
        return None if self.inverse_one_norm is None else self.one_norm * self.inverse_one_norm


def kernel_regression(
    k: Tensor | Matrix,
    y: Tensor,
    ridge: float = 0.0,
    on_indefinite: str = "lu",
    plan: SolvePlan | None = None,
    files: PanelFiles | None = None,
    label: str = "solve",
    unit: float | None = None,
) -> Solution:
    """Solve by Cholesky; by LU, and marked, where K is not positive definite.

    k: symmetric float64 (n, n), overwritten by nothing.  y: float64 (n, outputs), on the device that computes.
    ridge: relative to `unit`, by default the mean of k's diagonal.  plan: what is held in memory, all by default.
    files: where finished panels of the factor are kept, which an interrupted call goes on from; for the caller to
    remove.  label: of the progress bar.  Raises NtkError if K is not positive definite and `on_indefinite` is "stop" or
    LU does not fit in the plan's budget, or if K is singular, also in float64.
    """
    matrix = Held(k) if isinstance(k, Tensor) else k
    plan = plan or plan_solve(len(y), y.shape[1], matrix.piece_bytes, sys.maxsize)
    shift = ridge * (ridge_unit(matrix) if unit is None else unit) if ridge else 0.0
    factor, indefinite = _factor(matrix, shift, y.device, on_indefinite, plan, files, label)
    units = smallest_pivots(factor.pivots)
    alpha, columns = factor.solve(torch.cat([y, units], 1)).split([y.shape[1], units.shape[1]], 1)
    of_signs = factor.solve(signs(columns))
    del factor
    residual, norm = _residual(matrix, shift, alpha, y, plan.batch_bytes)
    if not math.isfinite(residual):
        raise NtkError("the Gram matrix is singular in float64: its solution is not finite: give the column a ridge")
    of_inverse = inverse_norm(columns, of_signs)
    return Solution(
        alpha.contiguous(), residual, norm, of_inverse if math.isfinite(norm * of_inverse) else None, indefinite
    )


def _factor(
    matrix: Matrix,
    shift: float,
    device: torch.device,
    on_indefinite: str,
    plan: SolvePlan,
    files: PanelFiles | None,
    label: str,
) -> tuple[Cholesky | LU, int | None]:
    """The Cholesky factor and None; or LU and the leading minor that is not positive, the failed factor gone."""
    with progress(label, plan.flops, "FLOP", delay=SECONDS_WITHOUT_BAR, leave=False) as bar:
        factor = Cholesky(matrix, shift, device, plan.groups, files, bar)
        try:
            factor.factorise()
            return factor, None
        except NotPositiveDefinite as error:
            minor = error.minor
    del factor
    if files:
        files.remove()
    why = f"the Gram matrix is not positive definite: leading minor {minor} is not positive"
    if on_indefinite == "stop":
        raise NtkError(why)
    if plan.lu_bytes > plan.budget:
        raise DoesNotFit(f"{why}; give the column a ridge: LU", plan.lu_bytes, plan.budget)
    if plan.keeps_files(device):
        seconds = timedelta(seconds=round(2 * plan.flops / flops_per_second(device)))
        log.info(f"{label}: {why}: LU, in {gigabytes(plan.lu_bytes)} and about {seconds}")
    return LU(matrix, shift, device), minor


def _residual(matrix: Matrix, shift: float, alpha: Tensor, y: Tensor, batch_bytes: int) -> tuple[float, float]:
    """||(K + shift I) alpha - y|| / ||y||, and the 1-norm of K + shift I, from one reading of K."""
    difference, sums = torch.empty_like(y), torch.empty(len(y), dtype=y.dtype, device=y.device)
    for rows, part in row_blocks(matrix, y.device, batch_bytes):
        part.diagonal(rows.start).add_(shift)
        difference[rows] = part @ alpha - y[rows]
        sums[rows] = part.abs().sum(1)
    return float(difference.norm()) / (float(y.norm()) or 1.0), float(sums.max())


def accuracy(predictions: Tensor, y: np.ndarray) -> float:
    """Percentage of rows whose largest output is the label."""
    return float((predictions.argmax(1).cpu() == torch.from_numpy(y)).double().mean() * 100)
