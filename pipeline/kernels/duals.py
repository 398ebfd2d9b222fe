"""Activations and their duals: Gaussian expectations of sigma and of sigma', in closed form or by quadrature."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from exact_ntk.kernels import quadrature
from exact_ntk.kernels.arccos import relu_duals
from exact_ntk.kernels.quadrature import Function, correlation

Expectations = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Activation:
    """An activation sigma with the two expectations its kernels need.

    sigma: elementwise.  expectations(a, b, c): E[sigma(u) sigma(v)] and E[sigma'(u) sigma'(v)] for (u, v) centred
    Gaussian with variances a, b and covariance c; tensors that broadcast together, the result in c's dtype.
    """

    name: str
    sigma: Function
    expectations: Expectations

    @cached_property
    def c_sigma(self) -> float:
        """1 / E[sigma(z)^2] for z ~ N(0, 1): with it a unit vector keeps its expected length through a layer."""
        one = torch.ones((), dtype=torch.float64)
        return 1.0 / float(self.expectations(one, one, one)[0])

    def duals(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """c_sigma times the expectations: Sigma^(h) and Sigmadot^(h) from the entries of Lambda^(h)."""
        product, of_derivatives = self.expectations(a, b, c)
        return self.c_sigma * product, self.c_sigma * of_derivatives


def _relu(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    kappa_1, kappa_0 = relu_duals(correlation(a, b, c))
    return kappa_1 * (a.sqrt() * b.sqrt()) / 2, kappa_0 / 2


def _leaky_relu(slope: float, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    # sigma(u) = slope u + (1 - slope) relu(u), and E[u relu(v)] = c / 2.
    product, of_derivatives = _relu(a, b, c)
    return slope * c + (1 - slope) ** 2 * product, slope + (1 - slope) ** 2 * of_derivatives


def _determinant(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """det(I + 2 Lambda), with 4 det(Lambda) on its own: it is exactly 0 for u = v."""
    return 1 + 2 * (a + b) + 4 * (a * b - c * c).clamp_min(0)


def _erf(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    root = _determinant(a, b, c).sqrt()
    # Williams 1997 has arcsin(2 c / sqrt((1 + 2 a)(1 + 2 b))); the arctangent keeps its digits near 1.
    return torch.atan2(2 * c, root) * (2 / math.pi), (4 / math.pi) / root


def _gaussian(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    d = _determinant(a, b, c)
    return d.rsqrt(), 4 * c * d ** (-1.5)


def _sines(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """E[sin u sin v] = exp(-(a + b)/2) sinh(c) and E[cos u cos v], without overflow or cancellation."""
    decay = torch.exp(c.abs() - (a + b) / 2) / 2
    return -torch.expm1(-2 * c.abs()) * decay * c.sign(), (1 + torch.exp(-2 * c.abs())) * decay


def _cosines(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    sine, cosine = _sines(a, b, c)
    return cosine, sine


def _identity(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    c = c + torch.zeros_like(a + b)
    return c, torch.ones_like(c)


RELU = Activation("relu", torch.relu, _relu)
ACTIVATIONS = {
    known.name: known
    for known in (
        RELU,
        Activation("erf", torch.erf, _erf),
        Activation("sine", torch.sin, _sines),
        Activation("cosine", torch.cos, _cosines),
        Activation("gaussian", lambda x: torch.exp(-x * x), _gaussian),
        Activation("identity", lambda x: x, _identity),
    )
}


def leaky_relu(slope: float) -> Activation:
    """x for x > 0, slope x otherwise. Raises ValueError for a slope that is not finite."""
    if not math.isfinite(slope):
        raise ValueError(f"the slope must be finite, not {slope}")
    return Activation(
        f"leaky_relu({slope:g})",
        lambda x: torch.where(x > 0, x, slope * x),
        partial(_leaky_relu, slope),
    )


def smooth(sigma: Function, name: str = "smooth") -> Activation:
    """A user's own smooth activation, by Gauss-Hermite quadrature; its derivative by automatic differentiation.

    The error is below 1e-10 at variances up to 1; `quadrature` says what was measured, there and beyond.
    Raises ValueError if sigma is not elementwise, or has a kink (see `quadrature.require_smooth`).
    """
    quadrature.require_smooth(sigma)
    return _by_rule(quadrature.gauss_hermite, sigma, name)


def kinked(sigma: Function, name: str = "kinked") -> Activation:
    """A user's own activation with a kink or jump at 0 alone, by the polar rule, to 1e-13 (see `quadrature`).

    At a jump sigma' has no delta: the NTK of a step function is that of its almost-everywhere derivative.
    Raises ValueError if sigma is not elementwise, or has a kink elsewhere.
    """
    quadrature.require_smooth_but_at_zero(sigma)
    return _by_rule(quadrature.polar, sigma, name)


def _by_rule(rule: Callable[[Function], Callable[..., Tensor]], sigma: Function, name: str) -> Activation:
    product, of_derivatives = rule(sigma), rule(quadrature.derivative(sigma))
    return Activation(name, sigma, lambda a, b, c: (product(a, b, c), of_derivatives(a, b, c)))


def get_activation(activation: str | Activation) -> Activation:
    """An activation by name, or itself. Raises ValueError for a name that is none."""
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)}, or an Activation such as leaky_relu(0.1), "
            f"smooth(f) or kinked(f), not {activation!r}"
        )
    return ACTIVATIONS[activation]
