"""What a draw's Gram matrix says of its training: its spectrum, and the infinitely wide network over training time."""

import numpy as np
import torch
from torch import Tensor

from exact_ntk.errors import NtkError
from exact_ntk.memory import gigabytes
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.matrix import Matrix, block, multiply
from exact_ntk.regression.plan import SolvePlan

# An eigendecomposition takes some ten times the time of a Cholesky factorisation: minutes beyond this.
MOST_IMAGES = 5_000
TIMES = 48


class NoSpectrum(NtkError):
    """Why a draw has none."""


def spectrum(
    k_train: Matrix, k_test: Matrix, shift: float, y: Tensor, y_test: np.ndarray, plan: SolvePlan
) -> dict[str, np.ndarray]:
    """Arrays of K + shift I, and of gradient flow on it from f = 0.

    k_train (n, n), k_test (m, n), y (n, outputs), y_test (m,), plan: as in the solve, on y's device.  Returns
    eigenvalues (n,), the largest first; flow_time (T,) in units of 1 / lambda_max; flow_loss (T,), |u - y|^2 on the
    training images over |y|^2; flow_test (T,), accuracy on the test images in percent.
    Raises NoSpectrum for too many images, too little memory, and a matrix with a negative eigenvalue.
    """
    n = len(y)
    if n > MOST_IMAGES:
        raise NoSpectrum(f"{n:,} training images are more than the {MOST_IMAGES:,} that are decomposed")
    need = plan.working + 3 * 8 * n**2
    if need > plan.budget:
        raise NoSpectrum(f"it takes {gigabytes(need)} of memory, and {gigabytes(plan.budget)} are left for it")
    every = slice(0, n)
    k = block(k_train, every, every, y.device)
    k.diagonal().add_(shift)
    try:
        flow = GradientFlow(k, y, overwrite=True)
    except ValueError as error:
        raise NoSpectrum(str(error)) from error
    times = flow.times(TIMES)
    alphas = torch.cat([flow.coefficients(float(t)) for t in times], 1)
    guesses = multiply(k_test, alphas, plan.batch_bytes).view(-1, TIMES, y.shape[1]).argmax(2).cpu().numpy()
    size = float(y.square().sum()) / 2 or 1.0
    return {
        "eigenvalues": flow.eigenvalues.flip(0).cpu().numpy(),
        "flow_time": (times * flow.largest_eigenvalue).cpu().numpy(),
        "flow_loss": np.array([flow.loss(float(t)) / size for t in times]),
        "flow_test": 100 * (guesses == y_test[:, None]).mean(0),
    }
