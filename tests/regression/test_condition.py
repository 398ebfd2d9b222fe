"""The estimate of the inverse's 1-norm: never above it, and near it for kernels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.kernels import cntk
from exact_ntk.regression.condition import inverse_norm, signs, smallest_pivots
from exact_ntk.regression.lu import LU
from exact_ntk.regression.matrix import Held
from tests.conftest import digit_arrays


def estimate(k: torch.Tensor, pivots: torch.Tensor) -> tuple[float, float]:
    """The estimate and the truth."""
    inverse = torch.linalg.inv(k)
    columns = inverse @ smallest_pivots(pivots)
    return inverse_norm(columns, inverse @ signs(columns)), float(torch.linalg.matrix_norm(inverse, 1))


@given(n=st.integers(1, 40), seed=st.integers(0, 99), shift=st.floats(0.0, 3.0))
def test_it_is_a_lower_bound_for_any_symmetric_matrix(n: int, seed: int, shift: float):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    k = a + a.T + shift * torch.eye(n, dtype=torch.float64)
    found, true = estimate(k, LU(Held(k), 0.0, k.device).pivots)
    assert true / 5 < found <= true * (1 + 1e-9)


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_it_is_within_a_tenth_for_kernels_of_images(readout: str):
    x = torch.from_numpy(digit_arrays(80, 1)["x_train"]).permute(0, 3, 1, 2).double() / 255
    k = cntk(x, depths=(3,), readouts=(readout,), backend="reference")[0, 0]
    found, true = estimate(k, torch.linalg.cholesky(k).diagonal())
    assert 0.9 * true < found <= true * (1 + 1e-9)
