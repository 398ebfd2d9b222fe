"""The ridge by leave-one-out against leaving one out."""

import pytest
import torch

from exact_ntk.errors import NtkError
from exact_ntk.regression.ridge import leave_one_out


def matrix(n: int, rank: int) -> torch.Tensor:
    x = torch.randn(n, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x @ x.T


def test_errors_are_those_of_leaving_each_one_out():
    k, y = matrix(9, 12), torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ridges = (1e-3, 0.1, 10.0)
    found = leave_one_out(k, y, ridges)
    for ridge, error in zip(ridges, found.errors, strict=True):
        shift, residuals = ridge * k.diagonal().mean(), []
        for i in range(9):
            rest = [j for j in range(9) if j != i]
            a = k[rest][:, rest] + shift * torch.eye(8, dtype=torch.float64)
            residuals.append(y[i] - k[i, rest] @ torch.linalg.solve(a, y[rest]))
        assert float(error) == pytest.approx(float(torch.stack(residuals).square().mean()), rel=1e-9)
    assert found.ridge == ridges[int(found.errors.argmin())]


def test_ridges_too_small_for_a_singular_matrix_do_not_count():
    found = leave_one_out(matrix(9, 3), torch.ones(9, 1, dtype=torch.float64), (0.0, 1e-20, 0.1))
    assert found.errors.isinf().tolist() == [True, True, False]
    with pytest.raises(NtkError, match="are all images zero"):
        leave_one_out(torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
