"""The exact layerwise NTK of finite networks against automatic differentiation."""

import math

import pytest
import torch
from torch.func import jacrev, vmap

from exact_ntk.networks.cnn import CNN
from exact_ntk.theory.convolutional import empirical_ntk, paper_net
from exact_ntk.theory.inputs import images, two_classes, two_classes_of_images, vectors
from exact_ntk.theory.networks import draw_weights, outputs, propagate


def one_network(weights: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
    """Section 3 of the paper, one network, one input, ReLU: c_sigma = 2."""
    g = x
    for w in weights[:-1]:
        g = math.sqrt(2 / len(w)) * torch.relu(w @ g)
    return (weights[-1] @ g)[0]


@pytest.mark.parametrize("hidden_layers,width", [(1, 256), (2, 64), (3, 16), (5, 32)])
def test_the_layerwise_ntk_is_that_of_jacobians(hidden_layers, width):
    x = vectors(10)
    weights = draw_weights(64, width, hidden_layers, 3, torch.Generator().manual_seed(0), torch.float64)
    f, signals = propagate(weights, x)
    per_input = vmap(jacrev(one_network), in_dims=(None, 0))
    for seed in range(3):
        jacobians = per_input(tuple(w[seed] for w in weights), x)
        expected = sum(j.flatten(1) @ j.flatten(1).T for j in jacobians)
        torch.testing.assert_close(signals.ntk[seed], expected, rtol=1e-12, atol=1e-13)
        values = vmap(one_network, in_dims=(None, 0))(tuple(w[seed] for w in weights), x)
        torch.testing.assert_close(f[seed], values, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(outputs(weights, x), f, rtol=1e-13, atol=1e-14)
    # Each term is a layer's own: dW^(h) = b^(h) g^(h-1)^T.
    products = signals.backward_grams * signals.forward_grams
    for h, j in enumerate(jacobians):
        torch.testing.assert_close(products[h, 2], j.flatten(1) @ j.flatten(1).T, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_the_convolutional_ntk_is_the_product_of_gradients(readout):
    x = images(4)
    net: CNN = paper_net(x, 3, 6, readout, seed=0).double()
    trained = [w for w in net.parameters() if w.requires_grad]
    assert len(trained) == (3 if readout == "vanilla" else 1)
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(net(image[None])[0, 0], trained)]) for image in x]
    jacobian = torch.stack(rows)
    torch.testing.assert_close(empirical_ntk(net, x), jacobian @ jacobian.T, rtol=1e-12, atol=1e-14)


def test_inputs_are_real_digits_of_norm_one_and_two_classes():
    x = vectors(12)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert len(torch.unique(x, dim=0)) == 12
    problem = two_classes(3, 4)
    assert (problem.x_train.shape, problem.x_test.shape) == ((6, 64), (8, 64))
    assert problem.y.tolist() == [-1.0] * 3 + [1.0] * 3
    assert two_classes_of_images(3, 4).x_train.shape == (6, 1, 4, 4)
