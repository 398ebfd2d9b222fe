"""The classifier and the regressor on images: accuracy, layouts, ridge, early stopping, files, refusals."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from exact_ntk import CNTKClassifier, CNTKRegressor
from exact_ntk.errors import NtkError, StoreError
from exact_ntk.kernels import cntk

IMAGES, LABELS = load_digits().images, load_digits().target
SMALL, SMALL_Y = IMAGES[:60, 1:6, 1:6], LABELS[:60]


def test_three_hundred_digits_reach_94_percent():
    """Measured: 96.7 % of all the last 797."""
    digits = CNTKClassifier(depth=4, device="cpu").fit(IMAGES[:300], LABELS[:300])
    assert digits.score(IMAGES[1000::4], LABELS[1000::4]) > 0.94


def test_outputs_are_the_kernel_regression():
    x, y = torch.from_numpy(SMALL[:, None]), SMALL_Y
    model = CNTKClassifier(depth=3, readout="vanilla", ridge=1e-3, preprocess="none", device="cpu").fit(
        SMALL[:50], y[:50]
    )
    k = cntk(x.float(), depths=(3,), readouts=("vanilla",))[0, 0]
    a = k[:50, :50] + 1e-3 * k[:50, :50].diagonal().mean() * torch.eye(50)
    targets = torch.eye(10, dtype=torch.float64)[torch.from_numpy(y[:50])] - 0.1
    expected = k[50:, :50] @ torch.linalg.solve(a, targets)
    np.testing.assert_allclose(model.outputs(SMALL[50:]), expected, rtol=0, atol=1e-9)


def test_every_way_to_pass_images_gives_the_same():
    colour = np.random.default_rng(0).random((40, 6, 6, 3))
    first, y = np.moveaxis(colour, -1, 1), np.arange(40) % 2
    expected = CNTKClassifier(device="cpu").fit(colour, y).outputs(colour)
    for x, options in [
        (torch.from_numpy(colour), {}),
        (first, dict(layout="nchw")),
        (colour.reshape(40, -1), dict(image_shape=(6, 6, 3))),
        (first.reshape(40, -1), dict(image_shape=(6, 6, 3), layout="nchw")),
    ]:
        model = CNTKClassifier(device="cpu", **options).fit(x, y)
        assert np.array_equal(model.outputs(x), expected)
    assert expected.shape == (40, 2)


def test_uint8_counts_in_units_of_255():
    pixels = (SMALL * 15).astype(np.uint8)
    as_bytes = CNTKClassifier(device="cpu").fit(pixels, SMALL_Y)
    as_floats = CNTKClassifier(device="cpu").fit(pixels / 255, SMALL_Y)
    np.testing.assert_allclose(as_bytes.outputs(pixels), as_floats.outputs(pixels / 255), atol=1e-12)
    with pytest.raises(ValueError, match="uint8 when fitted and is not now"):
        as_bytes.predict(pixels / 255)


def test_a_row_without_a_shape_is_one_pixel_of_many_channels():
    rows = SMALL.reshape(60, -1)
    model = CNTKRegressor(device="cpu").fit(rows, SMALL_Y)
    assert model.image_shape_ == (1, 1, 25)
    scale = np.where(rows.std(0) > 0, rows.std(0), 1)
    np.testing.assert_allclose(model.X_fit_[:, :, 0, 0], (rows - rows.mean(0)) / scale, atol=1e-6)


def test_several_soft_targets_are_several_regressions():
    y = np.random.default_rng(0).random((60, 2))
    both = CNTKRegressor(device="cpu").fit(SMALL, y)
    assert both.predict(SMALL).shape == (60, 2)
    for k in range(2):
        alone = CNTKRegressor(device="cpu").fit(SMALL, y[:, k]).predict(SMALL)
        np.testing.assert_allclose(both.predict(SMALL)[:, k], alone, atol=1e-9)
    assert np.array_equal(CNTKRegressor(device="cpu").fit(SMALL, np.ones(60)).predict(SMALL[:3]), np.ones(3))


def test_the_search_over_ridges_and_the_pipeline():
    grid = GridSearchCV(CNTKClassifier(device="cpu"), {"ridge": [1e-6, 100.0], "kernel": ["ntk", "nngp"]}, cv=2)
    grid.fit(SMALL, SMALL_Y)
    assert grid.best_params_["ridge"] == 1e-6
    line = make_pipeline(FunctionTransformer(np.sqrt), clone(grid.best_estimator_)).fit(SMALL, SMALL_Y)
    assert line.score(SMALL, SMALL_Y) == 1


def test_ridge_by_leave_one_out():
    noisy = SMALL_Y + 5 * np.random.default_rng(0).standard_normal(60)
    assert CNTKRegressor(ridge="loo", device="cpu").fit(SMALL, noisy).ridge_ > 1e-3
    assert CNTKClassifier(ridge="loo", device="cpu").fit(SMALL, SMALL_Y).ridge_ < 1


@pytest.mark.parametrize("estimator", [CNTKClassifier, CNTKRegressor])
def test_early_stopping_holds_out_a_share(estimator):
    noisy = np.where(np.random.default_rng(0).random(60) < 0.4, 9 - SMALL_Y, SMALL_Y)
    model = estimator(early_stopping=0.25, device="cpu").fit(SMALL, noisy)
    assert (model.dual_coef_ == 0).all(1).sum() == 15
    assert model.stopping_time_ is not None
    assert model.predict(SMALL).shape == (60,)


@pytest.mark.parametrize(
    "labels", [SMALL_Y, np.array(list("abcdefghij"))[SMALL_Y], np.array(list("abcdefghij"), object)[SMALL_Y]]
)
def test_saved_and_loaded_without_pickle(labels, tmp_path):
    model = CNTKClassifier(ridge="loo", image_shape=(5, 5), device="cpu").fit(SMALL, labels)
    model.save(tmp_path / "model.npz")
    again = CNTKClassifier.load(tmp_path / "model.npz")
    assert again.get_params() == model.get_params()
    assert np.array_equal(again.outputs(SMALL), model.outputs(SMALL))
    assert again.predict(SMALL[:2]).tolist() == model.predict(SMALL[:2]).tolist()
    assert again.ridge_ == model.ridge_
    unpickled = pickle.loads(pickle.dumps(model))
    assert np.array_equal(unpickled.outputs(SMALL), model.outputs(SMALL))
    with pytest.raises(StoreError, match=r"model.npz is no CNTKRegressor"):
        CNTKRegressor.load(tmp_path / "model.npz")


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "model.npz"
    with pytest.raises(StoreError, match=r"cannot read .*model.npz.*CNTKRegressor.save"):
        CNTKRegressor.load(path)
    np.savez(path, head=np.array("{}"))
    with pytest.raises(StoreError, match="fit and save it again"):
        CNTKRegressor.load(path)
    with pytest.raises(NotFittedError):
        CNTKRegressor().save(path)
    CNTKRegressor(device="cpu").fit(SMALL, SMALL_Y).save(path)
    assert np.isfinite(CNTKRegressor.load(path).predict(SMALL)).all()
    objects = CNTKClassifier(device="cpu").fit(SMALL, SMALL_Y)
    objects.classes_ = np.array([None, 1], dtype=object)
    with pytest.raises(NtkError, match="classes_, which holds Python objects"):
        objects.save(path)


BAD = {
    "slices or channels": (dict(), np.ones((4, 20, 9, 9)), "set layout="),
    "channels first": (dict(), np.ones((4, 3, 9, 9)), "set layout=nchw"),
    "a volume": (dict(), np.ones((4, 9, 9, 9)), "volumes"),
    "another shape": (dict(image_shape=(5, 5)), np.ones((4, 24)), "rows of 24 numbers, not the 25"),
    "no shape": (dict(image_shape="large"), SMALL[:4], r"image_shape must be \(H, W\)"),
    "a word for a layout": (dict(layout="chw"), SMALL[:4], "layout must be"),
    "an unknown kernel": (dict(kernel="rbf"), SMALL[:4], "kernel must be 'ntk' or 'nngp'"),
    "an unknown readout": (dict(readout="max"), SMALL[:4], "readouts must be"),
    "a ridge below 0": (dict(ridge=-1.0), SMALL[:4], "ridge must be a number of at least 0"),
    "nothing for a ridge": (dict(ridge=None), SMALL[:4], "ridge must be a number of at least 0"),
    "a word for a share": (dict(early_stopping="some"), SMALL[:4], "between 0 and 1"),
    "a word for a ridge": (dict(ridge="cv"), SMALL[:4], "'loo', not 'cv'"),
    "two ways at once": (dict(ridge="loo", early_stopping=0.5), SMALL[:4], "choose one"),
    "a share that is none": (dict(early_stopping=2.0), SMALL[:4], "between 0 and 1"),
    "a word for preprocess": (dict(preprocess="minmax"), SMALL[:4], "preprocess must be"),
    "a device that is not there": (dict(device="tpu"), SMALL[:4], "no such device"),
    "no memory": (dict(memory="lots"), SMALL[:4], "memory lots: should be a size"),
    "blank images": (dict(preprocess="none"), np.zeros((4, 5, 5)), "singular|positive definite"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_one_line(case):
    options, x, words = BAD[case]
    with pytest.raises(ValueError, match=words) as caught:
        CNTKClassifier(**{"device": "cpu", **options}).fit(x, [0, 1, 0, 1])
    assert "\n" not in str(caught.value)


def test_memory_is_a_budget():
    with pytest.raises(MemoryError, match=r"the kernel of 60 images and its solution takes .* of memory"):
        CNTKClassifier(memory="10KB", device="cpu").fit(SMALL, SMALL_Y)


def test_images_of_another_size_are_refused():
    model = CNTKClassifier(device="cpu").fit(SMALL, SMALL_Y)
    with pytest.raises(ValueError, match="was fitted on"):
        model.predict(IMAGES[:2, 1:6])


def test_importing_the_package_imports_neither_torch_nor_scikit_learn():
    script = "import sys, exact_ntk; print([m for m in ('torch', 'sklearn', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_says_what_both_estimators_take_and_users_own_are_left_alone():
    for estimator in (CNTKClassifier, CNTKRegressor):
        assert "depth: L" in estimator.__doc__
        assert estimator.__doc__.count("Parameters:") == 1

    class Mine(CNTKRegressor):
        pass

    assert Mine.__doc__ is None
