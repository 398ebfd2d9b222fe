"""Standard deviations and probabilities: against dense formulas, closed forms, sampling and ensembles of nets."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits

from exact_ntk import CNTKClassifier, CNTKRegressor
from exact_ntk.estimators.uncertainty import Posterior, by_flow, largest_probabilities
from exact_ntk.kernels import cntk
from exact_ntk.networks.cnn import CNN
from exact_ntk.regression.gradient_flow import GradientFlow

IMAGES, LABELS = load_digits().images[:60, 1:6, 1:6], load_digits().target[:60]
FIT, NEW = IMAGES[:40], IMAGES[40:]
TARGETS = LABELS[:40] / 3.0


def kernels(readout: str) -> tuple[np.ndarray, np.ndarray]:
    """Of all images, normalised as by a model fitted on the first 40: the NTK and the NNGP kernel."""
    x = torch.from_numpy((IMAGES - FIT.mean()) / FIT.std())[:, None].float()
    return cntk(x, depths=(4,), readouts=(readout, f"{readout}-nngp"))[:, 0].numpy()


@pytest.mark.parametrize("readout", ["gap", "vanilla"])
def test_variance_of_trained_nets_is_that_of_the_linear_map(readout):
    """f = f_0(x) + ker(x, X) A^-1 (y - f_0(X)) with f_0 ~ N(0, kappa^2 S). Measured: 4e-10 relative."""
    ntk, nngp = kernels(readout)
    a = ntk[:40, :40] + 1e-3 * np.diag(ntk[:40, :40]).mean() * np.eye(40)
    of_all = np.hstack([-np.linalg.solve(a, ntk[:40, 40:]).T, np.eye(20)])
    expected = 0.5 * np.sqrt(np.diag(of_all @ nngp @ of_all.T))
    model = CNTKRegressor(readout=readout, ridge=1e-3, kappa=0.5, device="cpu").fit(FIT, TARGETS)
    mean, deviation = model.predict(NEW, return_std=True)
    assert np.array_equal(mean, model.predict(NEW))
    np.testing.assert_allclose(deviation, expected, rtol=1e-7)


def test_gaussian_process_with_the_likeliest_scale():
    _, nngp = kernels("gap")
    noise = 1e-2 * np.diag(nngp[:40, :40]).mean() * np.eye(40)
    a = nngp[:40, :40] + noise
    y = np.stack([TARGETS, TARGETS[::-1] ** 2], 1)
    model = CNTKRegressor(kernel="nngp", ridge=1e-2, device="cpu").fit(FIT, y)
    centred = y - y.mean(0)
    likelihood = [multivariate_normal(cov=scale * model.prior_variance_[1] * a).logpdf for scale in (1, 0.98, 1.02)]
    best, less, more = (f(centred[:, 1]) for f in likelihood)
    assert best > max(less, more)
    left = nngp[40:, 40:] - nngp[40:, :40] @ np.linalg.solve(a, nngp[:40, 40:])
    _, deviation = model.predict(NEW, return_std=True)
    expected = np.sqrt(np.diag(left)[:, None] * (centred * np.linalg.solve(a, centred)).sum(0) / 40)
    np.testing.assert_allclose(deviation, expected, rtol=1e-7)


@pytest.mark.parametrize("time", [0.0, 3.0, np.inf])
def test_flow_to_a_time_is_linear_in_the_targets(time):
    ntk, _ = kernels("gap")
    k, fit = torch.from_numpy(ntk[:40, :40]), torch.arange(3, 40)
    y = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 5)))
    part = k[fit][:, fit]
    alpha = by_flow(part.clone(), fit, time)(y)
    torch.testing.assert_close(alpha[fit], GradientFlow(part, y[fit]).coefficients(time), rtol=1e-9, atol=1e-9)
    assert bool((alpha[:3] == 0).all())


@pytest.mark.parametrize("options", [dict(early_stopping=0.25), dict(kernel="nngp", early_stopping=0.25), dict()])
def test_certain_on_trained_images_and_less_elsewhere(options):
    model = CNTKRegressor(ridge=1e-6, device="cpu", **options).fit(FIT, TARGETS)
    trained = (model.dual_coef_ != 0).any(1)
    _, there = model.predict(FIT[trained], return_std=True)
    _, elsewhere = model.predict(NEW, return_std=True)
    assert there.mean() < elsewhere.mean()
    assert (elsewhere > 0).all()


outputs = st.integers(2, 6).flatmap(
    lambda classes: st.lists(st.lists(st.floats(-3, 3), min_size=classes, max_size=classes), min_size=1, max_size=4)
)


@given(outputs, st.floats(0, 5))
def test_probabilities_sum_to_one_and_follow_the_outputs(means, deviation):
    means = np.array(means)
    found = largest_probabilities(means, np.full(len(means), deviation))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    order = np.argsort(means, axis=1)
    assert (np.diff(np.take_along_axis(found, order, 1), axis=1) >= -1e-12).all()


def test_probabilities_against_closed_forms_and_sampling():
    """Measured: 1e-15 for two classes; for five as far as 400,000 samples can tell."""
    two = np.array([[0.3, -0.2], [1.0, 1.0]])
    expected = norm.cdf((two[:, 0] - two[:, 1]) / (np.sqrt(2) * np.array([0.4, 2.0])))
    np.testing.assert_allclose(largest_probabilities(two, np.array([0.4, 2.0]))[:, 0], expected, atol=1e-12)
    five = np.array([[0.9, 0.1, -0.1, 0.5, 0.8]])
    samples = five + 0.6 * np.random.default_rng(0).standard_normal((400_000, 5))
    counted = np.bincount(samples.argmax(1), minlength=5) / len(samples)
    np.testing.assert_allclose(largest_probabilities(five, np.array([0.6]))[0], counted, atol=3e-3)
    sure = largest_probabilities(np.array([[0.1, 0.9, 0.9], [0.3, 0.2, 0.1]]), np.zeros(2))
    np.testing.assert_allclose(sure, [[0, 0.5, 0.5], [1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("options", [dict(), dict(kernel="nngp"), dict(early_stopping=0.2)])
def test_the_likeliest_class_is_predicted_before_and_after_a_file(options, tmp_path):
    model = CNTKClassifier(device="cpu", **options).fit(FIT, LABELS[:40])
    found = model.predict_proba(NEW)
    assert np.array_equal(model.classes_[found.argmax(1)], model.predict(NEW))
    model.save(tmp_path / "model.npz")
    for again in (CNTKClassifier.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(again.predict_proba(NEW), found, atol=1e-12)


def test_fitted_anew_it_forgets_the_old_images():
    model = CNTKRegressor(device="cpu").fit(FIT, TARGETS)
    model.predict(NEW, return_std=True)
    _, again = model.fit(NEW, np.arange(20.0)).predict(FIT, return_std=True)
    _, expected = CNTKRegressor(device="cpu").fit(NEW, np.arange(20.0)).predict(FIT, return_std=True)
    assert np.array_equal(again, expected)


def test_what_gives_no_variance_says_so():
    with pytest.raises(ValueError, match=r"kappa must be a number of at least 0, not -1.0"):
        CNTKRegressor(kappa=-1.0, device="cpu").fit(FIT, TARGETS)
    model = CNTKRegressor(device="cpu").fit(FIT, TARGETS)
    model.ridge_ = -1.0
    with pytest.raises(ValueError, match=r"not positive definite .* so it gives no variance: give a ridge"):
        model.predict(NEW, return_std=True)
    with pytest.raises(MemoryError, match="the variance given 40 images takes"):
        model.set_params(memory="10KB").predict(NEW, return_std=True)


@pytest.mark.slow
@pytest.mark.parametrize("readout, trained, width", [("gap", False, 128), ("vanilla", True, 64)])
def test_an_ensemble_of_wide_nets_spreads_as_the_formula_says(readout, trained, width):
    """Trained by gradient descent on 5 random images, to the time of the formula.

    The targets are small: by them a net's own tangent kernel, O(1 / sqrt(width)) off, adds to the spread.
    """
    nets, steps, depth = 200, 60, 3
    x = torch.randn(11, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    fit, new, y = x[:5], x[5:], 0.2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    ntk, nngp = cntk(x, depths=(depth,), readouts=(readout, f"{readout}-nngp"), dtype=torch.float64)[:, 0]
    rate = 1.0 / float(torch.linalg.eigvalsh(ntk[:5, :5])[-1])
    posterior = Posterior(by_flow(ntk[:5, :5].clone(), torch.arange(5), rate * steps), nngp[:5, :5])
    expected = posterior.variance(nngp[5:, 5:].diagonal(), ntk[5:, :5], nngp[5:, :5])
    options = dict(depth=depth, width=width, readout=readout, train_first=trained, train_last=trained)
    models = [CNN((2, 4, 4), 4, seed=seed, **options) for seed in range(nets)]
    weights, _ = torch.func.stack_module_state(models)
    moving = [weights[k] for k, p in models[0].named_parameters() if p.requires_grad]
    run = torch.func.vmap(lambda w, images: torch.func.functional_call(models[0], w, (images,)), (0, None))
    for _ in range(steps):
        gradients = torch.autograd.grad((run(weights, fit) - y).square().sum() / 2, moving)
        with torch.no_grad():
            for w, g in zip(moving, gradients, strict=True):
                w -= rate * g
    with torch.no_grad():
        found = run(weights, new).var(0).mean(1)
    print(f"{readout}: of the formula's variance, image by image, {(found / expected).numpy().round(2)}")
    # 800 outputs an image: one standard error of a variance is 5 %.
    np.testing.assert_allclose(found, expected, rtol=0.2)
