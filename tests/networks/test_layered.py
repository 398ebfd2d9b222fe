"""Finite networks of layers: their empirical NTK and NNGP tend to `network_kernels`."""

import pytest
import torch

from exact_ntk.kernels.duals import ACTIVATIONS, RELU, leaky_relu
from exact_ntk.kernels.network import Blur, Conv, Layer, Pool, Readout, network_kernels
from exact_ntk.networks.layered import LayeredNetwork

MYRTLE_5 = [Conv(), RELU, Conv(), RELU, Pool(), Conv(), RELU, Pool(), Conv(), RELU, Readout("gap")]
NETWORKS: dict[str, list[Layer]] = {
    "Myrtle-5": MYRTLE_5,
    "fixed ends": [Conv(trained=False), RELU, *MYRTLE_5[2:-1], Readout("gap", trained=False)],
    "LAP": [Conv(), RELU, Conv(), RELU, Blur(1), Readout("vanilla")],
    "circular LAP": [Conv(3, "circular"), RELU, Conv(3, "circular"), RELU, Blur(1, "circular"), Readout("vanilla")],
    "leaky and bias": [
        Conv(5, bias=0.3),
        leaky_relu(0.2),
        Conv(3, "circular", bias=0.5),
        leaky_relu(0.2),
        Readout("gap"),
    ],
    "erf": [Conv(bias=0.2), ACTIVATIONS["erf"], Pool(), Conv(5), ACTIVATIONS["erf"], Readout("vanilla")],
}
WIDTH, SEEDS = 96, 60


def empirical(layers: list[Layer], x: torch.Tensor, seed: int) -> torch.Tensor:
    """(2, n, n): the NTK, and the NNGP kernel as the gradients by the readout give it."""
    net = LayeredNetwork(layers, tuple(x.shape[1:]), width=WIDTH, seed=seed)
    trained = [w for w in net.parameters() if w.requires_grad]
    last = net.weights[-1].requires_grad_()

    def gram(weights: list[torch.nn.Parameter]) -> torch.Tensor:
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(f, weights, retain_graph=True)]) for f in net(x)]
        jacobian = torch.stack(rows).double()
        return jacobian @ jacobian.T

    return torch.stack([gram(trained), gram([last])])


@pytest.mark.parametrize("name", NETWORKS)
def test_wide_networks_have_these_kernels(name):
    layers = NETWORKS[name]
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x[2] = x[1] + 0.3 * x[0]
    exact = torch.stack(network_kernels(x, layers=layers))
    found = torch.stack([empirical(layers, x, seed) for seed in range(SEEDS)])
    scale = exact.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    error = found.std(0) / SEEDS**0.5
    # Measured: at most 1.9 standard errors, which are at most 4 % of the scale.
    assert float((error / scale).max()) < 0.05
    assert bool(((found.mean(0) - exact).abs() < 3 * error + 0.01 * scale).all())


def test_weights_depend_on_the_seed_alone():
    x = torch.ones(1, 2, 4, 4)
    one, again, other = (LayeredNetwork(MYRTLE_5, (2, 4, 4), width=8, seed=seed)(x) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_layers_that_make_no_network_are_refused():
    with pytest.raises(ValueError, match="needs a Conv"):
        LayeredNetwork([RELU, Readout("gap")], (1, 4, 4), width=4)
