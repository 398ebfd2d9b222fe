"""Kernel regression: exact solution in float64, with what tells whether to trust it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exact_ntk.errors import NtkError

POWER_STEPS = 50


def targets(y: np.ndarray, classes: int) -> Tensor:
    """One-hot minus 1 / classes: labels (n,) -> float64 (n, classes)."""
    one_hot = torch.zeros((len(y), classes), dtype=torch.float64)
    one_hot[torch.arange(len(y)), torch.from_numpy(y)] = 1.0
    return one_hot - 1.0 / classes


@dataclass(frozen=True)
class Solution:
    """alpha (n, outputs) with (K + ridge mean(diag K) I) alpha = targets.

    residual: ||K alpha - y|| / ||y||.  largest_eigenvalue, smallest_eigenvalue: of what was solved, in absolute value,
    by power iteration on it and on its factor (from inside, and tight in practice); the smallest is None where float64
    cannot hold its reciprocal.  indefinite: None, or the order of the first leading minor that is not positive: the
    system was then solved by LU.
    """

    alpha: Tensor
    residual: float
    largest_eigenvalue: float
    smallest_eigenvalue: float | None
    indefinite: int | None

    @property
    def condition(self) -> float | None:
        """The 2-norm condition number, or None where it is not finite."""
        return self.largest_eigenvalue / self.smallest_eigenvalue if self.smallest_eigenvalue else None


def kernel_regression(k: Tensor, y: Tensor, ridge: float = 0.0, on_indefinite: str = "lu") -> Solution:
    """Solve by Cholesky; by LU, and marked, where K is not positive definite.

    k: symmetric float64 (n, n), overwritten by nothing.  y: float64 (n, outputs) on the same device.
    ridge: relative to the mean of k's diagonal.  Raises NtkError if K is not positive definite and `on_indefinite`
    is "stop", or if K is singular, also in float64.
    """
    if ridge:
        k = k.clone()
        k.diagonal().add_(ridge * k.diagonal().mean())
    factor, info = torch.linalg.cholesky_ex(k)
    indefinite = int(info.item()) or None
    if indefinite is None:

        def apply_inverse(b: Tensor) -> Tensor:
            return torch.cholesky_solve(b, factor)
    elif on_indefinite == "stop":
        raise NtkError(f"the Gram matrix is not positive definite: leading minor {indefinite} is not positive")
    else:
        lu, pivots, info = torch.linalg.lu_factor_ex(k)
        if int(info.item()):
            raise NtkError(f"the Gram matrix is singular (pivot {int(info.item())}): give the column a ridge")

        def apply_inverse(b: Tensor) -> Tensor:
            return torch.linalg.lu_solve(lu, pivots, b)

    alpha = apply_inverse(y)
    residual = float((k @ alpha - y).norm() / y.norm())
    largest = _largest_eigenvalue(lambda v: k @ v, k)
    of_inverse = _largest_eigenvalue(apply_inverse, k)
    if not math.isfinite(residual):
        raise NtkError("the Gram matrix is singular in float64: its solution is not finite: give the column a ridge")
    smallest = 1.0 / of_inverse if math.isfinite(of_inverse) and math.isfinite(largest * of_inverse) else None
    return Solution(alpha, residual, largest, smallest, indefinite)


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Largest eigenvalue in absolute value, by power iteration from a fixed start."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn((len(like), 1), generator=generator, dtype=torch.float64).to(like.device)
    norm = v.norm()
    for _ in range(POWER_STEPS):
        v = apply(v / norm)
        norm = v.norm()
    return float(norm)


def accuracy(predictions: Tensor, y: np.ndarray) -> float:
    """Percentage of rows whose largest output is the label."""
    return float((predictions.argmax(1).cpu() == torch.from_numpy(y)).double().mean() * 100)
