"""Which images tell two cells apart, how they are shown, and that a user's are shown only where that is asked for."""

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from exact_ntk.records import PairedDifference, Results
from exact_ntk.report.page import page
from exact_ntk.report.pictures import LARGEST_SIDE, _shades, told_apart
from tests.made_up import collected, made_up_table, table_of, with_networks

COLUMNS = [
    "{model: cntk, readout: gap, depths: [3], train: {n: 40}, test: {from: test, n: 5}, name: CNTK-GAP}",
    "{model: cntk, readout: vanilla, depths: [3], train: {n: 40}, test: {from: test, n: 5}, name: CNTK-V}",
    "{model: cnn, readout: gap, depths: [3], train: {n: 40}, test: {from: test, n: 4}, name: net-w8, width: 8}",
]
PAIR = PairedDifference(column="CNTK-GAP", minus="CNTK-V", depth=3, difference=20.0, standard_error=1.0)


@pytest.fixture
def cells(config_path: Path, tmp_path: Path):
    table = table_of(config_path, tmp_path, f"columns=[{', '.join(COLUMNS)}]")
    return table.kernel_cells, table.network_cells, table.images


def kept(right: list[int], images, positions: np.ndarray, shift: int) -> list[dict[str, np.ndarray]]:
    """A draw that takes what it gets wrong for the class `shift` further."""
    label = images.y[positions]
    said = (label + shift * (1 - np.array(right))) % len(images.classes)
    return [{"right": np.array(right, float), "outputs": np.eye(len(images.classes))[said], "label": label}]


def test_two_kernels_are_told_apart_both_ways(cells):
    kernels, nets, images = cells
    positions = kernels[0].draws[0].test
    arrays = {("CNTK-GAP", 3): kept([1, 1, 1, 0, 0], images, positions, 1)}
    arrays["CNTK-V", 3] = kept([0, 1, 0, 1, 0], images, positions, 2)
    results = made_up_table().model_copy(update={"paired": [PAIR]})
    one, other = told_apart(results, kernels, nets, arrays, images)
    assert (one.right, one.wrong, one.total, one.tested) == (("CNTK-GAP", 3), ("CNTK-V", 3), 2, 5)
    assert (other.right, other.total) == (("CNTK-V", 3), 1)
    label = images.y[positions[0]]
    assert one.pictures[0].words == f"{images.classes[label]}, taken for {images.classes[(label + 2) % 10]}"
    assert one.pictures[0].place == f"test image {images.image_index[positions[0]]}"
    shown = imread(io.BytesIO(one.pictures[0].png))[..., :3]
    np.testing.assert_allclose(shown, np.repeat(images.pixels[positions[0]] / 255, 3, axis=-1), atol=1 / 255)


def test_a_network_is_judged_by_most_of_its_epochs_on_the_images_both_have(cells):
    kernels, nets, images = cells
    positions = kernels[0].draws[0].test
    arrays = {(c, 3): kept([1, 1, 1, 0, 0], images, positions, 1) for c in ("CNTK-GAP", "CNTK-V")}
    runs = np.array([[0.0, 0.9, 0.5, 0.2], [0.0, 0.5, 0.1, 1.0]])
    own = nets[0].draw.test
    assert set(own) < set(positions)
    ordered = [np.flatnonzero(positions == at)[0] for at in own]
    arrays["net-w8", 3] = [{"right": run[np.argsort(np.argsort(ordered))], "label": images.y[own]} for run in runs]
    results = with_networks(made_up_table(), (8,))
    one, other = told_apart(results, kernels, nets, arrays, images)
    assert (one.wrong, one.total, one.tested) == (("net-w8", 3), 2, 4)
    assert (other.wrong, other.total) == (("CNTK-GAP", 3), 1)
    assert "taken for" not in one.pictures[0].words  # a network keeps no outputs
    assert "taken for" in other.pictures[0].words


def test_where_there_is_nothing_to_compare_nothing_is_shown(cells):
    kernels, nets, images = cells
    assert told_apart(made_up_table().model_copy(update={"paired": []}), kernels, nets, {}, images) == []
    positions = kernels[0].draws[0].test
    arrays = {(c, 3): kept([1, 0, 1, 0, 1], images, positions, 1) for c in ("CNTK-GAP", "CNTK-V")}
    results = made_up_table().model_copy(update={"paired": [PAIR]})
    assert told_apart(results, kernels, nets, arrays, images) == []


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((1, 2, 2, 3), 51, np.uint8), 0.2),
        (np.full((1, 2, 2, 1), 0.25, np.float32), 0.25),
        (np.stack([np.zeros((1, 2, 2)), np.ones((1, 2, 2))], axis=-1), 0.5),
        (np.array([-3.0, 1.0]).reshape(1, 1, 2, 1), [[0.0, 1.0]]),
        (np.full((1, 2, 2, 1), 7.0), 0.0),
        (np.zeros((1, 200, 3, 3), np.uint8), 0.0),
    ],
)
def test_every_kind_of_image_has_shades(pixels: np.ndarray, expected):
    shades = _shades(pixels)
    assert shades.shape[-1] == 3
    assert max(shades.shape[1:3]) <= LARGEST_SIDE
    np.testing.assert_allclose(shades[0, ..., 0], np.broadcast_to(expected, shades.shape[1:3]))


def test_the_page_says_which_is_right_and_shows_some(results: Results):
    text = page(collected(results), [], "name: x\n")
    assert "Right by CNTK-GAP/3, wrong by CNTK-V/3: 9, 1 of them." in text
    assert 'alt="test image 3, class c &lt; d, taken for a"' in text
