"""A finite network of the layers that `exact_ntk.kernels.network_kernels` takes: its kernels' limit in width."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exact_ntk.kernels.duals import Activation
from exact_ntk.kernels.network import Blur, Conv, Layer, Pool, Readout, require_network
from exact_ntk.kernels.passes import Padding


def _padded(x: Tensor, reach: int, padding: Padding) -> Tensor:
    return F.pad(x, (reach,) * 4, "constant" if padding == "zero" else "circular")


class LayeredNetwork(nn.Module):
    """The layers with `width` channels each and one output, in the NTK parametrisation: all weights from N(0, 1).

    As the width grows its NTK tends to `network_kernels(...).ntk`, its covariance at initialisation to the NNGP.

    shape: of an image, (C, H, W).  seed: of the weights.  Maps (n, C, H, W) to (n). Raises ValueError for layers that
    make no network.
    """

    def __init__(self, layers: Sequence[Layer], shape: tuple[int, int, int], *, width: int, seed: int = 0):
        super().__init__()
        channels, *sides = shape
        require_network(layers, *sides)
        self.layers = tuple(layers)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generator = torch.Generator().manual_seed(seed)
        fan = 1  # the images' channels are summed, later ones averaged
        self.scales = []
        for layer in layers:
            if isinstance(layer, Pool):
                sides = [side // layer.window for side in sides]
            if not isinstance(layer, Conv | Readout):
                continue
            if isinstance(layer, Conv):
                size, scale = (width, channels, layer.size, layer.size), 1 / math.sqrt(fan * layer.size**2)
            else:
                size, scale = (channels, *(sides if layer.kind == "vanilla" else ())), 1 / math.sqrt(fan)
            self.weights.append(nn.Parameter(torch.randn(size, generator=generator), requires_grad=layer.trained))
            self.scales.append(scale)
            channels = fan = width
            if isinstance(layer, Conv) and layer.bias:
                bias = torch.randn(width, generator=generator)
                self.biases.append(nn.Parameter(bias, requires_grad=layer.trained))

    def forward(self, x: Tensor) -> Tensor:
        scaled = (scale * w for scale, w in zip(self.scales, self.weights, strict=True))
        biases = iter(self.biases)
        for layer in self.layers:
            if isinstance(layer, Conv):
                bias = layer.bias * next(biases) if layer.bias else None
                x = F.conv2d(_padded(x, layer.size // 2, layer.padding), next(scaled), bias)
            elif isinstance(layer, Pool):
                x = F.avg_pool2d(x, layer.window)
            elif isinstance(layer, Blur):
                x = F.avg_pool2d(_padded(x, layer.c, layer.padding), 2 * layer.c + 1, stride=1)
            elif isinstance(layer, Activation):
                x = math.sqrt(layer.c_sigma) * layer.sigma(x)
            else:
                x = x.flatten(1) if layer.kind == "vanilla" else x.mean((2, 3))
                return x @ next(scaled).flatten()
        return x
