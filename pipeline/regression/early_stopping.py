"""Early stopping of the infinitely wide network: what gradient flow gives where accuracy on a held-out split peaks."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from exact_ntk.errors import NtkError
from exact_ntk.records import EarlyStopped, EarlyStoppedCell
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.solve import accuracy


class NoFlow(NtkError):
    """Gradient flow is not defined on this kernel matrix; regression may be."""


def stop_early(
    k_train: Tensor, k_test: Tensor, y_train: np.ndarray, y_test: np.ndarray, y: Tensor, holdout: float, ridge: float
) -> EarlyStopped:
    """Train on all but the first `holdout` of a draw's training images and stop where accuracy on these peaks.

    k_train (n, n), k_test (m, n): kernels, as in the solve.  y_train (n,), y_test (m,): labels.  y (n, outputs):
    targets.  ridge: as in the solve, relative to the mean of the diagonal.

    Raises NtkError if the split leaves a part empty, NoFlow if K has a negative eigenvalue.
    """
    held_out = round(len(y_train) * holdout)
    if held_out in (0, len(y_train)):
        raise NtkError(f"holdout {holdout:g} of {len(y_train)} images leaves none to train on or none to choose by")
    k_fit = k_train[held_out:, held_out:].clone()
    k_fit.diagonal().add_(ridge * k_fit.diagonal().mean())
    try:
        flow = GradientFlow(k_fit, y[held_out:])
    except ValueError as error:
        raise NoFlow(str(error)) from error
    found = flow.early_stopping(k_train[:held_out, held_out:], torch.from_numpy(y_train[:held_out]))
    test = [accuracy(flow.predict(k_test[:, held_out:], t), y_test) for t in (found.best_time, math.inf)]
    return EarlyStopped(
        time=None if math.isinf(found.best_time) else found.best_time * flow.largest_eigenvalue,
        held_out=found.best_accuracy,
        held_out_at_infinity=float(found.accuracies[-1]),
        test=test[0],
        test_at_infinity=test[1],
        n_held_out=held_out,
    )


def over_draws(draws: Sequence[EarlyStopped | None]) -> EarlyStoppedCell | None:
    """Means over the draws that have a flow, and the median of their times; None where none has one."""
    flows = [d for d in draws if d is not None]
    if not flows:
        return None
    median = statistics.median_high(math.inf if d.time is None else d.time for d in flows)
    accuracies = ("held_out", "held_out_at_infinity", "test", "test_at_infinity")
    return EarlyStoppedCell(
        time=None if math.isinf(median) else median,
        **{key: float(np.mean([getattr(d, key) for d in flows])) for key in accuracies},
        n_held_out=flows[0].n_held_out,
        draws=len(flows),
        draws_without_flow=len(draws) - len(flows),
    )
