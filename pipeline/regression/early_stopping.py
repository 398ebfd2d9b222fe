"""Early stopping of the infinitely wide network: what gradient flow gives where accuracy on a held-out split peaks."""

import math

import numpy as np
import torch
from torch import Tensor

from exact_ntk.draws import count_held_out
from exact_ntk.errors import NtkError
from exact_ntk.records import EarlyStopped
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.matrix import BATCH_BYTES, Matrix, block, multiply
from exact_ntk.regression.plan import DoesNotFit
from exact_ntk.regression.solve import accuracy


class NoFlow(NtkError):
    """Gradient flow is not defined on this kernel matrix; regression may be."""


def require_fit(n: int, holdout: float, piece_bytes: int, budget: int) -> None:
    """Raise NtkError, with the number that would do, unless `stop_early` fits in so many bytes; as `count_held_out`."""
    held_out = count_held_out(n, holdout, "early_stopping")
    fit = n - held_out
    # The eigendecomposition takes three matrices, and then one beside the held-out rows and their projection.
    need = piece_bytes + 8 * fit * max(3 * fit, fit + 2 * held_out)
    if need > budget:
        raise DoesNotFit(f"early_stopping: the eigendecomposition of {fit:,} images", need, budget)


def stop_early(
    k_train: Matrix,
    k_test: Matrix,
    y_train: np.ndarray,
    y_test: np.ndarray,
    y: Tensor,
    holdout: float,
    ridge: float,
    batch_bytes: int = BATCH_BYTES,
    unit: float | None = None,
) -> EarlyStopped:
    """Train on all but the first `holdout` of a draw's training images and stop where accuracy on these peaks.

    k_train (n, n), k_test (m, n): kernels, as in the solve.  y_train (n,), y_test (m,): labels.  y (n, outputs):
    targets, on the device that computes.  ridge: as in the solve, relative to `unit`, by default the
    mean of the fitted images' diagonal.  batch_bytes:
    how much of k_test is read at once.

    Raises NtkError if the split leaves a part empty, NoFlow if K has a negative eigenvalue.
    """
    n = len(y_train)
    held_out = count_held_out(n, holdout, "early_stopping")
    fit = slice(held_out, n)
    k_fit = block(k_train, fit, fit, y.device)
    k_fit.diagonal().add_(ridge * (k_fit.diagonal().mean() if unit is None else unit))
    try:
        flow = GradientFlow(k_fit, y[fit], overwrite=True)
    except ValueError as error:
        raise NoFlow(str(error)) from error
    k_held_out = block(k_train, slice(0, held_out), fit, y.device)
    found = flow.early_stopping(k_held_out, torch.from_numpy(y_train[:held_out]))
    alphas = torch.zeros((n, 2 * y.shape[1]), dtype=y.dtype, device=y.device)
    alphas[fit] = torch.cat([flow.coefficients(t) for t in (found.best_time, math.inf)], 1)
    test = [accuracy(outputs, y_test) for outputs in multiply(k_test, alphas, batch_bytes).chunk(2, 1)]
    return EarlyStopped(
        time=None if math.isinf(found.best_time) else found.best_time * flow.largest_eigenvalue,
        held_out=found.best_accuracy,
        held_out_at_infinity=float(found.accuracies[-1]),
        test=test[0],
        test_at_infinity=test[1],
        n_held_out=held_out,
    )
