"""Gradient flow of kernel regression in closed form: the infinitely wide network at any training time.

du/dt = -K (u - y) on the squared loss 1/2 |u - y|^2 gives u(t) = y + exp(-K t) (u(0) - y); t = infinity is kernel
regression (Arora et al. 2019, section 3).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TIMES = 200
BLOCK_ROWS = 512


@dataclass(frozen=True)
class AccuracyOverTime:
    """Accuracy over training time on held-out inputs.

    times (T,), accuracies (T,) in percent, the last time infinity; best_time: the first at which accuracy peaks.
    """

    times: Tensor
    accuracies: Tensor

    @property
    def best_time(self) -> float:
        return float(self.times[int(self.accuracies.argmax())])

    @property
    def best_accuracy(self) -> float:
        return float(self.accuracies.max())


class GradientFlow:
    """Training of the infinitely wide network on (X, y), solved by one eigendecomposition.

    k_train: NTK Gram matrix (n, n), symmetric positive semidefinite.  y: targets (n,) or (n, outputs).
    Time is in the units of du/dt = -K (u - y): of gradient descent on 1/2 |u - y|^2 with rate eta, step s is t = s eta.
    Eigenvalues up to n eps times the largest count as 0, as in a pseudo-inverse: what lies in their span never moves.

    overwrite: k_train, float64 and contiguous, becomes the eigenvectors: three of its size are then in memory at the
    most, and one afterwards.

    Raises ValueError if shapes disagree, if K is not finite or symmetric, or has a negative eigenvalue (the flow
    would diverge).
    """

    def __init__(self, k_train: Tensor, y: Tensor, overwrite: bool = False):
        n = len(k_train)
        if k_train.shape != (n, n) or n == 0:
            raise ValueError(f"k_train must be square, not {tuple(k_train.shape)}")
        if y.ndim not in (1, 2) or len(y) != n:
            raise ValueError(f"y must be (n,) or (n, outputs) with n = {n}, not {tuple(y.shape)}")
        k = k_train.double().contiguous()
        k = k if overwrite or k.data_ptr() != k_train.data_ptr() else k.clone()
        self.y = y.to(k.device).double()
        scale = max(float(k.max()), -float(k.min()))
        if not math.isfinite(scale) or not bool(self.y.isfinite().all()):
            raise ValueError("k_train and y must be finite: are there missing tiles in the store?")
        if any(_asymmetry(k, first) > 1e-6 * scale for first in range(0, n, BLOCK_ROWS)):
            raise ValueError("k_train must be symmetric")
        # Column-major, which its own transpose is, it is decomposed in place.
        self.eigenvectors = k.T
        eigenvalues = torch.empty(n, dtype=k.dtype, device=k.device)
        torch.linalg.eigh(self.eigenvectors, out=(eigenvalues, self.eigenvectors))
        largest = float(eigenvalues[-1])
        if largest <= 0:
            raise ValueError("k_train must have a positive eigenvalue")
        cutoff = n * torch.finfo(torch.float64).eps * largest
        if float(eigenvalues[0]) < -cutoff:
            raise ValueError(
                f"k_train has the eigenvalue {float(eigenvalues[0]):.3g}: gradient flow would diverge: add a ridge"
            )
        self.eigenvalues = torch.where(eigenvalues > cutoff, eigenvalues, 0.0)

    def _residual(self, f0: Tensor | None) -> Tensor:
        """y - u(0) in the eigenbasis."""
        start = torch.zeros_like(self.y) if f0 is None else f0.to(self.y)
        if start.shape != self.y.shape:
            raise ValueError(f"the initial function on the training set must be {tuple(self.y.shape)}, as y is")
        return self.eigenvectors.T @ (self.y - start)

    def _decay(self, t: float) -> Tensor:
        """exp(-lambda t) of every eigenvalue (n,); 1 for ever where lambda is 0."""
        if math.isnan(t) or t < 0:
            raise ValueError(f"t must be 0 or larger, or infinity, not {t}")
        return torch.where(self.eigenvalues > 0, torch.exp(-self.eigenvalues * t), 1.0)

    def weights(self, t: float) -> Tensor:
        """(1 - exp(-lambda t)) / lambda of every eigenvalue (n,); 0 where lambda is 0."""
        positive = self.eigenvalues > 0
        divisor = torch.where(positive, self.eigenvalues, 1.0)
        grown = torch.ones_like(divisor) if math.isinf(t) else -torch.expm1(-divisor * t)
        return torch.where(positive, grown / divisor, 0.0)

    def _column(self, values: Tensor) -> Tensor:
        return values if self.y.ndim == 1 else values[:, None]

    def train(self, t: float, f0: Tensor | None = None) -> Tensor:
        """u(t) = y + exp(-K t) (u(0) - y), the outputs on the training set at time t: the shape of y.

        f0: the initial function on the training set, 0 by default.
        """
        return self.y - self.eigenvectors @ (self._column(self._decay(t)) * self._residual(f0))

    def predict(
        self, k_test: Tensor, t: float, f0_train: Tensor | None = None, f0_test: Tensor | None = None
    ) -> Tensor:
        """f_t(x) = f_0(x) + ker(x, X) K^-1 (I - exp(-K t)) (y - f_0(X)): (n_test,) or (n_test, outputs).

        k_test: kernel between test and training inputs (n_test, n).  t: 0 to infinity.  f0_train, f0_test: the initial
        function, both or neither.
        """
        if k_test.ndim != 2 or k_test.shape[1] != len(self.y):
            raise ValueError(f"k_test must be (n_test, {len(self.y)}), not {tuple(k_test.shape)}")
        if (f0_train is None) != (f0_test is None):
            raise ValueError("give the initial function on both sets, f0_train and f0_test, or on neither")
        alpha = self.coefficients(t, f0_train)
        change = k_test.to(alpha) @ alpha
        if f0_test is None:
            return change
        if f0_test.shape != change.shape:
            raise ValueError(f"f0_test must be {tuple(change.shape)}, not {tuple(f0_test.shape)}")
        return f0_test.to(change) + change

    def coefficients(self, t: float, f0: Tensor | None = None) -> Tensor:
        """alpha of f_t(x) = f_0(x) + ker(x, X) alpha: the shape of y. f0: the initial function on the training set."""
        self._decay(t)
        return self.eigenvectors @ (self._column(self.weights(t)) * self._residual(f0))

    def loss(self, t: float, f0: Tensor | None = None) -> float:
        """1/2 |u(t) - y|^2, summed over training inputs and outputs."""
        return float((self._column(self._decay(t)) * self._residual(f0)).square().sum() / 2)

    @property
    def largest_eigenvalue(self) -> float:
        """lambda_max(K): 1 / lambda_max is the time in which the fastest mode moves."""
        return float(self.eigenvalues[-1])

    def times(self, count: int = TIMES) -> Tensor:
        """Times (count,) from before the fastest mode moves to after the slowest has come to rest, log-spaced."""
        moving = self.eigenvalues[self.eigenvalues > 0]
        start, end = 0.01 / moving[-1], 30.0 / moving[0]
        return torch.logspace(
            float(start.log10()), float(end.log10()), count, dtype=torch.float64, device=moving.device
        )

    def early_stopping(
        self,
        k_held_out: Tensor,
        labels: Tensor,
        times: Tensor | None = None,
        f0_train: Tensor | None = None,
        f0_held_out: Tensor | None = None,
    ) -> AccuracyOverTime:
        """Accuracy over time on a held-out split, and so the time at which it peaks.

        k_held_out (m, n); labels (m,), the index of the right output; with one output, 0 for negative and 1 for
        positive.  times: `times()` by default; infinity is always added.
        """
        grid = self._grid(times)
        if len(labels) != len(k_held_out):
            raise ValueError(f"{len(labels)} labels for {len(k_held_out)} held-out inputs")
        if (f0_train is None) != (f0_held_out is None):
            raise ValueError("give the initial function on both sets, f0_train and f0_held_out, or on neither")
        labels = labels.to(self.y.device)
        found = []
        for change in self._changes(k_held_out, grid, f0_train):
            outputs = change if f0_held_out is None else f0_held_out.to(change) + change
            guess = outputs.argmax(1) if outputs.ndim == 2 and outputs.shape[1] > 1 else outputs.reshape(-1) > 0
            found.append(100.0 * float((guess == labels.to(guess)).double().mean()))
        return AccuracyOverTime(torch.tensor(grid, dtype=torch.float64), torch.tensor(found, dtype=torch.float64))

    def least_squares(self, k_held_out: Tensor, y: Tensor, times: Tensor | None = None) -> float:
        """The first time at which the squared error on a held-out split is least.

        k_held_out (m, n); y (m, outputs).  times: `times()` by default; infinity is always added.
        """
        grid = self._grid(times)
        errors = [float((u - y.to(u)).square().mean()) for u in self._changes(k_held_out, grid, None)]
        return grid[errors.index(min(errors))]

    def _grid(self, times: Tensor | None) -> list[float]:
        return [*(self.times() if times is None else times).tolist(), math.inf]

    def _changes(self, k_held_out: Tensor, grid: list[float], f0: Tensor | None) -> Iterator[Tensor]:
        """f_t - f_0 on a held-out split at every time; f0: the initial function on the training set."""
        # Into the eigenbasis once: a time then costs no product of n x n.
        projected, residual = k_held_out.to(self.y) @ self.eigenvectors, self._residual(f0)
        for t in grid:
            yield projected @ (self._column(self.weights(t)) * residual)


def _asymmetry(k: Tensor, first: int) -> float:
    """The largest difference between some rows of k and the same columns."""
    rows = slice(first, first + BLOCK_ROWS)
    return float((k[rows] - k[:, rows].T).abs().max())
