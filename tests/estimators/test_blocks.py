"""Kernels some images at a time: the values of one call, and a bar that ends where it should."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from exact_ntk import CNTKClassifier, CNTKRegressor
from exact_ntk.estimators import blocks
from exact_ntk.kernels import cntk

X = torch.from_numpy(load_digits().images[:75, None, 1:6, 2:7])
CPU = torch.device("cpu")


@pytest.mark.parametrize("readouts", [("vanilla", "vanilla-nngp"), ("gap", "lap-1-nngp")])
@pytest.mark.parametrize("second", [None, X[40:]])
def test_blocks_have_the_bits_of_one_call(readouts: tuple[str, ...], second: torch.Tensor | None):
    def compute(x1: torch.Tensor, x2: torch.Tensor | None) -> torch.Tensor:
        return cntk(x1, x2, depths=(5,), readouts=readouts)[:, 0]

    x = X.clone()
    x[70], x[50] = x[3], 2 * x[4]  # also where equal and parallel images lie in different blocks
    assert torch.equal(blocks.in_blocks(compute, x, second, CPU), compute(x, second))


def test_verbose_shows_how_far_a_fit_and_its_predictions_are(capsys: pytest.CaptureFixture):
    y = load_digits().target[:75]
    quiet = CNTKClassifier(depth=3, device="cpu").fit(X[:70, 0], y[:70])
    expected = quiet.predict_proba(X[:, 0])
    assert capsys.readouterr().err == ""
    loud = CNTKClassifier(depth=3, device="cpu", verbose=True).fit(X[:70, 0], y[:70])
    assert "kernel: 100% 2.48k/2.48k" in capsys.readouterr().err
    assert np.array_equal(loud.predict_proba(X[:, 0]), expected)
    assert "kernel: 100% 5.25k/5.25k" in capsys.readouterr().err


def test_verbose_is_kept_with_the_model(tmp_path):
    model = CNTKRegressor(depth=3, device="cpu", verbose=True).fit(X[:10, 0], np.arange(10.0))
    model.save(tmp_path / "model.npz")
    assert CNTKRegressor.load(tmp_path / "model.npz").verbose
