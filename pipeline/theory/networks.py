"""Finite fully connected ReLU networks in the NTK parametrisation, many seeds at once, and their exact NTK.

f^(h) = W^(h) g^(h-1), g^(h) = sqrt(c_sigma / d_h) relu(f^(h)), g^(0) = x, output W^(L+1) g^(L), every weight from
N(0, 1). df/dW^(h) = b^(h) g^(h-1)^T, with b^(h) the backpropagated vector (Arora et al. 2019, section 3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from exact_ntk.kernels.duals import RELU

C_SIGMA = RELU.c_sigma


@dataclass(frozen=True)
class Signals:
    """What runs through S networks of L hidden layers on n inputs.

    g: g^(0) .. g^(L), each (S, n, d_h).  b: b^(1) .. b^(L+1), each (S, n, d_h), d_{L+1} = 1.
    """

    g: list[Tensor]
    b: list[Tensor]

    @property
    def forward_grams(self) -> Tensor:
        """<g^(h)(x), g^(h)(x')> for h = 0 .. L: (L + 1, S, n, n), tends to Sigma^(h)."""
        return torch.stack([g @ g.mT for g in self.g])

    @property
    def backward_grams(self) -> Tensor:
        """<b^(h)(x), b^(h)(x')> for h = 1 .. L + 1: (L + 1, S, n, n), tends to prod_{h'=h}^{L+1} Sigmadot^(h')."""
        return torch.stack([b @ b.mT for b in self.b])

    @property
    def ntk(self) -> Tensor:
        """<df(x)/dtheta, df(x')/dtheta> = sum_{h=1}^{L+1} <b^(h), b^(h)'> <g^(h-1), g^(h-1)'>: (S, n, n)."""
        return (self.backward_grams * self.forward_grams).sum(0)


def draw_weights(
    inputs: int, width: int, hidden_layers: int, seeds: int, generator: torch.Generator, dtype: torch.dtype
) -> list[Tensor]:
    """W^(1) .. W^(L+1) of `seeds` networks, each (S, d_h, d_{h-1}), on the generator's device."""
    return [
        torch.randn((seeds, out, into), generator=generator, device=generator.device, dtype=dtype)
        for into, out in pairwise([inputs, *[width] * hidden_layers, 1])
    ]


def relu_layer(f: Tensor) -> tuple[Tensor, Tensor]:
    """g^(h) and sqrt(c_sigma / d_h) relu'(f^(h)), from f^(h) (S, n, d_h)."""
    scale = math.sqrt(C_SIGMA / f.shape[2])
    return scale * f.relu(), scale * (f > 0).to(f)


def _inputs(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    return x.to(weights[0]).expand(len(weights[0]), -1, -1)


def propagate(weights: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Signals]:
    """The outputs (S, n) on inputs x (n, d_0), and the signals: one pass forward and one back."""
    g, slopes = [_inputs(weights, x)], []
    for w in weights[:-1]:
        activated, slope = relu_layer(g[-1] @ w.mT)
        g.append(activated)
        slopes.append(slope)
    outputs = g[-1] @ weights[-1].mT
    b = [torch.ones_like(outputs)]
    for w, slope in zip(reversed(weights[1:]), reversed(slopes), strict=True):
        b.append(slope * (b[-1] @ w))
    return outputs[:, :, 0], Signals(g, b[::-1])


def outputs(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """The outputs alone: (S, n)."""
    g = _inputs(weights, x)
    for w in weights[:-1]:
        g, _ = relu_layer(g @ w.mT)
    return (g @ weights[-1].mT)[:, :, 0]
