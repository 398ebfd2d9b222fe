"""Data sets: what is loaded, and that whatever is wrong with an archive is named."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from exact_ntk.config import Cifar10, Digits, Npz
from exact_ntk.data import load_dataset, normalisation, normalise
from exact_ntk.errors import DataError
from tests.conftest import digit_arrays


def load(path: Path):
    return load_dataset(Npz(dataset="npz", path=path))


def test_digits_are_the_first_1000_and_the_last_797():
    data = load_dataset(Digits(dataset="digits"))
    assert data.x_train.shape == (1000, 8, 8, 1)
    assert data.x_test.shape == (797, 8, 8, 1)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert len(data.classes) == 10


@pytest.mark.parametrize("moved", [False, True])
def test_digits_are_scikit_learns(moved, monkeypatch):
    """Also where its file lies elsewhere than it does today."""
    if moved:
        monkeypatch.setattr("exact_ntk.data.importlib.util.find_spec", lambda name: None)
    data = load_dataset(Digits(dataset="digits"))
    x, y = load_digits(return_X_y=True)
    found = np.concatenate([data.x_train, data.x_test])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.reshape(-1, 64) * 16, x)
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_test]), y)


def test_normalised_training_images_have_mean_0_and_deviation_1():
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3)).astype(np.uint8)
    mean, std = normalisation(x)
    z = normalise(x, mean, std).astype(np.float64)
    assert z.shape == (50, 3, 4, 5)
    np.testing.assert_allclose(z.mean((0, 2, 3)), 0, atol=1e-7)
    np.testing.assert_allclose(z.std((0, 2, 3)), 1, atol=1e-7)
    np.testing.assert_allclose(mean, x.reshape(-1, 3).mean(0) / 255, rtol=1e-12)


def test_float_and_byte_images_normalise_alike():
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    as_float = x / 255
    np.testing.assert_allclose(
        normalise(x, *normalisation(x)), normalise(as_float, *normalisation(as_float)), atol=1e-6
    )


def test_keras_style_arrays_are_taken(tmp_path: Path):
    arrays = digit_arrays(20, 10)
    arrays["x_train"], arrays["x_test"] = arrays["x_train"][..., 0], arrays["x_test"][..., 0]
    arrays["y_train"], arrays["y_test"] = arrays["y_train"][:, None], arrays["y_test"][:, None]
    np.savez(tmp_path / "keras.npz", **arrays)
    data = load(tmp_path / "keras.npz")
    assert data.x_train.shape == (20, 8, 8, 1)
    assert data.y_train.shape == (20,)


def test_labels_may_be_any_integers(tmp_path: Path):
    arrays = digit_arrays(40, 10)
    arrays["y_train"], arrays["y_test"] = arrays["y_train"] * 7 - 3, arrays["y_test"] * 7 - 3
    np.savez(tmp_path / "labels.npz", **arrays)
    data = load(tmp_path / "labels.npz")
    assert set(data.y_train) == set(range(10))
    assert data.classes[1] == "4"


@pytest.mark.parametrize("change", [lambda y: y.astype(float), lambda y: np.eye(10)[y] - 0.1, lambda y: y.astype(str)])
def test_labels_in_other_dress_are_the_same_classes(tmp_path: Path, change):
    arrays = digit_arrays(40, 10)
    plain = load_dataset(Npz(dataset="npz", path=saved(tmp_path, arrays)))
    arrays["y_train"], arrays["y_test"] = change(arrays["y_train"]), change(arrays["y_test"])
    dressed = load_dataset(Npz(dataset="npz", path=saved(tmp_path, arrays)))
    np.testing.assert_array_equal(dressed.y_train, plain.y_train)
    np.testing.assert_array_equal(dressed.y_test, plain.y_test)
    assert dressed.classes == plain.classes


@pytest.mark.parametrize("channels", [1, 4])
def test_one_test_image_may_have_a_one_hot_label(tmp_path: Path, channels: int):
    """As many channels as classes, too: not four labels of images along the last axis."""
    x, y = np.random.default_rng(0).random((20, 5, 6, channels)), np.arange(20) % 4
    arrays = {"x_train": x, "y_train": np.eye(4)[y], "x_test": x[2:3], "y_test": np.eye(4)[y[2:3]]}
    assert load(saved(tmp_path, arrays)).y_test.tolist() == [2]


def saved(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "saved.npz", **arrays)
    return folder / "saved.npz"


def spoil(key: str, change):
    def apply(arrays: dict) -> dict:
        return {**arrays, key: change(arrays[key])}

    return apply


def nan_pixel(x: np.ndarray) -> np.ndarray:
    x = x / 255.0
    x[3, 2, 2] = np.nan
    return x


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda a: {k: v for k, v in a.items() if k != "y_test"}, "no array y_test"),
        (spoil("x_train", lambda x: x[:0]), "x_train holds no images"),
        (spoil("x_test", lambda x: x[:0]), "x_test holds no images"),
        (spoil("x_train", lambda x: x.reshape(len(x), -1)), "x_train should hold images"),
        (spoil("x_train", nan_pixel), "x_train: image 3 holds NaN"),
        (spoil("x_train", lambda x: x.astype(float)), r"x_train should lie in \[0, 1\]"),
        (spoil("x_train", lambda x: x.astype(np.int32)), "x_train should be uint8"),
        (spoil("x_test", lambda x: x[:, :4]), "they should be alike"),
        (spoil("y_train", lambda y: y[:-1]), "y_train holds 59 labels for 60 images"),
        (spoil("y_train", lambda y: y + 0.5), "y_train should hold one class an image"),
        (spoil("y_train", lambda y: y * 0), "only class 0"),
        (spoil("y_test", lambda y: y + 100), "y_test holds class 10"),
        (spoil("x_train", lambda x: x.astype(object)), "pickled"),
    ],
)
def test_what_is_wrong_with_an_archive_is_named(tmp_path: Path, change, words: str):
    np.savez(tmp_path / "bad.npz", **change(digit_arrays(60, 30)))
    with pytest.raises(DataError, match=words):
        load(tmp_path / "bad.npz")


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path, npz: Path):
    with pytest.raises(DataError, match="no file"):
        load(tmp_path / "nowhere.npz")
    whole = npz.read_bytes()
    for k, content in enumerate([whole[: len(whole) // 2], b"", b"hello", whole[:200] + b"\xff" * 50 + whole[250:]]):
        path = tmp_path / f"spoiled{k}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            load(path)


def test_a_constant_channel_is_refused_by_name_or_taken_as_it_is():
    x = np.random.default_rng(0).random((9, 3, 3, 2))
    x[..., 1] = 0.25
    with pytest.raises(
        DataError, match=r"channel 1 is constant.* x_train\[\.\.\., \[0\]\], or set data\.preprocess: none"
    ):
        normalisation(x)
    mean, std = normalisation(x, "none")
    np.testing.assert_array_equal(normalise(x, mean, std), x.astype(np.float32).transpose(0, 3, 1, 2))


def test_cifar10_is_looked_for_in_the_home_folder_where_root_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = Cifar10(dataset="cifar10", root=Path("~/nowhere"))
    with pytest.raises(DataError, match=rf"no CIFAR-10 in {tmp_path}/nowhere: .* `ntk download`"):
        load_dataset(spec)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: pytest.fail("the archive is there"))
    (tmp_path / "nowhere" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match="data_batch_1 is missing"):
        load_dataset(spec)
