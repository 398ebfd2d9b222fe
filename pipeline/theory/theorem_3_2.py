"""Theorem 3.2: a wide network trained to the end predicts as kernel regression does, and its NTK hardly moves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exact_ntk.kernels import cntk, ntk
from exact_ntk.theory.convolutional import paper_net
from exact_ntk.theory.inputs import Problem, seed_of, two_classes, two_classes_of_images
from exact_ntk.theory.networks import draw_weights
from exact_ntk.theory.training import (
    CHECKPOINT_GROWTH,
    Convolutional,
    Ensemble,
    Flow,
    FullyConnected,
    Training,
    relative_distance,
    stable_rate,
    train_ensemble,
)


@dataclass(frozen=True)
class TrainingSize:
    """Networks of one kind: `seeds` at each width, trained with the step share / lambda_max(H*).

    each, test_each: training and test digits of each of the two classes.
    """

    widths: tuple[int, ...]
    seeds: int
    hidden_layers: int
    share: float = 0.1
    each: int = 5
    test_each: int = 10


@dataclass(frozen=True)
class KappaSize:
    """Networks of one width with outputs kappa f."""

    kappas: tuple[float, ...]
    width: int
    seeds: int
    hidden_layers: int = 1
    share: float = 0.1
    each: int = 5
    test_each: int = 10


@dataclass(frozen=True)
class TrainedWidth:
    """S networks of one width and kappa, trained, beside gradient flow with the limit kernel H* (n, n)."""

    width: int
    kappa: float
    problem: Problem
    limit: Tensor
    training: Training
    flow: Flow

    @property
    def final_loss(self) -> float:
        """The largest of the networks' losses at the end."""
        return float(self.training.losses(self.problem.y)[-1].max())

    @property
    def test_error(self) -> np.ndarray:
        """|f_nn - f_ntk| on test points at the end of training, f_ntk at the same time: (S, m)."""
        return (self.training.test[-1] - self.flow.test[-1]).abs().numpy()

    @property
    def test_error_at_infinity(self) -> np.ndarray:
        """The same with f_ntk at t = infinity, kernel regression: (S, m)."""
        return (self.training.test[-1] - self.flow.test_end).abs().numpy()

    @property
    def deviation(self) -> np.ndarray:
        """|f_nn - ker(x, X) H*^-1 y|, the initial function not accounted for: (S, m)."""
        return (self.training.test[-1] - self.flow.plain).abs().numpy()

    @property
    def drift(self) -> Tensor:
        """||H(t) - H(0)|| / ||H(0)|| at every checkpoint: (T, S)."""
        return relative_distance(self.training.kernels, self.training.kernels[0])

    @property
    def from_limit(self) -> Tensor:
        """||H(t) - H*|| / ||H*|| at every checkpoint: (T, S)."""
        return relative_distance(self.training.kernels, self.limit)

    @property
    def curve_error(self) -> Tensor:
        """||u(t) - u_flow(t)|| / ||u(0) - y|| on the training inputs at every checkpoint: (T, S)."""
        start = (self.training.train[0] - self.problem.y).norm(dim=1)
        return (self.training.train - self.flow.train).norm(dim=2) / start

    @property
    def noise(self) -> np.ndarray:
        """|f_0| on test points: (S, m)."""
        return self.training.test[0].abs().numpy()


def largest(over_time: Tensor) -> np.ndarray:
    """The largest over the checkpoints: (T, S) -> (S, 1), a pair a seed for `fit_rates`."""
    return over_time.amax(0)[:, None].numpy()


Watch = Callable[[float], None]


def _run(
    ensemble: Ensemble,
    problem: Problem,
    kernels: tuple[Tensor, Tensor],
    width: int,
    kappa: float,
    share: float,
    watch: Watch,
    growth: float = CHECKPOINT_GROWTH,
) -> TrainedWidth:
    k_train, k_test = (kappa**2 * k for k in kernels)
    training = train_ensemble(ensemble, problem.y, stable_rate(k_train, share), growth=growth, watch=watch)
    flow = Flow.beside(training, k_train, k_test, problem.y)
    return TrainedWidth(width, kappa, problem, k_train, training, flow)


def _connected(
    problem: Problem, hidden_layers: int, width: int, kappa: float, seeds: int, device: torch.device, seed: int
) -> FullyConnected:
    generator = torch.Generator(device).manual_seed(seed)
    weights = draw_weights(problem.x_train.shape[1], width, hidden_layers, seeds, generator, torch.float32)
    return FullyConnected(weights, problem, kappa)


def _limit(problem: Problem, hidden_layers: int) -> tuple[Tensor, Tensor]:
    """Theta^(L) between training inputs, and between test and training inputs."""
    x, x_test = problem.x_train, problem.x_test
    return ntk(x, hidden_layers=hidden_layers), ntk(x_test, x, hidden_layers=hidden_layers)


def fully_connected(size: TrainingSize, device: torch.device, watch: Watch) -> Iterator[TrainedWidth]:
    """Train fully connected networks, kappa = 1, at every width."""
    problem = two_classes(size.each, size.test_each)
    kernels = _limit(problem, size.hidden_layers)
    for width in size.widths:
        seed = seed_of(4, size.hidden_layers, width)
        ensemble = _connected(problem, size.hidden_layers, width, 1.0, size.seeds, device, seed)
        yield _run(ensemble, problem, kernels, width, 1.0, size.share, watch)


def over_kappa(size: KappaSize, device: torch.device, watch: Watch) -> Iterator[TrainedWidth]:
    """Train fully connected networks of one width at every kappa, each with seeds of its own."""
    problem = two_classes(size.each, size.test_each)
    kernels = _limit(problem, size.hidden_layers)
    for number, kappa in enumerate(size.kappas):
        ensemble = _connected(problem, size.hidden_layers, size.width, kappa, size.seeds, device, seed_of(5, number))
        yield _run(ensemble, problem, kernels, size.width, kappa, size.share, watch)


def convolutional(size: TrainingSize, device: torch.device, watch: Watch) -> Iterator[TrainedWidth]:
    """Train CNN-GAPs of hidden_layers convolutions at every width, first and last layer fixed as in the paper."""
    problem = two_classes_of_images(size.each, size.test_each)
    depth = size.hidden_layers + 1
    x = problem.x_train.to(device)

    def kernel(other: Tensor) -> Tensor:
        return cntk(other, problem.x_train, depths=(depth,), readouts=("gap",), dtype=torch.float64)[0, 0]

    kernels = kernel(problem.x_train), kernel(problem.x_test)
    for width in size.widths:
        nets = [paper_net(x, depth, width, "gap", seed_of(6, width, k)) for k in range(size.seeds)]
        ensemble = Convolutional(nets, problem)
        yield _run(ensemble, problem, kernels, width, 1.0, size.share, watch, growth=1.6)
