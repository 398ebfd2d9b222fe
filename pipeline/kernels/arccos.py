"""The arc-cosine duals of the ReLU (Cho and Saul 2009), the only nonlinearity of the convolutional kernels."""

import math

import torch
from torch import Tensor


def snap_to_unit(lam: Tensor) -> Tensor:
    """Clip correlations to [-1, 1] in place; those within 4 eps of -1 or 1 become exactly that.

    arccos turns a rounding error e near 1 into sqrt(2 e), so parallel patches must not miss 1 by an ulp.
    """
    near = 1.0 - 4.0 * torch.finfo(lam.dtype).eps
    return lam.masked_fill_(lam >= near, 1.0).masked_fill_(lam <= -near, -1.0)


def relu_duals(lam: Tensor) -> tuple[Tensor, Tensor]:
    """kappa_1 and kappa_0 of correlations `lam` in [-1, 1]; both are 1 at lam = 1.

    With c_sigma = 2 and (u, v) jointly Gaussian of correlation lam and standard deviations s, s':
    c_sigma E[relu(u) relu(v)] = s s' kappa_1(lam) and c_sigma E[relu'(u) relu'(v)] = kappa_0(lam).
    """
    kappa_0 = torch.arccos(lam).neg_().add_(math.pi).div_(math.pi)
    sine = ((1.0 - lam) * (1.0 + lam)).sqrt_()
    kappa_1 = sine.div_(math.pi).addcmul_(lam, kappa_0)
    return kappa_1, kappa_0
