"""Closed forms, Gauss-Hermite and the polar rule against each other and against sampling; refusals."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from exact_ntk.kernels.duals import ACTIVATIONS, RELU, get_activation, kinked, leaky_relu, smooth
from exact_ntk.kernels.quadrature import derivative

SMOOTH = [a for name, a in ACTIVATIONS.items() if name != "relu"]
KINKED = [RELU, leaky_relu(0.1), leaky_relu(-1.0), leaky_relu(1.0)]
LAM = torch.linspace(-1, 1, 41, dtype=torch.float64)


def largest_error(one, other, a: float, b: float) -> float:
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    c = LAM * (a * b).sqrt()
    pairs = zip(one.expectations(a, b, c), other.expectations(a, b, c), strict=True)
    return one.c_sigma * max(float((x - y).abs().max()) for x, y in pairs)


# Measured: at most 1.5e-14 over these variances.
@pytest.mark.parametrize("a,b", [(1.0, 1.0), (0.25, 1.0), (0.01, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("closed", SMOOTH, ids=lambda a: a.name)
def test_gauss_hermite_agrees_with_closed_forms(closed, a, b):
    assert largest_error(closed, smooth(closed.sigma), a, b) < 6e-14


@pytest.mark.parametrize("a,b", [(1.0, 1.0), (0.25, 1.0), (0.01, 0.5), (16.0, 3.0)])
@pytest.mark.parametrize("closed", KINKED, ids=lambda a: a.name)
def test_the_polar_rule_agrees_with_closed_forms(closed, a, b):
    assert largest_error(closed, kinked(closed.sigma), a, b) < 1e-13


# Measured: 5e-13 for the derivative of tanh, whose poles at +-i pi/2 are near; at most 2e-14 for the others.
@pytest.mark.parametrize("f", [torch.tanh, torch.sigmoid, F.silu, F.gelu, F.softplus, F.mish])
@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_gauss_hermite_agrees_with_dense_integration_for_the_usual_activations(f, variance):
    t, w = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(-12.0, 12.0, 97)
    half = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + half * (t + 1)).ravel()
    weights = (half * w).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    x, v = torch.from_numpy(z * math.sqrt(variance)), torch.tensor(variance, dtype=torch.float64)
    known = smooth(f)
    for value, g in zip(known.expectations(v, v, v), (f, derivative(f)), strict=True):
        assert float(value) == pytest.approx(float((g(x).numpy() ** 2 * weights).sum()), abs=2e-12)


@pytest.mark.parametrize("f", [F.elu, F.selu, torch.abs, lambda x: torch.where(x > 0, x * x, torch.sin(x))])
def test_the_polar_rule_agrees_with_a_gauss_hermite_rule_cut_at_zero(f):
    # lam = 0: the expectation factorises into two one-dimensional integrals, here by dense Gauss-Legendre panels.
    t, w = np.polynomial.legendre.leggauss(200)
    x = np.concatenate([(t + 1) * 6, -(t + 1) * 6])
    mean = float(
        (f(torch.from_numpy(x)).numpy() * np.tile(w, 2) * 6 * np.exp(-(x**2) / 2)).sum() / math.sqrt(2 * math.pi)
    )
    one = torch.ones((), dtype=torch.float64)
    assert float(kinked(f).expectations(one, one, 0 * one)[0]) == pytest.approx(mean**2, abs=1e-13)


@pytest.mark.parametrize("known", [*SMOOTH, *KINKED, smooth(torch.tanh), kinked(F.elu)], ids=lambda a: a.name)
def test_expectations_are_those_of_a_sample(known):
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (0.8, 1.3, -0.4))
    factor = torch.linalg.cholesky(torch.stack([torch.stack([a, c]), torch.stack([c, b])]))
    u, v = factor @ torch.randn((2, 400_000), generator=generator, dtype=torch.float64)
    for value, g in zip(known.expectations(a, b, c), (known.sigma, derivative(known.sigma)), strict=True):
        sample = g(u) * g(v)
        assert abs(float(value - sample.mean())) <= 5 * float(sample.std()) / math.sqrt(len(u)) + 1e-15


def test_c_sigma_in_closed_form():
    expected = {
        "relu": 2.0,
        "erf": math.pi / 2 / math.asin(2 / 3),
        "sine": math.e / math.sinh(1),
        "cosine": math.e / math.cosh(1),
        "gaussian": math.sqrt(5),
        "identity": 1.0,
    }
    assert {name: a.c_sigma for name, a in ACTIVATIONS.items()} == pytest.approx(expected, rel=1e-15)
    assert leaky_relu(0.1).c_sigma == pytest.approx(2 / 1.01, rel=1e-15)


@pytest.mark.parametrize("name", ["sine", "cosine", "erf", "gaussian"])
def test_closed_forms_stay_finite_and_exact_at_large_variance(name):
    a = torch.tensor(1e4, dtype=torch.float64)
    product, of_derivatives = ACTIVATIONS[name].expectations(a, a, a)
    expected = {
        "sine": (0.5, 0.5),
        "cosine": (0.5, 0.5),
        "erf": (math.atan2(2e4, math.sqrt(40001)) * 2 / math.pi, 4 / math.pi / math.sqrt(40001)),
        "gaussian": (1 / math.sqrt(40001), 4e4 / 40001**1.5),
    }[name]
    assert (float(product), float(of_derivatives)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("f", [F.relu6, F.hardtanh, lambda x: torch.where(x > 0.1, x, 0.1 * x), torch.floor])
@pytest.mark.parametrize("rule", [smooth, kinked])
def test_kinks_away_from_zero_are_refused(rule, f):
    with pytest.raises(ValueError, match="near"):
        rule(f)


@pytest.mark.parametrize("kink", [-11.9, -3.0, -0.02, 0.125, 1 / 3, 7.25, 11.9])
def test_a_kink_is_found_wherever_it_stands(kink):
    for rule in (smooth, kinked):
        with pytest.raises(ValueError, match="near"):
            rule(lambda x: torch.tanh(x) + 1e-3 * (x - kink).abs())


def test_a_kink_at_zero_is_for_the_polar_rule_alone():
    with pytest.raises(ValueError, match=r"use kinked\(\)"):
        smooth(torch.relu)
    kinked(torch.relu)


@pytest.mark.parametrize("f", [torch.tanh, torch.sigmoid, F.silu, F.gelu, F.softplus, torch.erf])
def test_the_usual_smooth_activations_are_accepted(f):
    assert math.isfinite(smooth(f).c_sigma)


@pytest.mark.parametrize("f", [lambda x: x.sum(), lambda x: x / x.norm(), torch.log, lambda x: x - x.mean()])
def test_what_is_not_elementwise_and_finite_is_refused(f):
    with pytest.raises(ValueError, match="activation"):
        smooth(f)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="relu, erf"):
        get_activation("swish")
    with pytest.raises(ValueError, match="finite"):
        leaky_relu(math.nan)
