"""Spectrum and gradient flow of a draw, and why there is none."""

import dataclasses

import numpy as np
import pytest
import torch

from exact_ntk.regression import spectrum as room
from exact_ntk.regression.matrix import Held
from exact_ntk.regression.plan import SolvePlan, plan_solve
from exact_ntk.regression.solve import targets
from exact_ntk.regression.spectrum import NoSpectrum, spectrum

N, TESTED = 30, 12


def system() -> tuple[Held, Held, torch.Tensor, np.ndarray, SolvePlan]:
    x = torch.randn(N + TESTED, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, k = np.arange(N + TESTED) % 3, x @ x.T
    y = targets(labels[:N], 3)
    return Held(k[:N, :N]), Held(k[N:, :N]), y, labels[N:], plan_solve(N, 3, 0, 10**9)


def test_it_is_that_of_the_shifted_matrix_and_ends_in_kernel_regression():
    k, k_test, y, y_test, plan = system()
    found = spectrum(k, k_test, 0.5, y, y_test, plan)
    shifted = k.values + 0.5 * torch.eye(N, dtype=torch.float64)
    assert found["eigenvalues"] == pytest.approx(torch.linalg.eigvalsh(shifted).flip(0).numpy(), rel=1e-10)
    assert (np.diff(found["flow_time"]) > 0).all()
    assert found["flow_loss"][0] == pytest.approx(1, abs=0.05)
    assert found["flow_loss"][-1] < 1e-20
    guesses = (k_test.values @ torch.linalg.solve(shifted, y)).argmax(1).numpy()
    assert found["flow_test"][-1] == pytest.approx(100 * (guesses == y_test).mean())
    assert torch.equal(k.values, system()[0].values)  # left as it was


def test_what_is_too_large_or_has_no_flow_says_so(monkeypatch):
    k, k_test, y, y_test, plan = system()
    with pytest.raises(NoSpectrum, match="positive eigenvalue"):
        spectrum(k, k_test, -1e3, y, y_test, plan)
    with pytest.raises(NoSpectrum, match="of memory, and"):
        spectrum(k, k_test, 0.0, y, y_test, dataclasses.replace(plan, budget=10))
    monkeypatch.setattr(room, "MOST_IMAGES", 29)
    with pytest.raises(NoSpectrum, match="30 training images are more than the 29"):
        spectrum(k, k_test, 0.0, y, y_test, plan)
