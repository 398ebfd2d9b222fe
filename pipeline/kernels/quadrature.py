"""Gaussian expectations E[f(u) f(v)] and E[f'(u) f'(v)] of a user's activation, by quadrature in float64.

`gauss_hermite` takes smooth functions, `polar` those with a kink at 0; each refuses what it cannot integrate. Measured
error (absolute, times c_sigma, worst over correlations from -1 to 1, of f and f'): at variances up to 1, 2e-14 for both
rules against closed forms, and 5e-13 for tanh, whose poles are near. Beyond, `polar` keeps 1e-13 up to 64, and
`gauss_hermite` depends on f: sine and cosine keep 1e-13; erf and the Gaussian have 2e-14 at 2, 2e-7 at 4, 8e-4 at 8;
tanh 9e-9 at 2, 6e-6 at 4. `ntk verify` tabulates it (`exact_ntk.theory.quadrature`).
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from exact_ntk.kernels.arccos import snap_to_unit

Function = Callable[[Tensor], Tensor]

HERMITE_NODES = 160
ANGLES, RADII, LARGEST_RADIUS = 32, 80, 10.0  # exp(-LARGEST_RADIUS^2 / 2) is 2e-22
EVALUATIONS_AT_ONCE = 1 << 21
# Where kinks are looked for: cells of this length, each with a Legendre series of this degree.
CHECKED_RANGE, CELL, DEGREE, TAIL = 12.0, 0.25, 15, 1e-10


def derivative(f: Function) -> Function:
    """f' of an elementwise f, by automatic differentiation."""

    def df(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(f(x).sum(), x)[0]

    return df


def correlation(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """c / sqrt(a b), 0 where that is 0 / 0, clipped to [-1, 1]."""
    scale = a.sqrt() * b.sqrt()
    return snap_to_unit(torch.where(scale > 0, c / scale, 0.0))


def first_kink(f: Function, edges: np.ndarray) -> float | None:
    """The middle of the first cell in which f is not smooth: its Legendre series does not decay. None if all are.

    edges: of adjoining cells. A second set, shifted by half a cell, sees the kinks that lie on an edge of the first.
    """
    nodes, weights = np.polynomial.legendre.leggauss(DEGREE + 1)
    degrees = np.arange(DEGREE + 1)
    to_series = np.polynomial.legendre.legvander(nodes, DEGREE) * weights[:, None] * (degrees + 0.5)
    middles = (edges[1:] + edges[:-1]) / 2
    for shifted in (edges, middles):
        centre, half = (shifted[1:] + shifted[:-1]) / 2, (shifted[1:] - shifted[:-1]) / 2
        values = f(torch.from_numpy(centre[:, None] + half[:, None] * nodes)).numpy()
        tail = np.abs(values @ to_series)[:, -3:].max(1)
        rough = tail > TAIL * (np.abs(values).max(1) + np.median(np.abs(values)))
        if rough.any():
            return float(centre[np.argmax(rough)])
    return None


def _require_elementwise(f: Function) -> None:
    x = torch.linspace(-CHECKED_RANGE, CHECKED_RANGE, 2001, dtype=torch.float64)
    y = f(x)
    if not isinstance(y, Tensor) or y.shape != x.shape or not bool(y.isfinite().all()):
        raise ValueError(
            f"the activation must map a tensor elementwise to finite values on [-{CHECKED_RANGE:g}, {CHECKED_RANGE:g}]"
        )
    if not torch.allclose(f(x[1000:1001]), y[1000:1001], rtol=1e-12, atol=1e-300):
        raise ValueError("the activation must act on each entry alone")


def require_smooth(f: Function) -> None:
    """Raises ValueError, saying where, if f has a kink, or is too fine to resolve, on [-12, 12]."""
    _require_elementwise(f)
    cells = round(2 * CHECKED_RANGE / CELL)
    kink = first_kink(f, np.linspace(-CHECKED_RANGE, CHECKED_RANGE, cells + 1))
    if kink is not None:
        advice = (
            "if it has a kink at 0, use kinked()" if abs(kink) < CELL else "no rule here integrates it to precision"
        )
        raise ValueError(f"the activation is not smooth near {kink:.2f}: {advice}")


def require_smooth_but_at_zero(f: Function) -> None:
    """Raises ValueError, saying where, if f has a kink other than at 0 on [-12, 12]."""
    _require_elementwise(f)
    edges = np.linspace(0.0, CHECKED_RANGE, round(CHECKED_RANGE / CELL) + 1)
    for side in (edges, -edges[::-1]):
        kink = first_kink(f, side)
        if kink is not None:
            raise ValueError(f"the activation has a kink near {kink:.2f}: the polar rule takes kinks at 0 alone")


@cache
def _hermite_rule(device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes z (n,) and the matrix w_i h_k(z_i) (n, n), h_k orthonormal under N(0, 1)."""
    from scipy.special import roots_hermitenorm  # a quarter of a second that few calls need

    z, w = roots_hermitenorm(HERMITE_NODES)
    h = np.empty((HERMITE_NODES, HERMITE_NODES))
    h[0], h[1] = 1.0, z
    for k in range(1, HERMITE_NODES - 1):
        h[k + 1] = (z * h[k] - math.sqrt(k) * h[k - 1]) / math.sqrt(k + 1)
    return torch.from_numpy(z).to(device), torch.from_numpy((w / w.sum()) * h).T.contiguous().to(device)


def gauss_hermite(f: Function) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """E[f(u) f(v)] for a smooth f, as a function of the variances a, b and the covariance c (broadcast together).

    Hermite coefficients f(sqrt(a) z) = sum_k c_k(a) h_k(z) by Gauss-Hermite quadrature of `HERMITE_NODES` nodes, then
    Mehler's formula E = sum_k c_k(a) c_k(b) lam^k: one function evaluation a node and image, none a pair.
    """

    def expectation(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        z, to_series = _hermite_rule(a.device)
        series_a, series_b = (f(v.double().sqrt()[..., None] * z) @ to_series for v in (a, b))
        lam = correlation(a.double(), b.double(), c.double())
        total = torch.zeros_like(lam)
        for k in reversed(range(len(z))):
            total = total.mul_(lam).add_(series_a[..., k] * series_b[..., k])
        return total.to(c)

    return expectation


@cache
def _polar_rule(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1] for an arc, and for r exp(-r^2 / 2) dr / (2 pi) on the radius."""
    t, wt = np.polynomial.legendre.leggauss(ANGLES)
    r, wr = np.polynomial.legendre.leggauss(RADII)
    r, wr = (r + 1) * LARGEST_RADIUS / 2, wr * LARGEST_RADIUS / 2
    wr = wr * r * np.exp(-(r**2) / 2) / (2 * math.pi)
    arc, arc_weights, radius, radius_weights = (torch.from_numpy(x).to(device) for x in ((t + 1) / 2, wt / 2, r, wr))
    return arc, arc_weights, radius, radius_weights


def polar(f: Function) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """E[f(u) f(v)] for an f smooth but at 0, as a function of the variances a, b and the covariance c (broadcast).

    u = sqrt(a) r cos(phi), v = sqrt(b) r cos(phi - theta) with lam = cos(theta): u and v change sign at four angles,
    and between them the integrand is smooth, so Gauss-Legendre on each arc and on the radius converges fast.
    """

    def expectation(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        flat = [x.double().reshape(-1) for x in torch.broadcast_tensors(a, b, c)]
        step = EVALUATIONS_AT_ONCE // (4 * ANGLES * RADII)
        parts = [_polar_block(f, *block) for block in zip(*(x.split(step) for x in flat), strict=True)]
        return torch.cat(parts).reshape(torch.broadcast_shapes(a.shape, b.shape, c.shape)).to(c)

    return expectation


def _polar_block(f: Function, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`polar` for vectors of pairs (n,)."""
    t, wt, r, wr = _polar_rule(a.device)
    theta = torch.arccos(correlation(a, b, c))
    total = torch.zeros_like(theta)
    half = torch.full_like(theta, math.pi / 2)
    for start, end in ((-half, theta - half), (theta - half, half), (half, theta + half), (theta + half, 3 * half)):
        length = (end - start)[:, None]
        from_start = length * t  # the integrand's zeros are at the ends: measured from there no sign is lost
        cos_u, cos_v = torch.cos(start[:, None] + from_start), torch.cos(start[:, None] + from_start - theta[:, None])
        u, v = (s.sqrt()[:, None, None] * cos[:, :, None] * r for s, cos in ((a, cos_u), (b, cos_v)))
        total += ((f(u) * f(v)) @ wr * wt).sum(1) * length[:, 0]
    return total
