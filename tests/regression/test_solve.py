"""Kernel regression: exact on problems with a known answer, and honest about matrices it should not trust."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.errors import NtkError
from exact_ntk.regression.solve import accuracy, kernel_regression, targets


def spd(n: int, condition: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)) @ q.T


def test_targets_are_one_hot_minus_one_over_the_classes():
    y = targets(np.array([2, 0]), 10)
    assert y[0].tolist() == pytest.approx([-0.1, -0.1, 0.9] + [-0.1] * 7)
    assert float(y.sum(1).abs().max()) < 1e-15


@given(st.integers(2, 30), st.floats(0, 6), st.integers(0, 9))
def test_a_known_solution_is_found(n: int, digits: float, seed: int):
    k = spd(n, 10**digits, seed)
    alpha = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = kernel_regression(k, k @ alpha)
    assert found.indefinite is None
    assert found.residual < 1e-12
    torch.testing.assert_close(found.alpha, alpha, rtol=1e-14 * 10**digits, atol=1e-14 * 10**digits)


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e8])
def test_the_condition_is_that_of_the_1_norm(condition: float):
    k = spd(40, condition)
    found = kernel_regression(k, torch.ones(40, 1, dtype=torch.float64), ridge=1e-9)
    k = k + 1e-9 * k.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    assert found.one_norm == pytest.approx(float(torch.linalg.matrix_norm(k, 1)))
    true = float(torch.linalg.matrix_norm(torch.linalg.inv(k), 1))
    assert true / 2 < found.inverse_one_norm < true * 1.001
    assert found.condition == found.one_norm * found.inverse_one_norm


def test_the_ridge_is_relative_to_the_mean_diagonal():
    k = spd(12, 100.0)
    y = torch.eye(12, dtype=torch.float64)
    expected = torch.linalg.inv(k + 0.3 * k.diagonal().mean() * y)
    torch.testing.assert_close(kernel_regression(k, y, ridge=0.3).alpha, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel_regression(k, y).alpha, torch.linalg.inv(k), rtol=1e-11, atol=1e-11)


def test_an_indefinite_matrix_is_solved_by_lu_and_marked_or_stops():
    k = torch.diag(torch.tensor([2.0, 1.0, -0.5, 3.0], dtype=torch.float64))
    y = torch.ones(4, 1, dtype=torch.float64)
    found = kernel_regression(k, y)
    assert found.indefinite == 3
    torch.testing.assert_close(found.alpha[:, 0], 1 / k.diagonal())
    with pytest.raises(NtkError, match="leading minor 3 is not positive"):
        kernel_regression(k, y, on_indefinite="stop")


def test_a_singular_matrix_is_refused():
    with pytest.raises(NtkError, match=r"singular .* ridge"):
        kernel_regression(torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))


def test_accuracy_and_its_error():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(outputs, np.array([1, 0, 0, 0])) == 75.0


def test_a_condition_beyond_float64_is_none_and_no_solution_is_an_error():
    """Its smallest eigenvalue is a denormal: 1 over it overflows."""
    k = torch.diag(torch.tensor([1.0, 1e-320], dtype=torch.float64))
    found = kernel_regression(k, torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    assert found.condition is None
    assert found.residual == 0
    with pytest.raises(NtkError, match="singular in float64"):
        kernel_regression(k, torch.ones((2, 1), dtype=torch.float64))
