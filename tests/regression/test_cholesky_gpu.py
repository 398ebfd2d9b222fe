"""The same factorisation on a GPU: the budget decides no bit there either, and its panels serve it again."""

from pathlib import Path

import pytest
import torch

from exact_ntk.regression.panels import PanelFiles
from exact_ntk.regression.solve import kernel_regression
from tests.regression.test_cholesky import files_in, held, k, plan_of, same, y

__all__ = ["held", "k", "y"]  # fixtures

pytestmark = pytest.mark.gpu


def test_the_budget_decides_no_bit_on_a_gpu(k, y, held, tmp_path: Path, monkeypatch):
    on_gpu = y.cuda()
    whole = kernel_regression(k, on_gpu)
    torch.testing.assert_close(whole.alpha.cpu(), held.alpha, rtol=1e-9, atol=1e-9)
    assert whole.one_norm == pytest.approx(held.one_norm)
    for panels in (1, 2):
        files = files_in(tmp_path / str(panels))
        assert same(kernel_regression(k, on_gpu, plan=plan_of(panels), files=files), whole)
        with monkeypatch.context() as patch:
            patch.setattr(PanelFiles, "write", None)  # it goes on from what is there
            assert same(kernel_regression(k, on_gpu, plan=plan_of(panels), files=files), whole)


def test_an_indefinite_matrix_is_solved_by_lu_on_a_gpu(k, y):
    bad = k.clone()
    bad[600, 600] = -1.0
    found = kernel_regression(bad, y.cuda())
    assert found.indefinite == 601
    torch.testing.assert_close(found.alpha.cpu(), torch.linalg.solve(bad, y), rtol=1e-8, atol=1e-8)
