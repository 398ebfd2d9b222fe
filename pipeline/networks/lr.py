"""The largest stable learning rate of gradient descent on a network at initialisation."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from exact_ntk.errors import NtkError
from exact_ntk.networks.precision import arithmetic

MOST_IMAGES = 1024
# The second backward pass keeps several times what training on as many images does.
IMAGES_AT_ONCE = 64
MOST_STEPS = 20
# The estimate is rounded to three digits: once a step changes it by less than this share it stands.
STANDS = 1e-4


class DeadNetwork(NtkError):
    """A network whose outputs do not depend on its trained weights."""


def largest_stable_lr(net: nn.Module, x: Tensor, on_step: Callable[[], object] = lambda: None) -> float:
    """2 n / lambda_max(J J^T), with J the Jacobian of the outputs on n images by the trained weights.

    For the loss 1/2 |f - y|^2, summed over outputs and averaged over images, gradient descent on the linearised
    network is stable below it. lambda_max comes from the Lanczos iteration (power iteration that keeps what it learns)
    on the first images of x, at most 1,024, in float32. Rounded to three digits, so that rounding errors that differ
    between machines hardly reach the learning rate. Calls `on_step` after each of at most 20 steps. Raises DeadNetwork.
    """
    x = x[:MOST_IMAGES]
    weights = [w for w in net.parameters() if w.requires_grad]
    generator = torch.Generator().manual_seed(0)
    v = torch.cat([torch.randn(w.numel(), generator=generator) for w in weights]).to(x.device)
    v /= torch.linalg.vector_norm(v)
    before, diagonal, beside, largest = torch.zeros_like(v), [], [0.0], 0.0
    with arithmetic("float32", x.device):
        for _ in range(MOST_STEPS):
            product = gram_times(net, x, weights, v)
            diagonal.append(float((product * v).sum(dtype=torch.float64)))
            product -= diagonal[-1] * v + beside[-1] * before
            tridiagonal = np.diag(diagonal) + np.diag(beside[1:], 1) + np.diag(beside[1:], -1)
            last, largest = largest, float(np.linalg.eigvalsh(tridiagonal)[-1])
            on_step()
            if largest == 0.0:
                raise DeadNetwork(
                    "the gradient at initialisation is 0 on every image: its ReLUs are dead, more width helps"
                )
            beside.append(float(torch.linalg.vector_norm(product)))
            if abs(largest - last) < STANDS * largest or beside[-1] < STANDS * largest:
                break
            before, v = v, product / beside[-1]
    return float(f"{2 * len(x) / largest:.3g}")


def gram_times(net: nn.Module, x: Tensor, weights: list[nn.Parameter], v: Tensor) -> Tensor:
    """J^T J v, summed over chunks of images; J v is the derivative of <J^T u, v> by u."""
    parts = [part.view_as(w) for part, w in zip(v.split([w.numel() for w in weights]), weights, strict=True)]
    total = torch.zeros_like(v)
    for chunk in x.split(IMAGES_AT_ONCE):
        outputs = net(chunk)
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, weights, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, parts, retain_graph=True)
        total += torch.cat([g.flatten() for g in torch.autograd.grad(outputs, weights, pushed)])
    return total
