"""How far the quadrature rules agree with closed forms: the largest error by activation and variance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.kernels.duals import ACTIVATIONS, Activation, kinked, leaky_relu, smooth

VARIANCES = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
CORRELATIONS = 201


@dataclass(frozen=True)
class QuadratureErrors:
    """Of one activation by one rule ("Gauss-Hermite" or "polar"): an error for each of VARIANCES."""

    activation: str
    rule: str
    errors: tuple[float, ...]


def largest_error(closed: Activation, rule: Activation, variances: Sequence[float]) -> float:
    """max |difference| * c_sigma of E[sigma sigma] and E[sigma' sigma'].

    Over all pairs of `variances` and correlations from -1 to 1.
    """
    lam = torch.linspace(-1, 1, CORRELATIONS, dtype=torch.float64)
    v = torch.tensor(variances, dtype=torch.float64)
    a, b = v[:, None, None], v[None, :, None]
    c = lam * (a * b).sqrt()
    pairs = zip(closed.expectations(a, b, c), rule.expectations(a, b, c), strict=True)
    return closed.c_sigma * max(float((x - y).abs().max()) for x, y in pairs)


def measure() -> list[QuadratureErrors]:
    """Every activation with a closed form; the error at variance v is that of all pairs of variances up to v, one v."""
    kinks = [ACTIVATIONS["relu"], leaky_relu(0.1)]
    smooths = [known for name, known in ACTIVATIONS.items() if name != "relu"]
    ruled = [(a, "Gauss-Hermite", smooth(a.sigma)) for a in smooths] + [(a, "polar", kinked(a.sigma)) for a in kinks]
    return [
        QuadratureErrors(
            closed.name,
            name,
            tuple(_up_to(closed, rule, v) for v in VARIANCES),
        )
        for closed, name, rule in ruled
    ]


def _up_to(closed: Activation, rule: Activation, largest: float) -> float:
    return max(largest_error(closed, rule, (v, largest)) for v in VARIANCES if v <= largest)
