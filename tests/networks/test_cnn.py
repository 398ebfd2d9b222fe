"""The finite networks: exactly the parametrisation of the paper, and the kernels in the limit of width."""

import math
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from exact_ntk.kernels import cntk
from exact_ntk.networks.cnn import CNN
from exact_ntk.networks.lr import MOST_STEPS, DeadNetwork, largest_stable_lr

ENDS = [(first, last) for first in (False, True) for last in (False, True)]


def images(n: int, shape=(2, 4, 3), seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_the_forward_pass_is_the_papers_formula(readout):
    net = CNN((2, 4, 3), 5, depth=4, width=6, readout=readout, train_first=True, train_last=True, kappa=0.3, seed=1)
    x = images(3)
    u = F.conv2d(x, net.convolutions[0], padding=1)
    for w in list(net.convolutions)[1:]:
        u = F.conv2d(math.sqrt(2 / (6 * 9)) * F.relu(u), w, padding=1)
    g = math.sqrt(2 / (6 * 9)) * F.relu(u)
    if readout == "vanilla":
        expected = torch.einsum("ochw,nchw->no", net.last, g)
    else:
        expected = torch.einsum("oc,nc->no", net.last, g.mean((2, 3)))
    torch.testing.assert_close(net(x), 0.3 * expected, rtol=1e-5, atol=1e-6)


def test_depth_counts_the_readout_and_ends_can_be_fixed():
    net = CNN((3, 8, 8), 10, depth=6, width=4, readout="gap", train_first=False, train_last=False)
    trained = [name for name, w in net.named_parameters() if w.requires_grad]
    assert len(net.convolutions) == 5
    assert trained == [f"convolutions.{k}" for k in range(1, 5)]
    with pytest.raises(ValueError, match="readout"):
        CNN((3, 8, 8), 10, depth=3, width=4, readout="max", train_first=True, train_last=True)


def test_weights_depend_on_the_seed_alone():
    def weights(seed: int) -> torch.Tensor:
        net = CNN((1, 4, 4), 2, depth=3, width=8, readout="gap", train_first=True, train_last=True, seed=seed)
        return torch.cat([w.flatten() for w in net.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert abs(float(weights(3).detach().var()) - 1) < 0.15


def kernels_by_layer(net: CNN, x: torch.Tensor) -> list[torch.Tensor]:
    """The Gram matrix of the output's gradients by each layer's weights, first convolution to readout."""
    weights = [*net.convolutions, net.last]
    gradients = [torch.autograd.grad(f, weights, retain_graph=True) for f in net(x)[:, 0]]
    jacobian = [torch.stack(g).flatten(1).double() for g in zip(*gradients, strict=True)]
    return [j @ j.T for j in jacobian]


@cache
def relative_errors(width: int, seeds: int, readout: str) -> dict[tuple[bool, bool], torch.Tensor]:
    """By trained ends: each seed's empirical NTK over kappa^2, minus the kernel, on the scale of the diagonal."""
    x, kappa = images(4), 0.2
    options = dict(depth=4, width=width, readout=readout, train_first=True, train_last=True, kappa=kappa)
    nets = [kernels_by_layer(CNN((2, 4, 3), 1, seed=s, **options), x) for s in range(seeds)]
    errors = {}
    for first, last in ENDS:
        limit = cntk(x, depths=(4,), readouts=(readout,), train_first=first, train_last=last, dtype=torch.float64)[0, 0]
        scale = limit.diagonal().sqrt()
        found = [sum(layers[1 - first : len(layers) - 1 + last]) / kappa**2 for layers in nets]
        errors[first, last] = torch.stack([(k - limit) / (scale[:, None] * scale) for k in found])
    return errors


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
@pytest.mark.parametrize("ends", ENDS)
def test_the_empirical_ntk_is_the_kernel_within_monte_carlo_error(readout, ends):
    errors = relative_errors(256, 24, readout)[ends]
    mean, spread = errors.mean(0), errors.std(0) / len(errors) ** 0.5
    # Beside the noise of 24 seeds, a net is biased by O(1 / width).
    assert bool((mean.abs() < 4.5 * spread + 2 / 256).all())
    assert float(spread.max()) < 0.05


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
@pytest.mark.parametrize("ends", ENDS)
def test_the_ntk_error_falls_like_one_over_root_width(readout, ends):
    narrow, wide = (relative_errors(w, 24, readout)[ends].square().mean().sqrt() for w in (16, 256))
    # Sixteen times the width: a quarter of the error. Measured: 3.2 to 3.7 (vanilla), 2.7 to 3.1 (gap).
    assert 2.5 < float(narrow / wide) < 6.5


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_outputs_at_initialisation_have_the_nngp_covariance(readout):
    x, outputs = images(4), 64
    limit = cntk(x, depths=(4,), readouts=(f"{readout}-nngp",), dtype=torch.float64)[0, 0]
    scale = limit.diagonal().sqrt()
    nets = [
        CNN((2, 4, 3), outputs, depth=4, width=64, readout=readout, train_first=True, train_last=True, seed=s)
        for s in range(30)
    ]
    with torch.no_grad():
        f = torch.cat([net(x).double() for net in nets], dim=1)
    covariance = f @ f.T / f.shape[1]
    assert float(((covariance - limit) / (scale[:, None] * scale)).abs().max()) < 0.15


@pytest.mark.parametrize("readout, depth", [("vanilla", 3), ("gap", 5)])
def test_the_largest_stable_lr_is_that_of_the_kernel(readout, depth):
    x, trained = images(12, (1, 5, 5)), readout == "vanilla"
    net = CNN((1, 5, 5), 3, depth=depth, width=64, readout=readout, train_first=trained, train_last=trained, kappa=0.05)
    limit = cntk(x, depths=(depth,), readouts=(readout,))[0, 0]
    expected = 2 * len(x) / (0.05**2 * float(torch.linalg.eigvalsh(limit)[-1]))
    # A narrow net has a top eigenvalue of its own.
    assert largest_stable_lr(net, x) == pytest.approx(expected, rel=0.4)
    assert largest_stable_lr(net, x) == float(f"{largest_stable_lr(net, x):.3g}")


def test_a_network_without_a_gradient_has_no_largest_lr():
    net = CNN((1, 5, 5), 3, depth=4, width=4, readout="gap", train_first=True, train_last=True)
    with torch.no_grad():
        net.convolutions[0].zero_()
    with pytest.raises(DeadNetwork, match="0 on every image"):
        largest_stable_lr(net, images(4, (1, 5, 5)))


def test_power_iteration_stops_once_the_estimate_stands():
    x, steps = images(12, (1, 5, 5)), []
    net = CNN((1, 5, 5), 3, depth=5, width=64, readout="gap", train_first=False, train_last=False)
    found = largest_stable_lr(net, x, lambda: steps.append(1))
    gradients = [torch.autograd.grad(f, list(net.convolutions)[1:], retain_graph=True) for f in net(x).flatten()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients]).double()
    assert found == pytest.approx(2 * len(x) / float(torch.linalg.matrix_norm(jacobian, 2)) ** 2, rel=2e-3)
    assert 1 < len(steps) < MOST_STEPS


@pytest.mark.gpu
@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_the_largest_stable_lr_of_a_gpu_is_the_cpus(readout):
    x, trained = images(70, (3, 8, 8)), readout == "vanilla"
    options = dict(depth=4, width=64, readout=readout, train_first=trained, train_last=trained, kappa=0.05)
    net = CNN((3, 8, 8), 10, **options)
    on_cpu = largest_stable_lr(net, x)
    # In float32, TF32 left alone whatever the caller's setting: the third digit may fall the other way.
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        on_gpu = largest_stable_lr(net.cuda(), x.cuda())
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert on_gpu == pytest.approx(on_cpu, rel=0.005)
