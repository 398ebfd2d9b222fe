"""How errors fall with width: a straight line on log axes, with an interval from whole seeds drawn anew."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 500
RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class Rate:
    """quantile ~ width^slope, fitted by least squares on log axes.

    values (W,): the quantile at each width (or whatever else is varied).  low, high: the slope's 95 % bootstrap
    interval.
    """

    quantile: float
    widths: tuple[float, ...]
    values: tuple[float, ...]
    slope: float
    low: float
    high: float


def fit_rates(
    widths: Sequence[float], errors: Sequence[np.ndarray], quantiles: Sequence[float], resamples: int = RESAMPLES
) -> list[Rate]:
    """Rates of quantiles of |errors| pooled over seeds and pairs.

    errors: an array (seeds, pairs) for each width. A resample draws whole seeds, at each width anew, since the
    pairs of one network are not independent. Where a quantile is 0 or not finite there is no rate: slope and interval
    are NaN. Raises ValueError for fewer than two widths.
    """
    if len(widths) < 2 or len(widths) != len(errors):
        raise ValueError(f"a rate needs two widths or more and as many arrays, not {len(widths)} and {len(errors)}")
    measured, drawn = [], []
    rng = np.random.default_rng(0)
    for e in errors:
        order = np.argsort(e, axis=None, kind="stable")
        ranked, owner = e.reshape(-1)[order], order // e.shape[1]
        measured.append(_quantiles(ranked, np.ones((1, e.size), np.int32), quantiles)[0])
        counts = rng.multinomial(len(e), np.full(len(e), 1 / len(e)), size=resamples).astype(np.int32)
        blocks = [counts[k : k + RESAMPLES_AT_ONCE, owner] for k in range(0, resamples, RESAMPLES_AT_ONCE)]
        drawn.append(np.concatenate([_quantiles(ranked, block, quantiles) for block in blocks]))
    values, samples = np.stack(measured), np.stack(drawn)
    log_width = np.log(np.asarray(widths, float))
    weights = (log_width - log_width.mean()) / np.square(log_width - log_width.mean()).sum()
    slopes = np.tensordot(weights, _log(values), 1)
    low, high = np.quantile(np.tensordot(weights, _log(samples), 1), (0.025, 0.975), axis=0)
    return [
        Rate(q, tuple(widths), tuple(values[:, k].tolist()), float(slopes[k]), float(low[k]), float(high[k]))
        for k, q in enumerate(quantiles)
    ]


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(np.isfinite(values) & (values > 0), values, np.nan))


def _quantiles(ranked: np.ndarray, counts: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Quantiles of sorted values that each stand counts times: (resamples, len(quantiles))."""
    reached = np.cumsum(counts, axis=1, dtype=np.int32)
    return np.stack([ranked[(reached >= q * reached[:, -1:]).argmax(axis=1)] for q in quantiles], axis=1)
