"""Gradient flow in closed form against small-step integration, kernel regression and its own limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm

from exact_ntk.gram import store as stores
from exact_ntk.kernels import cntk, ntk
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.solve import kernel_regression, targets
from tests.conftest import digit_arrays

N, M = 12, 7


def problem(outputs: int | None = 3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((N + M, 5), generator=generator, dtype=torch.float64)
    k = ntk(x, hidden_layers=2)
    shape = (N,) if outputs is None else (N, outputs)
    y = torch.randn(shape, generator=generator, dtype=torch.float64)
    f0 = torch.randn((N + M, *shape[1:]), generator=generator, dtype=torch.float64)
    return k[:N, :N], k[N:, :N], y, f0[:N], f0[N:]


def integrated(k, k_test, y, u, v, t):
    """The same flow of training and test outputs together, by the matrix exponential of the affine system."""
    joint = np.zeros((N + M + N, N + M + N))
    joint[: N + M, :N] = -torch.cat([k, k_test]).numpy()
    joint[: N + M, N + M :] = -joint[: N + M, :N]
    end = expm(t * joint) @ torch.cat([u, v, y]).numpy()
    return torch.from_numpy(end[:N]), torch.from_numpy(end[N : N + M])


@pytest.mark.parametrize("outputs", [None, 3])
def test_agrees_with_integrating_the_equation(outputs):
    k, k_test, y, f0, f0_test = problem(outputs)
    flow = GradientFlow(k, y)
    for t in (0.01, 0.3, 3.0):
        u, v = integrated(k, k_test, y, f0, f0_test, t)
        torch.testing.assert_close(flow.train(t, f0), u, rtol=0, atol=1e-9)
        torch.testing.assert_close(flow.predict(k_test, t, f0, f0_test), v, rtol=0, atol=1e-9)
        assert flow.loss(t, f0) == pytest.approx(float((u - y).square().sum() / 2), rel=1e-8)


def test_infinite_time_is_kernel_regression():
    k, k_test, y, f0, f0_test = problem()
    flow = GradientFlow(k, y)
    torch.testing.assert_close(
        flow.predict(k_test, math.inf), k_test @ kernel_regression(k, y).alpha, rtol=1e-10, atol=1e-10
    )
    corrected = f0_test + k_test @ kernel_regression(k, y - f0).alpha
    torch.testing.assert_close(flow.predict(k_test, math.inf, f0, f0_test), corrected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(flow.train(math.inf, f0), y)
    assert flow.loss(math.inf, f0) == 0


def test_time_zero_is_the_initial_function():
    k, k_test, y, f0, f0_test = problem()
    flow = GradientFlow(k, y)
    torch.testing.assert_close(flow.train(0.0, f0), f0)
    assert torch.equal(flow.predict(k_test, 0.0, f0, f0_test), f0_test)
    assert not flow.predict(k_test, 0.0).any()


@given(t=st.floats(1e-6, 1e6))
def test_predicting_the_training_set_is_training(t):
    k, _, y, f0, _ = problem()
    flow = GradientFlow(k, y)
    torch.testing.assert_close(flow.predict(k, t, f0, f0), flow.train(t, f0), rtol=1e-9, atol=1e-10)


@given(t=st.floats(1e-6, 1e6), factor=st.floats(1.0, 10.0))
def test_the_loss_never_rises(t, factor):
    k, _, y, f0, _ = problem()
    flow = GradientFlow(k, y)
    assert flow.loss(t * factor, f0) <= flow.loss(t, f0)


def test_a_singular_kernel_leaves_its_null_space_at_rest():
    k, k_test, y, _, _ = problem()
    k, k_test, y = (torch.cat([m, m[:1]]) for m in (k, k_test.T, y))
    k, k_test = torch.cat([k, k[:, :1]], dim=1), k_test.T
    y[-1] = y[0] + 1.0  # the first input again, with other targets
    flow = GradientFlow(k, y)
    end = flow.train(math.inf)
    torch.testing.assert_close(end[0], (y[0] + y[-1]) / 2)
    torch.testing.assert_close(end[0], end[-1])
    assert bool(flow.predict(k_test, math.inf).isfinite().all())
    assert flow.loss(math.inf) == pytest.approx(3 * 2 * 0.25 / 2)


def test_early_stopping_finds_the_peak():
    # Two modes: the fast one carries the labels, the slow one noise that in the end outweighs it.
    k = torch.diag(torch.tensor([10.0, 0.01], dtype=torch.float64))
    y = torch.tensor([1.0, -1.0], dtype=torch.float64)
    k_held_out = torch.tensor([[10.0, 0.02], [10.0, 0.03]], dtype=torch.float64)
    found = GradientFlow(k, y).early_stopping(k_held_out, torch.tensor([1, 1]))
    assert found.best_accuracy == 100
    assert 0 < found.best_time < 70
    assert found.accuracies[-1] == 0
    assert math.isinf(float(found.times[-1]))


def test_accuracy_over_time_is_that_of_the_predictions():
    k, k_held_out, y, f0, f0_held_out = problem()
    flow, labels = GradientFlow(k, y), torch.arange(M) % 3
    for start in ((None, None), (f0, f0_held_out)):
        found = flow.early_stopping(k_held_out, labels, None, *start)
        for t, accuracy in zip(found.times.tolist(), found.accuracies, strict=True):
            guess = flow.predict(k_held_out, t, *start).argmax(1)
            assert float(accuracy) == pytest.approx(100 * float((guess == labels).double().mean()))
    with pytest.raises(ValueError, match="both"):
        flow.early_stopping(k_held_out, labels, None, f0)


def test_overwriting_is_in_place_and_changes_no_bit():
    k, _, y, _, _ = problem()
    before = k.clone()
    kept, overwritten = GradientFlow(k, y), k.contiguous()
    flow = GradientFlow(overwritten, y, overwrite=True)
    assert torch.equal(k, before)
    assert flow.eigenvectors.data_ptr() == overwritten.data_ptr()
    assert torch.equal(flow.eigenvectors, kept.eigenvectors)
    assert torch.equal(flow.eigenvalues, kept.eigenvalues)


def test_works_from_a_gram_store(tmp_path):
    arrays = digit_arrays(40, 20)
    x = torch.cat([torch.from_numpy(arrays[key]).permute(0, 3, 1, 2).float() / 255 for key in ("x_train", "x_test")])
    k = cntk(x, x[:40], depths=(3,), readouts=("vanilla",))
    fields = {"images": "digits", "readouts": ["vanilla"], "depths": [3], "train_images": 40, "test_images": 20}
    store = stores.make(tmp_path, fields, 16, np.arange(60))
    store.add(("vanilla", 3))
    for tile in store.shape.covering(np.arange(60), np.arange(40)):
        store.write(tile, {("vanilla", 3): k.numpy()[(0, 0, *store.shape.bounds(tile))]})
    whole = torch.from_numpy(stores.open(store.path).read("vanilla", 3, np.arange(60), np.arange(40)))
    flow = GradientFlow(whole[:40], targets(arrays["y_train"], 10))
    found = flow.early_stopping(whole[40:], torch.from_numpy(arrays["y_test"]))
    outputs = whole[40:] @ kernel_regression(whole[:40], targets(arrays["y_train"], 10)).alpha
    at_the_end = float((outputs.argmax(1) == torch.from_numpy(arrays["y_test"])).double().mean() * 100)
    assert float(found.accuracies[-1]) == at_the_end
    assert found.best_accuracy >= at_the_end


@pytest.mark.parametrize(
    "k,y,match",
    [
        (torch.ones((2, 3)), torch.ones(2), "square"),
        (torch.eye(2), torch.ones(3), "y must be"),
        (torch.full((2, 2), math.nan), torch.ones(2), "finite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.ones(2), "symmetric"),
        (torch.diag(torch.tensor([1.0, -0.1])), torch.ones(2), "diverge"),
        (torch.zeros((2, 2)), torch.ones(2), "positive eigenvalue"),
    ],
)
def test_what_is_not_a_kernel_is_refused(k, y, match):
    with pytest.raises(ValueError, match=match):
        GradientFlow(k, y)


def test_mistakes_in_a_prediction_are_named():
    k, k_test, y, f0, f0_test = problem()
    flow = GradientFlow(k, y)
    for t in (-1.0, math.nan):
        with pytest.raises(ValueError, match="t must be"):
            flow.predict(k_test, t)
    with pytest.raises(ValueError, match="both"):
        flow.predict(k_test, 1.0, f0)
    with pytest.raises(ValueError, match="k_test"):
        flow.predict(k_test.T, 1.0)
    with pytest.raises(ValueError, match="f0_test"):
        flow.predict(k_test, 1.0, f0, f0_test[:2])
