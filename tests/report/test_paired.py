"""Paired differences of two columns, counted by hand, and which columns are paired."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from exact_ntk.errors import StoreError
from exact_ntk.report.paired import counterparts, difference, paired_differences
from exact_ntk.settings import load_config


def saved(path: Path, *guesses: list[int]) -> Path:
    """Predictions of images of classes 0 1 2 0 whose largest outputs are `guesses`, a list a draw."""
    arrays = {f"outputs_{k}": np.eye(3)[g] for k, g in enumerate(guesses)}
    for k in range(len(guesses)):
        arrays |= {f"label_{k}": np.array([0, 1, 2, 0]), f"image_index_{k}": np.array([7, 3, 3, 9])}
        arrays[f"from_test_set_{k}"] = np.array([True, True, False, True])
    np.savez(path, **arrays)
    return path


def test_the_difference_is_counted_image_by_image(tmp_path: Path):
    pooled, vanilla = saved(tmp_path / "a.npz", [0, 1, 2, 1]), saved(tmp_path / "b.npz", [0, 2, 1, 0])
    points, error = difference(pooled, vanilla)  # image by image: 0, 1, 1, -1
    assert points == pytest.approx(25)
    assert error == pytest.approx(100 * np.std([0, 1, 1, -1]) / 2)


def test_equal_predictions_differ_by_nothing_however_wrong(tmp_path: Path):
    one = saved(tmp_path / "a.npz", [1, 1, 1, 1], [0, 0, 0, 0])
    points, error = difference(one, one)
    assert points == 0
    assert error > 0  # no image decided, of 4: not certainty


def test_draws_on_the_same_images_know_little_more_than_one(tmp_path: Path):
    """What two draws agree on does not average out; the training image 3 is not the test image 3."""
    pooled, vanilla = [0, 1, 2, 1], [0, 2, 1, 0]
    _, one = difference(saved(tmp_path / "a.npz", pooled), saved(tmp_path / "b.npz", vanilla))
    _, two = difference(saved(tmp_path / "a.npz", pooled, pooled), saved(tmp_path / "b.npz", vanilla, vanilla))
    assert two == pytest.approx(one)


def test_draws_are_averaged(tmp_path: Path):
    pooled = saved(tmp_path / "a.npz", [0, 1, 2, 0], [1, 1, 1, 1])
    vanilla = saved(tmp_path / "b.npz", [1, 1, 1, 1], [1, 1, 1, 1])
    assert difference(pooled, vanilla)[0] == pytest.approx(75 / 2)


def test_only_columns_that_share_images_and_ridge_are_paired(config_path: Path, tmp_path: Path):
    assert counterparts(load_config(str(config_path))) == []
    assert counterparts(load_config("cifar10-2k")) == [("CNTK-GAP-2K", "CNTK-V-2K")]
    assert ("CNTK-GAP-500", "CNTK-V-100") not in counterparts(load_config("digits"))
    one = saved(tmp_path / "a.npz", [0, 1, 2, 0])
    found = paired_differences(
        load_config("cifar10-2k"), {("CNTK-GAP-2K", 3): one, ("CNTK-V-2K", 3): one, ("CNTK-V-2K", 4): one}
    )
    assert [(d.column, d.minus, d.depth) for d in found] == [("CNTK-GAP-2K", "CNTK-V-2K", 3)]


@pytest.mark.parametrize("keep", [0, 5, -40])
def test_damaged_predictions_are_named(tmp_path: Path, keep: int):
    path = saved(tmp_path / "a.npz", [0, 1, 2, 0])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"a\.npz"):
        difference(path, path)


def test_other_trained_ends_are_another_network(tmp_path: Path):
    path = tmp_path / "ends.yaml"
    columns = [
        {"model": "cntk", "readout": "vanilla", "depths": [3]},
        {"model": "cntk", "readout": "gap", "depths": [3, 4]},
        {"model": "cntk", "readout": "gap", "depths": [3], "train_last": True, "name": "last"},
    ]
    path.write_text(yaml.safe_dump({"name": "ends", "data": {"dataset": "digits"}, "columns": columns}))
    assert counterparts(load_config(str(path))) == [("CNTK-GAP", "CNTK-V")]
