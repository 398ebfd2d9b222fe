"""How far a prediction may be off: the spread of infinitely wide nets, or of the Gaussian process, about the mean."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_ndtr, roots_hermitenorm
from torch import Tensor

from exact_ntk.errors import NtkError
from exact_ntk.regression.gradient_flow import GradientFlow

HERMITE_NODES = 64
BLOCK_ENTRIES = 1 << 22
# Below it differences between outputs, over it, overflow.
SMALLEST_DEVIATION = 1e-150


@dataclass(frozen=True)
class Posterior:
    """What a variance given n images takes.

    solve: (n, m) -> (n, m), coefficients alpha = solve(y) from targets: A^-1 y with A = Theta(X, X) + ridge, or
    gradient flow.  prior: S(X, X), the NNGP kernel; None for the posterior of the Gaussian process itself.
    """

    solve: Callable[[Tensor], Tensor]
    prior: Tensor | None

    def variance(self, own: Tensor, kernel: Tensor, prior: Tensor) -> Tensor:
        """Of an output at each of m images, (m,), never below 0.

        own: S(x, x), (m,).  kernel, prior: Theta(x, X) and S(x, X), (m, n).  S(x, x) + Theta A^-1 S A^-1 Theta^T -
        (Theta A^-1 S(X, x) + h.c.), over the nets' initialisations (Lee et al. 2019, "Wide neural networks of any depth
        evolve as linear models", section 2.3); of the Gaussian process S(x, x) - S A^-1 S^T.
        """
        moved = self.solve(kernel.T)
        if self.prior is None:
            left = own - (moved * prior.T).sum(0)
        else:
            left = own + (moved * (self.prior @ moved - 2 * prior.T)).sum(0)
        return left.clamp_min(0.0)


def by_cholesky(kernel: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    """Solves (K + ridge mean(diag K) I) alpha = y. kernel (n, n) is overwritten. Raises NtkError if it is not positive
    definite."""
    kernel.diagonal().add_(ridge * kernel.diagonal().mean())
    factor, minor = torch.linalg.cholesky_ex(kernel)
    if int(minor):
        raise NtkError(
            f"the Gram matrix is not positive definite (leading minor {int(minor)}), so it gives no variance: give a "
            "ridge, such as ridge=1e-6"
        )
    return lambda y: torch.cholesky_solve(y, factor)


def by_flow(kernel: Tensor, fit: Tensor, time: float) -> Callable[[Tensor], Tensor]:
    """Gradient flow to a time on the images `fit`, the others' coefficients being 0."""
    flow = GradientFlow(kernel, kernel.new_zeros(len(fit)), overwrite=True)
    weights = flow.weights(time)[:, None]

    def solve(y: Tensor) -> Tensor:
        alpha = torch.zeros_like(y)
        alpha[fit] = flow.eigenvectors @ (weights * (flow.eigenvectors.T @ y[fit]))
        return alpha

    return solve


def largest_probabilities(means: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """P(output k is the largest) of independent outputs N(means[i, k], deviations[i]^2): (m, outputs), rows sum to 1.

    means (m, outputs), deviations (m,).  The integral over output k, in standard units, of the product of Phi over all
    others, by Gauss-Hermite; of larger means the probability is never smaller.
    """
    z, weights = roots_hermitenorm(HERMITE_NODES)
    scaled = means / np.maximum(deviations, SMALLEST_DEVIATION)[:, None]
    found = np.empty_like(scaled)
    rows = max(1, BLOCK_ENTRIES // (scaled.shape[1] * HERMITE_NODES))
    for first in range(0, len(scaled), rows):
        part = scaled[first : first + rows]
        for k in range(part.shape[1]):
            others = np.delete(part[:, [k]] - part, k, axis=1)
            found[first : first + rows, k] = np.exp(log_ndtr(z + others[:, :, None]).sum(1)) @ weights
    return found / found.sum(1, keepdims=True)
