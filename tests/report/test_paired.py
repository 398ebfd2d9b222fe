"""Paired differences of two columns, counted by hand, and which columns are paired."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from exact_ntk.report.paired import counterparts, difference, paired_differences
from exact_ntk.settings import load_config


def guessed(*guesses: list[int]) -> list[dict[str, np.ndarray]]:
    """What is kept of draws on images of classes 0 1 2 0: guesses, a list a draw."""
    images = {"test_index": np.array([7, 3, 3, 9]), "from_test_set": np.array([True, True, False, True])}
    return [{**images, "right": (np.array(g) == [0, 1, 2, 0]).astype(float)} for g in guesses]


def test_the_difference_is_counted_image_by_image():
    pooled, vanilla = guessed([0, 1, 2, 1]), guessed([0, 2, 1, 0])
    points, error = difference(pooled, vanilla)  # image by image: 0, 1, 1, -1
    assert points == pytest.approx(25)
    assert error == pytest.approx(100 * np.std([0, 1, 1, -1]) / 2)


def test_equal_predictions_differ_by_nothing_however_wrong():
    one = guessed([1, 1, 1, 1], [0, 0, 0, 0])
    points, error = difference(one, one)
    assert points == 0
    assert error > 0  # no image decided, of 4: not certainty


def test_draws_on_the_same_images_know_little_more_than_one():
    """What two draws agree on does not average out; the training image 3 is not the test image 3."""
    pooled, vanilla = [0, 1, 2, 1], [0, 2, 1, 0]
    _, one = difference(guessed(pooled), guessed(vanilla))
    _, two = difference(guessed(pooled, pooled), guessed(vanilla, vanilla))
    assert two == pytest.approx(one)


def test_draws_are_averaged():
    pooled = guessed([0, 1, 2, 0], [1, 1, 1, 1])
    vanilla = guessed([1, 1, 1, 1], [1, 1, 1, 1])
    assert difference(pooled, vanilla)[0] == pytest.approx(75 / 2)


def test_only_columns_that_share_images_and_ridge_are_paired(config_path: Path, tmp_path: Path):
    assert counterparts(load_config(str(config_path))) == []
    assert counterparts(load_config("cifar10-2k")) == [("CNTK-GAP-2K", "CNTK-V-2K")]
    assert ("CNTK-GAP-500", "CNTK-V-100") not in counterparts(load_config("digits"))
    one = guessed([0, 1, 2, 0])
    found = paired_differences(
        load_config("cifar10-2k"), {("CNTK-GAP-2K", 3): one, ("CNTK-V-2K", 3): one, ("CNTK-V-2K", 4): one}
    )
    assert [(d.column, d.minus, d.depth) for d in found] == [("CNTK-GAP-2K", "CNTK-V-2K", 3)]


def test_columns_that_one_choice_tells_apart_are_paired(config_path: Path, tmp_path: Path):
    tree = yaml.safe_load(config_path.read_text())
    plain = {**tree["columns"][1], "name": "plain"}
    more = (
        {"flips": True},
        {"unit_diagonal": True},
        {"ridge": "loo"},
        {"preprocess": "zca"},
        {"preprocess": "standard"},
    )
    named = [{**plain, **extra, "name": f"with-{k}"} for k, extra in enumerate(more)]
    tree["columns"] = [plain, *named, {**named[0], "preprocess": "zca", "name": "both"}]
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(tree))
    # The last is the plain column again, and is compared as it is: what has more chosen stands first, wherever it is.
    with_plain = [(f"with-{k}", plain) for k in range(4) for plain in ("plain", "with-4")]
    assert sorted(counterparts(load_config(str(path)))) == sorted([*with_plain, ("both", "with-0"), ("both", "with-3")])


def test_of_two_that_have_as_much_chosen_the_later_stands_first(config_path: Path, tmp_path: Path):
    tree = yaml.safe_load(config_path.read_text())
    ridges = {"loo": "loo", "large": 0.1, "small": 0.001, "none": 0}
    tree["columns"] = [{**tree["columns"][1], "name": name, "ridge": ridge} for name, ridge in ridges.items()]
    path = tmp_path / "ridges.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert sorted(counterparts(load_config(str(path)))) == [
        *(("large", "none"), ("loo", "large"), ("loo", "none"), ("loo", "small")),
        *(("small", "large"), ("small", "none")),
    ]


def test_other_trained_ends_are_another_network(tmp_path: Path):
    path = tmp_path / "ends.yaml"
    columns = [
        {"model": "cntk", "readout": "vanilla", "depths": [3]},
        {"model": "cntk", "readout": "gap", "depths": [3, 4]},
        {"model": "cntk", "readout": "gap", "depths": [3], "train_last": True, "name": "last"},
    ]
    path.write_text(yaml.safe_dump({"name": "ends", "data": {"dataset": "digits"}, "columns": columns}))
    assert counterparts(load_config(str(path))) == [("CNTK-GAP", "CNTK-V")]


def test_local_averages_are_paired_with_what_has_the_same_trained_ends(tmp_path: Path):
    path = tmp_path / "windows.yaml"
    columns = [
        {"model": "cntk", "readout": "vanilla", "depths": [3]},
        {"model": "cntk", "readout": "lap-4", "depths": [3]},
        {"model": "cntk", "readout": "gap", "depths": [3], "train_first": True, "train_last": True, "name": "GAP-all"},
        {"model": "cntk", "readout": "gap", "depths": [3]},
        {"model": "nngp", "readout": "lap-4", "depths": [3]},
    ]
    path.write_text(yaml.safe_dump({"name": "windows", "data": {"dataset": "digits"}, "columns": columns}))
    assert sorted(counterparts(load_config(str(path)))) == [
        ("CNTK-GAP", "CNTK-V"),
        ("CNTK-LAP-4", "CNTK-V"),
        ("CNTK-LAP-4", "GAP-all"),
        ("GAP-all", "CNTK-V"),
    ]
