"""The finite convolutional networks' NTK at finite width, by automatic differentiation."""

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from exact_ntk.networks.cnn import CNN


def paper_net(x: Tensor, depth: int, width: int, readout: str, seed: int) -> CNN:
    """For images such as x, with one output and kappa = 1; all layers trained for vanilla, neither end for gap."""
    ends = readout == "vanilla"
    _, channels, height, across = x.shape
    return CNN(
        (channels, height, across),
        1,
        depth=depth,
        width=width,
        readout=readout,
        train_first=ends,
        train_last=ends,
        kappa=1.0,
        seed=seed,
    ).to(x.device)


def empirical_ntk(net: CNN, x: Tensor) -> Tensor:
    """<df(x)/dtheta, df(x')/dtheta> over the trained weights theta of a net with one output: (n, n)."""
    weights = {name: w.detach() for name, w in net.named_parameters()}
    trained = {name: weights[name] for name, w in net.named_parameters() if w.requires_grad}

    def output(theta: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(net, {**weights, **theta}, (image[None],))[0, 0]

    gradients = vmap(grad(output), in_dims=(None, 0))(trained, x)
    return torch.stack([(g := gradients[name].flatten(1)) @ g.T for name in trained]).sum(0)
