"""Archives as others save them: names of their own, test arrays or none, and what they lack told by what they hold."""

from pathlib import Path

import numpy as np
import pytest

from exact_ntk.config import Keys, Npz
from exact_ntk.data import load_dataset
from exact_ntk.errors import DataError
from tests.conftest import digit_arrays

MEDMNIST = Keys(x_train="train_images", y_train="train_labels", x_test="test_images", y_test="test_labels")


def archive(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def load(path: Path, tested: bool = True, **more):
    return load_dataset(Npz(dataset="npz", path=path, **more), tested)


def as_medmnist(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {theirs: a[ours] for ours, theirs in MEDMNIST.model_dump().items()}
    return {**renamed, "val_images": a["x_test"], "val_labels": a["y_test"]}


def test_arrays_of_other_names_are_found_by_keys(tmp_path: Path):
    path = archive(tmp_path / "med.npz", **as_medmnist(digit_arrays(20, 10)))
    found = load(path, keys=MEDMNIST)
    assert (len(found.x_train), len(found.x_test)) == (20, 10)
    with pytest.raises(DataError, match=r"data\.keys\.x_test: no array tests in .*med\.npz, which holds train_images"):
        load(path, keys=MEDMNIST.model_copy(update={"x_test": "tests"}))
    spoiled = as_medmnist(digit_arrays(20, 10))
    spoiled["train_images"] = spoiled["train_images"] / 100
    with pytest.raises(DataError, match=r"bad\.npz: train_images should lie in .* save train_images / 2\.4"):
        load(archive(tmp_path / "bad.npz", **spoiled), keys=MEDMNIST)


def test_a_missing_array_is_told_by_what_there_is_with_keys_to_paste(tmp_path: Path):
    a = digit_arrays(20, 10)
    pairs = "x_train: train_images, y_train: train_labels, x_test: test_images, y_test: test_labels"
    path = archive(tmp_path / "med.npz", **as_medmnist(a))
    with pytest.raises(DataError, match=rf"it holds train_images \(20, 8, 8, 1\) uint8, .*data\.keys: {{{pairs}}}"):
        load(path)
    sklearn = archive(
        tmp_path / "sk.npz", X_train=a["x_train"], y_train=a["y_train"], X_test=a["x_test"], z=a["y_test"]
    )
    with pytest.raises(DataError, match=r"keys: {x_train: X_train, x_test: X_test, y_test: \.\.\.}"):
        load(sklearn)
    single = archive(tmp_path / "one.npz", images=a["x_train"], labels=a["y_train"])
    with pytest.raises(DataError, match=r"keys: {x_train: images, y_train: labels}"):
        load(single, tested=False)
    unnamed = tmp_path / "unnamed.npz"
    np.savez(unnamed, *(a["x_train"] for _ in range(11)))
    with pytest.raises(DataError, match=r"it holds arr_0 \(20, 8, 8, 1\) uint8, .* and 3 more: "):
        load(unnamed)
    with pytest.raises(DataError, match="it holds nothing"):
        load(archive(tmp_path / "empty.npz"))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {k: v for k, v in a.items() if k != "x_test"},
        lambda a: {k: v for k, v in a.items() if k != "y_test"},
        lambda a: {**a, "x_test": a["x_test"][:0], "y_test": a["y_test"][:0]},
        lambda a: {**a, "y_test": a["y_test"] - 100},
        lambda a: {**a, "x_test": a["x_test"][:, :3]},
    ],
)
def test_test_images_are_needed_only_where_they_are_tested(tmp_path: Path, change):
    path = archive(tmp_path / "a.npz", **change(digit_arrays(20, 10)))
    found = load(path, tested=False)
    assert found.x_test.shape == (0, 8, 8, 1)
    assert (found.x_test.dtype, len(found.y_test)) == (np.uint8, 0)
    with pytest.raises(DataError, match=r"_test|should be alike"):
        load(path, tested=True)


def test_missing_test_images_may_be_left_out_by_testing_on_others(tmp_path: Path):
    a = digit_arrays(20, 10)
    for k, test in enumerate([{}, {"x_test": a["x_test"][:0], "y_test": a["y_test"][:0]}]):
        path = archive(tmp_path / f"{k}.npz", x_train=a["x_train"], y_train=a["y_train"], **test)
        with pytest.raises(DataError, match=r"x_test.* give every column test: undrawn"):
            load(path)


def test_labels_in_a_row_of_matlab_are_taken(tmp_path: Path):
    a = digit_arrays(20, 10)
    rows = {**a, "y_train": a["y_train"][None], "y_test": a["y_test"][None]}
    np.testing.assert_array_equal(load(archive(tmp_path / "a.npz", **rows)).y_train, a["y_train"])


def test_good_test_images_are_there_for_a_later_column(tmp_path: Path, caplog):
    path = archive(tmp_path / "a.npz", **digit_arrays(20, 10))
    assert len(load(path, tested=False).x_test) == 10
    assert not caplog.text
    bad = archive(tmp_path / "b.npz", **{**digit_arrays(20, 10), "y_test": np.arange(9)})
    load(bad, tested=False)
    assert "y_test holds 9 labels for 10 images (no column is tested on them" in caplog.text


def test_training_and_test_labels_are_of_one_kind(tmp_path: Path):
    a = digit_arrays(20, 10)
    names = {**a, "y_train": a["y_train"].astype(str)}
    with pytest.raises(DataError, match="one holds names and the other numbers"):
        load(archive(tmp_path / "a.npz", **names))
    hot = {**a, "y_train": np.eye(10)[a["y_train"]], "y_test": np.eye(11)[a["y_test"]]}
    with pytest.raises(DataError, match=r"y_train has shape \(20, 10\), y_test \(10, 11\)"):
        load(archive(tmp_path / "b.npz", **hot))


def test_bytes_and_floats_do_not_mix_but_widths_of_floats_do(tmp_path: Path):
    a = digit_arrays(20, 10)
    half = {**a, "x_train": a["x_train"] / 255}
    with pytest.raises(DataError, match=r"should be alike, save x_test / 255"):
        load(archive(tmp_path / "a.npz", **half))
    widths = {**half, "x_test": (a["x_test"] / 255).astype(np.float32)}
    assert load(archive(tmp_path / "b.npz", **widths)).x_test.dtype == np.float32


def test_other_files_are_told_apart(tmp_path: Path, npz: Path, monkeypatch):
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"a single array, not an npz archive: save one with np.savez\(path, x_train"):
        load(tmp_path / "single.npy")
    with pytest.raises(DataError, match=r"is a folder: name an npz file \(np\.savez saves what exact_ntk\.load_folder"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"data\.path: no file /.*nowhere"):
        load(tmp_path / "nowhere.npz")
    (tmp_path / "m.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(DataError, match=r"m\.mat: damaged or not an npz archive: save one with np\.savez"):
        load(tmp_path / "m.mat")
    objects = archive(tmp_path / "o.npz", **{**digit_arrays(20, 10), "y_train": np.array(["a", {}] * 10, dtype=object)})
    with pytest.raises(DataError, match=r"y_train holds pickled objects.* np\.array\(y_train\.tolist\(\)\)"):
        load(objects)
    monkeypatch.setenv("HOME", str(npz.parent))
    assert len(load(Path("~") / npz.name).x_train) == 60
