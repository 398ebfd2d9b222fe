"""Every criterion holds on data made to the theory and fails on data made against it."""

import math

import numpy as np
import pytest

from exact_ntk.theory.criteria import at_most, plain, rate_below, rate_inside, same_law
from exact_ntk.theory.rates import fit_rates

WIDTHS = (64, 128, 256, 512)


def made(exponent: float, seeds: int = 200, pairs: int = 20, seed: int = 0) -> list[np.ndarray]:
    """Errors |N(0, 1)| width^exponent; the pairs of a seed are all but the same number."""
    rng = np.random.default_rng(seed)
    return [
        np.abs(rng.standard_normal((seeds, 1)) + 0.01 * rng.standard_normal((seeds, pairs))) * w**exponent
        for w in WIDTHS
    ]


def test_a_rate_is_found_with_an_interval_that_covers_it():
    for rate in fit_rates(WIDTHS, made(-0.5), (0.5, 0.9)):
        assert rate.low < -0.5 < rate.high
        assert rate.low < rate.slope < rate.high
    errors = made(-0.5)
    (median,) = fit_rates(WIDTHS, errors, (0.5,))
    expected = [np.quantile(e, 0.5, method="inverted_cdf") for e in errors]
    assert median.values == pytest.approx(expected)


def test_intervals_cover_at_their_rate_because_seeds_are_drawn_whole():
    """40 repetitions: about 38 cover; were pairs drawn instead of seeds, few would."""
    found = [fit_rates(WIDTHS, made(-0.5, seed=k), (0.5,), resamples=100)[0] for k in range(40)]
    assert sum(r.low < -0.5 < r.high for r in found) >= 33


def test_exact_powers_have_exact_rates():
    (rate,) = fit_rates(WIDTHS, [np.full((5, 3), 7.0 * w**-0.75) for w in WIDTHS], (0.9,))
    assert (rate.slope, rate.low, rate.high) == pytest.approx((-0.75, -0.75, -0.75))


@pytest.mark.parametrize("exponent", [0.0, -0.25, -1.0, 0.5])
def test_a_wrong_rate_fails(exponent):
    assert not rate_inside("", WIDTHS, made(exponent), 0.5).holds
    assert rate_inside("", WIDTHS, made(-0.5, seeds=1000), 0.5).holds


def test_too_few_seeds_to_tell_fail():
    assert not rate_inside("", WIDTHS, made(-0.5, seeds=8), 0.5).holds


@pytest.mark.parametrize("exponent", [0.0, -0.2, 0.5])
def test_errors_that_do_not_fall_fail(exponent):
    assert not rate_below("", WIDTHS, made(exponent), 0.5).holds
    assert rate_below("", WIDTHS, made(-0.5), 0.5).holds


@pytest.mark.parametrize("spoil", [0.0, math.nan, math.inf])
def test_errors_that_are_no_numbers_fail(spoil):
    errors = made(-0.5)
    errors[2] = np.full_like(errors[2], spoil)
    for judged in (rate_inside("", WIDTHS, errors, 0.5), rate_below("", WIDTHS, errors, 0.5)):
        assert not judged.holds
        assert plain(judged)["figures"]["slope"] is None


def test_limits_and_laws():
    assert at_most("", 1e-11, 1e-10).holds
    assert not at_most("", 1e-9, 1e-10).holds
    assert not at_most("", math.nan, 1e-10).holds
    assert same_law("", 0.3).holds
    assert not same_law("", 1e-5).holds
    assert not same_law("", math.nan).holds


def test_a_rate_needs_two_widths():
    with pytest.raises(ValueError, match="two widths"):
        fit_rates((64,), made(-0.5)[:1], (0.5,))
