"""Full-batch gradient descent of finite networks on 1/2 sum (u - y)^2, watched beside gradient flow in closed form."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from exact_ntk.networks.cnn import CNN
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.theory.convolutional import empirical_ntk
from exact_ntk.theory.inputs import Problem
from exact_ntk.theory.networks import outputs, propagate

LOSS_TARGET = 1e-4
MOST_STEPS = 50_000
CHECKPOINT_GROWTH = 1.25


class Ensemble(Protocol):
    """S networks that are trained side by side on one problem of n training and m test inputs."""

    def train_outputs(self) -> Tensor:
        """(S, n), and whatever `kernels` and `step` need of this pass."""

    def test_outputs(self) -> Tensor:
        """(S, m)."""

    def kernels(self) -> Tensor:
        """The NTK on the training inputs (S, n, n), after `train_outputs`."""

    def step(self, residual: Tensor, rate: float) -> None:
        """Take rate times the gradient of 1/2 |residual|^2 off the weights; residual (S, n) = outputs - y."""


class FullyConnected:
    """kappa f of fully connected networks, weights (S, d_h, d_{h-1}) trained in place; see `networks`."""

    def __init__(self, weights: Sequence[Tensor], problem: Problem, kappa: float = 1.0):
        self.weights, self.kappa = weights, kappa
        self.x, self.x_test = (v.to(weights[0]) for v in (problem.x_train, problem.x_test))

    def train_outputs(self) -> Tensor:
        f, self.signals = propagate(self.weights, self.x)
        return self.kappa * f

    def test_outputs(self) -> Tensor:
        return self.kappa * outputs(self.weights, self.x_test)

    def kernels(self) -> Tensor:
        return self.kappa**2 * self.signals.ntk

    def step(self, residual: Tensor, rate: float) -> None:
        for w, b, g in zip(self.weights, self.signals.b, self.signals.g, strict=True):
            w.baddbmm_((b * residual[:, :, None]).mT, g, alpha=-rate * self.kappa)


class Convolutional:
    """Networks of `exact_ntk.networks.cnn` with one output, trained in place."""

    def __init__(self, nets: Sequence[CNN], problem: Problem):
        self.nets = nets
        like = next(nets[0].parameters())
        self.x, self.x_test = (v.to(like) for v in (problem.x_train, problem.x_test))

    def train_outputs(self) -> Tensor:
        self.outputs = torch.stack([net(self.x)[:, 0] for net in self.nets])
        return self.outputs.detach()

    def test_outputs(self) -> Tensor:
        with torch.no_grad():
            return torch.stack([net(self.x_test)[:, 0] for net in self.nets])

    def kernels(self) -> Tensor:
        return torch.stack([empirical_ntk(net, self.x) for net in self.nets])

    def step(self, residual: Tensor, rate: float) -> None:
        trained = [w for net in self.nets for w in net.parameters() if w.requires_grad]
        for w, gradient in zip(trained, torch.autograd.grad(self.outputs, trained, residual), strict=True):
            w.data.sub_(gradient, alpha=rate)


@dataclass(frozen=True)
class Training:
    """S networks trained together, step by step of size `rate`: time t = steps * rate.

    times (T,): of the checkpoints, the first 0 and the last the end.  train (T, S, n) and test (T, S, m): outputs.
    kernels (T, S, n, n): their NTK H(t) on the training inputs.  All on the CPU in float64.
    """

    times: Tensor
    train: Tensor
    test: Tensor
    kernels: Tensor

    def losses(self, y: Tensor) -> Tensor:
        """1/2 sum (u - y)^2 at every checkpoint: (T, S)."""
        return (self.train - y).square().sum(2) / 2


def _checkpoints(growth: float) -> set[int]:
    """Steps at which to look: 0, 1, 2, ... and then further and further apart."""
    steps, k = {0}, 1.0
    while k < MOST_STEPS:
        steps.add(math.ceil(k))
        k *= growth
    return steps


def train_ensemble(
    ensemble: Ensemble,
    y: Tensor,
    rate: float,
    *,
    loss_target: float = LOSS_TARGET,
    most_steps: int = MOST_STEPS,
    growth: float = CHECKPOINT_GROWTH,
    watch: Callable[[float], None] = lambda loss: None,
) -> Training:
    """Full-batch gradient descent on y (n,) until the loss of every network is on target.

    growth: of the steps between checkpoints.  watch: called at each with the largest loss so far.
    Ends off target after `most_steps`, or where a loss is no longer finite: the caller judges `losses`.
    """
    look = _checkpoints(growth)
    seen: list[tuple[float, Tensor, Tensor, Tensor]] = []
    for step in range(most_steps + 1):
        u = ensemble.train_outputs()
        residual = u - y.to(u)
        worst = float(residual.square().sum(1).max() / 2)
        done = worst <= loss_target or not math.isfinite(worst) or step == most_steps
        if done or step in look:
            seen.append((step * rate, u, ensemble.test_outputs(), ensemble.kernels()))
            watch(worst)
        if done:
            break
        ensemble.step(residual, rate)
    times, *values = zip(*seen, strict=True)
    return Training(torch.tensor(times, dtype=torch.float64), *(torch.stack(v).double().cpu() for v in values))


@dataclass(frozen=True)
class Flow:
    """The limit network from the same initial functions f_0, in closed form: at a training's times and at infinity.

    train (T, S, n), test (T, S, m), test_end (S, m).  plain (m,): at infinity from f_0 = 0, kernel regression.
    """

    train: Tensor
    test: Tensor
    test_end: Tensor
    plain: Tensor

    @classmethod
    def beside(cls, training: Training, k_train: Tensor, k_test: Tensor, y: Tensor) -> "Flow":
        """Solve gradient flow with the limit kernels k_train (n, n) and k_test (m, n), an output a seed."""
        f0, f0_test = training.train[0].T, training.test[0].T
        flow = GradientFlow(k_train, y[:, None].expand(-1, f0.shape[1]))
        times = training.times.tolist()
        return cls(
            torch.stack([flow.train(t, f0).T for t in times]),
            torch.stack([flow.predict(k_test, t, f0, f0_test).T for t in times]),
            flow.predict(k_test, math.inf, f0, f0_test).T,
            GradientFlow(k_train, y).predict(k_test, math.inf),
        )


def relative_distance(kernels: Tensor, reference: Tensor) -> Tensor:
    """||H - H'|| / ||H'|| in the Frobenius norm, over the last two dimensions."""
    return torch.linalg.matrix_norm(kernels - reference) / torch.linalg.matrix_norm(reference)


def stable_rate(k_train: Tensor, share: float) -> float:
    """A share of 1 / lambda_max: gradient descent on the linearised network is stable below twice that."""
    return share / float(torch.linalg.eigvalsh(k_train)[-1])
