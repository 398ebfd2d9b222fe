"""The largest stable learning rate of gradient descent on a network at initialisation."""

import torch
from torch import Tensor, nn

from pipeline.precision import arithmetic

MOST_IMAGES = 1024
IMAGES_AT_ONCE = 128
STEPS = 20


def largest_stable_lr(net: nn.Module, x: Tensor) -> float:
    """2 n / lambda_max(J J^T), with J the Jacobian of the outputs on n images by the trained weights.

    For the loss 1/2 |f - y|^2, summed over outputs and averaged over images, gradient descent on the linearised
    network is stable below it. lambda_max comes from power iteration on the first images of x, at most 1,024, in
    float32. Rounded to three digits: the estimate is no better, and rounding errors that differ between machines do
    not reach the learning rate.
    """
    x = x[:MOST_IMAGES]
    weights = [w for w in net.parameters() if w.requires_grad]
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(w.shape, generator=generator).to(w.device) for w in weights]
    eigenvalue = 1.0
    with arithmetic("float32", x.device):
        for _ in range(STEPS):
            scale = float(sum(w.double().square().sum() for w in v)) ** -0.5
            v = _gram_times(net, x, weights, [w * scale for w in v])
            eigenvalue = float(sum(w.double().square().sum() for w in v)) ** 0.5
    return float(f"{2 * len(x) / eigenvalue:.3g}")


def _gram_times(net: nn.Module, x: Tensor, weights: list[nn.Parameter], v: list[Tensor]) -> list[Tensor]:
    """J^T J v, summed over chunks of images; J v is the derivative of <J^T u, v> by u."""
    total = [torch.zeros_like(w) for w in weights]
    for chunk in x.split(IMAGES_AT_ONCE):
        outputs = net(chunk)
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, weights, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        for t, g in zip(total, torch.autograd.grad(outputs, weights, pushed), strict=True):
            t += g
    return total
