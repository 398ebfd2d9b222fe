"""Training of finite networks: the gradient it takes, where it stops, and what it is compared with."""

import math

import pytest
import torch

from exact_ntk.kernels import ntk
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.theory.convolutional import empirical_ntk, paper_net
from exact_ntk.theory.inputs import two_classes, two_classes_of_images
from exact_ntk.theory.networks import draw_weights, outputs
from exact_ntk.theory.training import (
    Convolutional,
    Flow,
    FullyConnected,
    relative_distance,
    stable_rate,
    train_ensemble,
)

DOUBLE = torch.float64


def weights(width: int, hidden_layers: int, seeds: int = 2) -> list[torch.Tensor]:
    return draw_weights(64, width, hidden_layers, seeds, torch.Generator().manual_seed(0), DOUBLE)


@pytest.mark.parametrize("hidden_layers", [1, 3])
def test_a_step_is_the_gradient_of_the_loss(hidden_layers):
    problem, kappa, rate = two_classes(2, 2), 0.7, 0.01
    free = [w.requires_grad_() for w in weights(8, hidden_layers)]
    loss = (kappa * outputs(free, problem.x_train) - problem.y).square().sum() / 2
    expected = [w - rate * g for w, g in zip(free, torch.autograd.grad(loss, free), strict=True)]
    ensemble = FullyConnected(weights(8, hidden_layers), problem, kappa)
    ensemble.step(ensemble.train_outputs() - problem.y, rate)
    for found, wanted in zip(ensemble.weights, expected, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-14)


def test_a_step_of_convolutional_networks_too_and_fixed_ends_stay():
    problem, rate = two_classes_of_images(2, 2), 0.01
    nets = [paper_net(problem.x_train, 3, 5, "gap", seed).double() for seed in (0, 1)]
    before = [w.detach().clone() for net in nets for w in net.parameters()]
    kernels = torch.stack([empirical_ntk(net, problem.x_train) for net in nets])
    ensemble = Convolutional(nets, problem)
    residual = ensemble.train_outputs() - problem.y
    torch.testing.assert_close(ensemble.kernels(), kernels)
    ensemble.step(residual, rate)
    after = [w.detach() for net in nets for w in net.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved == [w.requires_grad for net in nets for w in net.parameters()]
    assert sum(moved) == 2
    # To first order outputs move by -rate K residual.
    change = ensemble.train_outputs() - problem.y - residual
    predicted = -rate * (kernels @ residual[:, :, None])[:, :, 0]
    torch.testing.assert_close(change, predicted, rtol=0.1, atol=0.05 * float(predicted.abs().max()))


def test_training_ends_on_target_and_starts_at_the_initial_function():
    problem = two_classes(2, 3)
    ensemble = FullyConnected(weights(64, 1), problem)
    f0 = ensemble.train_outputs().clone()
    found = train_ensemble(ensemble, problem.y, stable_rate(ntk(problem.x_train, hidden_layers=1), 0.2))
    losses = found.losses(problem.y)
    assert float(losses[-1].max()) <= 1e-4 < float(losses[-2].max())
    assert torch.equal(found.train[0], f0)
    assert (found.test.shape[1:], found.kernels.shape[1:]) == ((2, 6), (2, 4, 4))
    assert float(found.times[0]) == 0
    assert bool((found.times.diff() > 0).all())


def test_a_diverging_rate_and_too_few_steps_end_off_target():
    problem = two_classes(2, 3)
    rate = stable_rate(ntk(problem.x_train, hidden_layers=1), 1.0)
    wild = train_ensemble(FullyConnected(weights(64, 1), problem), problem.y, 20 * rate, most_steps=200)
    assert not float(wild.losses(problem.y)[-1].max()) <= 1e-4
    short = train_ensemble(FullyConnected(weights(64, 1), problem), problem.y, rate, most_steps=3)
    assert len(short.times) <= 4
    assert float(short.losses(problem.y)[-1].max()) > 1e-4


def test_a_very_wide_network_follows_the_flow():
    problem = two_classes(2, 3)
    k, k_test = (ntk(x, problem.x_train, hidden_layers=1) for x in (problem.x_train, problem.x_test))
    ensemble = FullyConnected(weights(8192, 1), problem)
    found = train_ensemble(ensemble, problem.y, stable_rate(k, 0.05))
    flow = Flow.beside(found, k, k_test, problem.y)
    scale = float((found.train[0] - problem.y).norm(dim=1).max())
    assert float((found.train - flow.train).norm(dim=2).max()) < 0.03 * scale
    assert float((found.test - flow.test).abs().max()) < 0.05 * scale
    assert float((found.test[-1] - flow.test_end).abs().max()) < 0.05 * scale
    assert float(relative_distance(found.kernels, found.kernels[0]).max()) < 0.02
    # Without the initial function the same comparison is far off: it is accounted for.
    assert float((found.test[-1] - flow.plain).abs().max()) > 0.2


def test_the_flow_beside_a_training_is_that_of_each_seed():
    problem = two_classes(2, 3)
    k, k_test = (ntk(x, problem.x_train, hidden_layers=1) for x in (problem.x_train, problem.x_test))
    found = train_ensemble(FullyConnected(weights(16, 1, seeds=3), problem), problem.y, stable_rate(k, 0.2))
    flow = Flow.beside(found, k, k_test, problem.y)
    alone = GradientFlow(k, problem.y)
    for seed in range(3):
        start = found.train[0, seed], found.test[0, seed]
        t = float(found.times[3])
        torch.testing.assert_close(flow.train[3, seed], alone.train(t, start[0]))
        torch.testing.assert_close(flow.test[3, seed], alone.predict(k_test, t, *start))
        torch.testing.assert_close(flow.test_end[seed], alone.predict(k_test, math.inf, *start))


def test_relative_distance_is_one_for_twice_a_kernel():
    k = torch.eye(3, dtype=DOUBLE)[None]
    assert float(relative_distance(2 * k, k)) == 1.0
