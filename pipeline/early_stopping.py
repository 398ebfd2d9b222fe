"""Early stopping of the infinitely wide network: what gradient flow gives where accuracy on a held-out split peaks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import NtkError
from pipeline.gradient_flow import GradientFlow
from pipeline.regression import accuracy


class NoFlow(NtkError):
    """Gradient flow is not defined on this kernel matrix; regression may be."""


def stop_early(
    k_train: Tensor, k_test: Tensor, y_train: np.ndarray, y_test: np.ndarray, y: Tensor, holdout: float, ridge: float
) -> dict[str, Any]:
    """Train on all but the first `holdout` of a draw's training images and stop where accuracy on these peaks.

    k_train (n, n), k_test (m, n): kernels, as in the solve.  y_train (n,), y_test (m,): labels.  y (n, outputs):
    targets.  ridge: as in the solve, relative to the mean of the diagonal.

    Returns accuracies in percent, all of the flow on the images that are left: `held_out` and `test` at the peak,
    `held_out_at_infinity` and `test_at_infinity`; `time`, the peak's, in units of 1 / lambda_max and None for
    infinity; `n_held_out`. Raises NtkError if the split leaves a part empty, NoFlow if K has a negative eigenvalue.
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
    return {
        "time": None if math.isinf(found.best_time) else found.best_time * flow.largest_eigenvalue,
        "held_out": found.best_accuracy,
        "held_out_at_infinity": float(found.accuracies[-1]),
        "test": test[0],
        "test_at_infinity": test[1],
        "n_held_out": held_out,
    }


def average(draws: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over draws of `stop_early`'s accuracies; the median time, None where that is infinity."""
    times = [math.inf if d["time"] is None else d["time"] for d in draws]
    median = sorted(times)[len(times) // 2]
    means = {key: float(np.mean([d[key] for d in draws])) for key in draws[0] if key != "time"}
    return {"time": None if math.isinf(median) else median, **means, "n_held_out": draws[0]["n_held_out"]}
