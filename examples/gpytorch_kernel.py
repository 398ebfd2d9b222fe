"""The kernel in GPyTorch, whose Gaussian process then learns the scale and the noise. Needs the extra `examples`.

    python examples/gpytorch_kernel.py [--n 200] [--test 797] [--steps 40]

Is a digit 5 or more? Regression on -1 and 1.
"""

import argparse
from typing import Any

import gpytorch
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from exact_ntk.kernels import cntk


class CNTKKernel(gpytorch.kernels.Kernel):
    """A kernel of images (C, H, W) that come as rows, as GPyTorch wants them, over the mean of its diagonal at `x`.

    x: the training images. No hyperparameter changes the kernel of these: it is computed once, not at every step.
    """

    def __init__(self, x: Tensor, image_shape: tuple[int, int, int], depth: int = 4, readout: str = "gap-nngp"):
        super().__init__()
        self.image_shape, self.depth, self.readout = image_shape, depth, readout
        k = self._kernel(x)
        self.unit = k.diagonal().mean()
        self.x, self.k = x, k / self.unit

    def _kernel(self, x1: Tensor, x2: Tensor | None = None, diagonal: bool = False) -> Tensor:
        images = [None if x is None else x.reshape(-1, *self.image_shape) for x in (x1, x2)]
        return cntk(*images, depths=(self.depth,), readouts=(self.readout,), diagonal=diagonal)[0, 0]

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """K (n1, n2), or with `diag` K(x1[i], x2[i]), (n,). Raises ValueError for batches of kernels."""
        if x1.ndim != 2:
            raise ValueError(f"one kernel at a time: x1 should be (n, pixels), not {tuple(x1.shape)}")
        same = torch.equal(x1, x2)
        trained_on = same and torch.equal(x1, self.x)
        if diag and same and not trained_on:
            return self._kernel(x1, diagonal=True) / self.unit
        k = self.k if trained_on else self._kernel(x1, None if same else x2) / self.unit
        return k.diagonal() if diag else k


class Process(gpytorch.models.ExactGP):
    """A constant mean, and the kernel times a scale that is learnt."""

    def __init__(self, x: Tensor, y: Tensor, likelihood: gpytorch.likelihoods.GaussianLikelihood, kernel: CNTKKernel):
        super().__init__(x, y, likelihood)
        self.mean, self.covariance = gpytorch.means.ConstantMean(), gpytorch.kernels.ScaleKernel(kernel)
        self.covariance.outputscale = 100.0  # images have most of the kernel in common: differences need a large scale

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean(x), self.covariance(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="training images")
    parser.add_argument("--test", type=int, default=797, help="test images")
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    digits = load_digits()
    x = torch.from_numpy((digits.data - 4.9) / 6.0)
    y = torch.from_numpy(2.0 * (digits.target >= 5) - 1)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = Process(x[: given.n], y[: given.n], likelihood, CNTKKernel(x[: given.n], (1, 8, 8))).double()

    evidence, adam = (
        gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model),
        torch.optim.Adam(model.parameters(), 0.3),
    )
    for step in range(given.steps):
        adam.zero_grad()
        loss = -evidence(model(x[: given.n]), y[: given.n])
        loss.backward()
        adam.step()
        if step % 10 == 0 or step == given.steps - 1:
            scale, noise = model.covariance.outputscale.item(), likelihood.noise.item()
            print(f"step {step:2}: -log p(y) / n = {loss.item():.4f}, scale {scale:.3f}, noise {noise:.4f}")
    model.eval()
    likelihood.eval()
    with torch.no_grad():
        found = model(x[-given.test :])
    right = (found.mean > 0) == (y[-given.test :] > 0)
    sure = found.mean.abs() > 2 * found.stddev
    print(
        f"{100 * right.double().mean():.1f} % of {len(right)} test images; of the {int(sure.sum())} whose mean is two "
        f"standard deviations from 0, {100 * right[sure].double().mean():.1f} %"
    )


if __name__ == "__main__":
    main()
