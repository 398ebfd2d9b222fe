"""Gradients of the convolutional kernels with respect to images, once, from the reference recursion.

The values are computed without a graph, and the pairs anew in the backward pass, some at a time: beside the values and
the images memory is that of a few pairs, however many there are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from exact_ntk.kernels import reference
from exact_ntk.kernels.passes import Pass

# A recomputed pair keeps correlations, Kdot and T of each layer, and some more for the layer it is at; measured at
# 16 x 16 (gap) and 100 x 100 pixels (vanilla), depths 3 to 11.
TENSORS_A_LAYER, TENSORS_AT_PEAK = {"vanilla": 11, "gap": 3}, {"vanilla": 16, "gap": 8}


def gradient_bytes(family: str, layers: int, dtype: torch.dtype, height: int, width: int) -> int:
    """What the gradient of one pair of images takes at the peak, by way of so many ReLU layers."""
    tensors = TENSORS_A_LAYER[family] * layers + TENSORS_AT_PEAK[family]
    return tensors * reference.bytes_a_tensor(family, dtype, height, width)


def cntk_pass(x1: Tensor, x2: Tensor | None, job: Pass, dtype: torch.dtype, byte_budget: int | None = None) -> Tensor:
    """As `reference.cntk_pass`, with a graph: (len(job.readouts), len(job.depths), n1, n2)."""
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    if x2 is not None:
        i, j = torch.cartesian_prod(torch.arange(n1, device=x1.device), torch.arange(n2, device=x1.device)).T
        return _Pairs.apply(x1, x2, i, j, job, dtype, byte_budget).unflatten(-1, (n1, n2))
    i, j = torch.tril_indices(n1, n1, device=x1.device)
    values = _Pairs.apply(x1, x1, i, j, job, dtype, byte_budget)
    place = torch.empty(n1, n1, dtype=torch.int64, device=x1.device)
    place[i, j] = place[j, i] = torch.arange(len(i), device=x1.device)
    return values[..., place]


def self_pass(x: Tensor, job: Pass, dtype: torch.dtype, byte_budget: int | None = None) -> Tensor:
    """As `reference.self_pass`, with a graph: (len(job.readouts), len(job.depths), n)."""
    every = torch.arange(len(x), device=x.device)
    return _Pairs.apply(x, x, every, every, job, dtype, byte_budget)


class _Pairs(Function):
    """Kernels of the pairs (x1[i], x2[j]): (readouts, depths, pairs) in float64."""

    @staticmethod
    def forward(
        x1: Tensor, x2: Tensor, i: Tensor, j: Tensor, job: Pass, dtype: torch.dtype, byte_budget: int | None
    ) -> Tensor:
        out = x1.new_empty((len(job.readouts), len(job.depths), len(i)), dtype=torch.float64)
        for slot, place, part, value in reference.pair_values(x1, x2, i, j, job, dtype, byte_budget):
            out[slot, place, part] = value
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x1, x2, i, j, ctx.job, ctx.dtype, ctx.byte_budget = inputs
        ctx.save_for_backward(x1, x2, i, j)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the kernels are differentiable once, by torch.autograd: leave out create_graph=True, and torch.func"
            )
        x1, x2, i, j = ctx.saved_tensors
        found = [
            torch.zeros_like(x) if asked else None for x, asked in zip((x1, x2), ctx.needs_input_grad, strict=False)
        ]
        layers = ctx.job.depths[-1] - 1
        bytes_each = gradient_bytes(ctx.job.family, layers, ctx.dtype, *x1.shape[2:])
        step = reference.pairs_at_once(bytes_each, x1.device, ctx.byte_budget)
        for rows, columns, weights in zip(i.split(step), j.split(step), gradient.split(step, -1), strict=True):
            of_pairs = _gradients(x1[rows], x2[columns], weights, ctx.job, ctx.dtype, ctx.needs_input_grad)
            for total, place, part in zip(found, (rows, columns), of_pairs, strict=True):
                if total is not None and part is not None:
                    total.index_add_(0, place, part)
        return *found, None, None, None, None, None


def _gradients(
    x1: Tensor, x2: Tensor, weights: Tensor, job: Pass, dtype: torch.dtype, asked: tuple
) -> list[Tensor | None]:
    """Gradients of sum(weights * kernels) with respect to x1[k] and x2[k] of each pair, None where not asked for."""
    pairs = [x.detach().requires_grad_(bool(a)) for x, a in zip((x1, x2), asked, strict=False)]
    with torch.enable_grad():
        d1, d2 = (reference.deviations(x, job.depths[-1] - 1, job.padding) for x in pairs)
        kernels = list(reference.kernels_of(pairs[0], pairs[1], d1, d2, job, dtype))
    wanted = [x for x in pairs if x.requires_grad]
    of_kernels = [weights[slot, place] for slot, place, _ in kernels]
    of_pairs = iter(torch.autograd.grad([value for _, _, value in kernels], wanted, of_kernels))
    return [next(of_pairs) if x.requires_grad else None for x in pairs]
