"""Verdicts: pure functions from measured data to a claim, what was measured, the criterion and whether it held."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exact_ntk.theory.rates import Rate, fit_rates

# The theory's exponent is -1/2; the interval has to lie inside this band.
ROOT_BAND = (-0.6, -0.4)
# For errors that fall with width, but not as a pure power of it: half the theory's exponent or more.
FALLING = -0.25
QUADRATURE = 1e-10
SAME_LAW = 1e-3


@dataclass(frozen=True)
class Claim:
    """One line of the summary; `figures` are the numbers behind `measured`."""

    claim: str
    measured: str
    criterion: str
    holds: bool
    figures: dict[str, float]


def _rate_text(rate: Rate) -> str:
    return f"exponent {rate.slope:.2f} [{rate.low:.2f}, {rate.high:.2f}]; {rate.values[0]:.2g} to {rate.values[-1]:.2g}"


def _rate_figures(rate: Rate) -> dict[str, float]:
    return {"slope": rate.slope, "low": rate.low, "high": rate.high, "first": rate.values[0], "last": rate.values[-1]}


def rate_inside(
    claim: str,
    widths: Sequence[float],
    errors: Sequence[np.ndarray],
    quantile: float,
    band: tuple[float, float] = ROOT_BAND,
) -> Claim:
    """The quantile's rate has its 95 % interval inside `band`. errors: (seeds, pairs) a width."""
    (rate,) = fit_rates(widths, errors, (quantile,))
    holds = band[0] <= rate.low <= rate.high <= band[1]
    criterion = f"95 % interval of the exponent inside [{band[0]:g}, {band[1]:g}]"
    return Claim(claim, _rate_text(rate), criterion, holds, _rate_figures(rate))


def rate_below(
    claim: str, widths: Sequence[float], errors: Sequence[np.ndarray], quantile: float, limit: float = FALLING
) -> Claim:
    """The quantile's rate has its 95 % interval below `limit`."""
    (rate,) = fit_rates(widths, errors, (quantile,))
    criterion = f"95 % interval of the exponent below {limit:g}"
    return Claim(claim, _rate_text(rate), criterion, rate.high < limit, _rate_figures(rate))


def at_most(claim: str, value: float, limit: float) -> Claim:
    """A measured value is at most `limit`; NaN is not."""
    return Claim(claim, f"{value:.3g}", f"at most {limit:g}", value <= limit, {"value": value})


def same_law(claim: str, p_value: float) -> Claim:
    """A test does not tell two samples apart: its p-value is above SAME_LAW."""
    return Claim(claim, f"p = {p_value:.2g}", f"p above {SAME_LAW:g}", p_value > SAME_LAW, {"value": p_value})


def plain(claim: Claim) -> dict[str, object]:
    """A claim as JSON: numbers that are not finite become null."""
    figures = {k: v if math.isfinite(v) else None for k, v in claim.figures.items()}
    return {
        "claim": claim.claim,
        "measured": claim.measured,
        "criterion": claim.criterion,
        "holds": bool(claim.holds),
        "figures": figures,
    }
