"""How far the quadrature rules agree with closed forms: the largest error by activation and variance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from exact_ntk.kernels.duals import ACTIVATIONS, Activation, kinked, leaky_relu, smooth

VARIANCES = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
CORRELATIONS = 41


@dataclass(frozen=True)
class QuadratureErrors:
    """Of one activation by one rule ("Gauss-Hermite" or "polar"): an error for each of VARIANCES."""

    activation: str
    rule: str
    errors: tuple[float, ...]


def largest_error(closed: Activation, rule: Activation, variances: Sequence[float], largest: float) -> float:
    """max |difference| * c_sigma of E[sigma sigma] and E[sigma' sigma'], one variance being `largest`.

    Over the `variances` up to it for the other, and correlations from -1 to 1.
    """
    a = torch.tensor([v for v in variances if v <= largest], dtype=torch.float64)[:, None]
    b = torch.full_like(a, largest)
    c = torch.linspace(-1, 1, CORRELATIONS, dtype=torch.float64) * (a * b).sqrt()
    pairs = zip(closed.expectations(a, b, c), rule.expectations(a, b, c), strict=True)
    return closed.c_sigma * max(float((x - y).abs().max()) for x, y in pairs)


def measure_quadrature() -> list[QuadratureErrors]:
    """Every activation with a closed form; the error at a variance is that of all pairs up to it."""
    kinks = [ACTIVATIONS["relu"], leaky_relu(0.1)]
    smooths = [known for name, known in ACTIVATIONS.items() if name != "relu"]
    ruled = [(a, "Gauss-Hermite", smooth(a.sigma)) for a in smooths] + [(a, "polar", kinked(a.sigma)) for a in kinks]
    found = []
    for closed, name, rule in ruled:
        errors = np.maximum.accumulate([largest_error(closed, rule, VARIANCES, v) for v in VARIANCES])
        found.append(QuadratureErrors(closed.name, name, tuple(errors.tolist())))
    return found
