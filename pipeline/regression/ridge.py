"""The ridge by leave-one-out error, in closed form from one eigendecomposition (Allen 1974, PRESS)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exact_ntk.errors import NtkError

# Relative to the mean of K's diagonal: from what float32 kernel values can bear to where K hardly counts.
RIDGES = tuple(10.0**exponent for exponent in range(-8, 3))


@dataclass(frozen=True)
class LeaveOneOut:
    """ridges (R,), relative to the mean of K's diagonal; errors (R,): mean squared leave-one-out residual, infinite
    where K + ridge mean(diag K) I is not positive definite."""

    ridges: Tensor
    errors: Tensor

    @property
    def ridge(self) -> float:
        """The one of least error, the larger of equals."""
        best = self.errors == self.errors.min()
        return float(self.ridges[best].max())


def leave_one_out(k: Tensor, y: Tensor, ridges: tuple[float, ...] = RIDGES) -> LeaveOneOut:
    """Errors of predicting each y_i from all others, for every ridge: alpha_i / (A^-1)_ii with A alpha = y.

    k: symmetric float64 (n, n).  y: float64 (n, outputs), on k's device.  Raises NtkError where no ridge will do.
    """
    eigenvalues, q = torch.linalg.eigh(k)
    projected, squares, errors = q.T @ y, q.square(), []
    floor = len(k) * torch.finfo(k.dtype).eps * float(eigenvalues.abs().max())
    for ridge in ridges:
        shifted = eigenvalues + ridge * float(k.diagonal().mean())
        if float(shifted.min()) <= floor:
            errors.append(float("inf"))
            continue
        alpha, inverse_diagonal = q @ (projected / shifted[:, None]), squares @ (1 / shifted)
        errors.append(float((alpha / inverse_diagonal[:, None]).square().mean()))
    found = LeaveOneOut(torch.tensor(ridges, dtype=k.dtype), torch.tensor(errors, dtype=k.dtype))
    if not bool(found.errors.isfinite().any()):
        raise NtkError(f"no ridge up to {max(ridges):g} makes the Gram matrix positive definite: are all images zero?")
    return found
