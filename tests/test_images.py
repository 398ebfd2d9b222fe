"""Images under one preprocessing and another, of a config and of a draw: what is shared, fitted, said and refused."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk.config import Zca
from exact_ntk.data.zca import whitened
from exact_ntk.errors import DataError
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.report.tables import markdown_table
from tests.made_up import fill, table_of

ZCA = "columns.0.preprocess=zca"


def raw(table) -> torch.Tensor:
    return torch.from_numpy(table.images.pixels.transpose(0, 3, 1, 2).astype(np.float64))


def test_a_zca_of_each_draw_is_fitted_on_its_training_images_alone(config_path: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    table = table_of(config_path, tmp_path, ZCA)
    cell = table.kernel_cells[0]
    for d, place in zip(cell.draws, cell.places, strict=True):
        own = place.sources[0].images
        expected = whitened(lambda at: raw(table)[at], 90, Zca(relative=0.1, flips=False), d.train)
        taken = np.concatenate([d.train, d.test])
        torch.testing.assert_close(own.passing(), expected[taken], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(own.image_index, table.images.image_index[taken])
        assert "x" not in own.__dict__
    assert "preprocess: ZCA (e = 0.1 of the mean eigenvalue) fitted on the draw's 20 training images" in caplog.text


def test_each_draw_has_a_store_of_its_own_and_says_so(config_path: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    table = table_of(config_path, tmp_path, ZCA)
    fill(table)
    assert "left as it is" not in caplog.text  # no draw's store is another table's
    assert len(list(tmp_path.glob("gram-*"))) == 3  # two draws of one column, and the pooled kernels of the others
    assert solve_cells(table.kernel_cells, table.device) == 8
    (record, *_) = (r for r in collect(table).results.records if r.column == "CNTK-V-20")
    assert record.preprocessed.endswith(
        "fitted on the draw's 20 training images; kernel values shared with no other draw"
    )
    assert "mean of 2 draws" in (text := markdown_table(collect(table).results))
    assert record.preprocessed in text
    kept = table.kernel_cells[0].arrays()[1]
    np.testing.assert_array_equal(kept["test_index"], table.images.image_index[table.kernel_cells[0].draws[1].test])
    again = table_of(config_path, tmp_path, ZCA)
    assert again.requests() == []


def test_a_zca_of_the_full_training_set_is_one_store(config_path: Path, tmp_path: Path):
    full = "columns.0.preprocess={method: zca, epsilon: 1.0e-4, fit: full}"
    table = table_of(config_path, tmp_path, full)
    cell = table.kernel_cells[0]
    assert all(place.shared for place in cell.places)
    expected = whitened(lambda at: raw(table)[at], 90, Zca(epsilon=1e-4, flips=False), np.arange(60))
    assert torch.equal(cell.images.x, expected)
    assert cell.images.words == "ZCA (e = 0.0001) fitted on all 60 training images"


def test_what_a_store_is_named_by_follows_what_it_depends_on(config_path: Path, tmp_path: Path):
    def name(*overrides: str) -> str:
        return str(table_of(config_path, tmp_path, *overrides).kernel_cells[0].places[0].sources[0].fields)

    plain = name()
    assert "preprocess" not in plain
    assert name("columns.0.preprocess=standard") == plain == name("data.preprocess=standard")
    assert name("columns.0.preprocess=none") == name("data.preprocess=none") != plain
    zca = {
        name(f"columns.0.preprocess={{method: zca, {more}}}") for more in ("fit: full", "relative: 0.2", "flips: true")
    }
    assert len({*zca, name(ZCA), plain}) == 5
    assert name(ZCA) == name("data.preprocess=zca") == name("columns.0.preprocess={method: zca, relative: 0.1}")


@pytest.mark.parametrize("preprocess", ["standard", "zca"])
def test_mirror_images_make_a_column_with_flips_singular(config_path: Path, npz: Path, tmp_path: Path, preprocess: str):
    arrays = dict(np.load(npz))
    arrays["x_train"][7] = arrays["x_train"][3][:, ::-1]
    np.savez(npz, **arrays)
    all_of_them = ("columns.0.train.n=60", "columns.0.train.draws=1", f"columns.0.preprocess={preprocess}")
    table_of(config_path, tmp_path, *all_of_them)
    with pytest.raises(DataError, match=r"CNTK-V-60: training images 3 and 7 are mirror images .* a ridge, such as"):
        table_of(config_path, tmp_path, *all_of_them, "columns.0.flips=true")
    table_of(config_path, tmp_path, *all_of_them, "columns.0.flips=true", "columns.0.ridge=0.001")


def test_networks_are_whitened_by_their_own_training_images(config_path: Path, tmp_path: Path):
    more = "columns.0={model: cnn, readout: gap, depths: [3], train: {n: 20}, width: 4, preprocess: zca}"
    (cell,) = table_of(config_path, tmp_path, more).network_cells
    expected = whitened(cell.images._raw, 90, Zca(relative=0.1, flips=False), cell.draw.train)
    assert torch.equal(cell.images.x, expected)
    assert cell.images.words.endswith("fitted on the draw's 20 training images")


def test_images_that_contrast_normalisation_makes_one_are_refused_by_index(
    config_path: Path, npz: Path, tmp_path: Path
):
    arrays = dict(np.load(npz))
    arrays["x_train"] = arrays["x_train"] // 2
    arrays["x_train"][7] = arrays["x_train"][3] + 40
    np.savez(npz, **arrays)
    table_of(config_path, tmp_path, "columns.0.train.n=60", "columns.0.train.draws=1")
    with pytest.raises(DataError, match=r"column CNTK-V-60: training images 3 and 7 are .* give the column a ridge"):
        table_of(config_path, tmp_path, ZCA, "columns.0.train.n=60", "columns.0.train.draws=1")
