"""The solve stage: records that hold what a rerun must reproduce, and nothing solved twice or too early."""

from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk.draws import draw, load_images
from exact_ntk.errors import Incomplete, NtkError, StoreError
from exact_ntk.gram.fill import fill_stores
from exact_ntk.gram.store import GramStore
from exact_ntk.kernels import cntk
from exact_ntk.regression.solve import targets
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.settings import load_config

CPU = torch.device("cpu")


def prepared(config_path: Path, folder: Path, *overrides: str):
    config = load_config(str(config_path), list(overrides))
    images = load_images(config)
    fill_stores(config, images, folder, CPU)
    return config, images


def test_a_cell_is_kernel_regression_on_its_draws(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    assert solve_cells(config, images, tmp_path, CPU) == 6
    found = collect(config, images, tmp_path, CPU).results
    assert not found.missing
    record = found.cell("CNTK-V-20", 4)
    expected = []
    for k in range(2):
        d = draw(images, config.columns[0], "CNTK-V-20", k)
        x, options = images.x, dict(depths=(4,), readouts=("vanilla",), backend="reference")
        alpha = torch.linalg.solve(cntk(x[d.train], **options)[0, 0], targets(images.y[d.train], 10))
        outputs = cntk(x[d.test], x[d.train], **options)[0, 0] @ alpha
        expected.append(100 * float(np.mean(outputs.argmax(1).numpy() == images.y[d.test])))
    assert [r.accuracy for r in record.by_draw] == pytest.approx(expected)
    assert record.accuracy == pytest.approx(np.mean(expected))
    assert record.std == pytest.approx(np.std(expected, ddof=1))
    assert (record.n_train, record.n_test, record.draws) == (20, 70, 2)
    assert all(r.residual < 1e-9 and r.condition > 1 for r in record.by_draw)


def test_predictions_are_saved_with_their_images(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    solve_cells(config, images, tmp_path, CPU)
    (path,) = (tmp_path / "solve").glob("CNTK-GAP-40-L3-*.npz")
    with np.load(path, allow_pickle=False) as saved:
        outputs, labels = saved["outputs_0"], saved["label_0"]
        assert outputs.shape == (30, 10)
        record = collect(config, images, tmp_path, CPU).results.cell("CNTK-GAP-40", 3)
        assert 100 * np.mean(outputs.argmax(1) == labels) == pytest.approx(record.accuracy)
        assert saved["from_test_set_0"].all()


def test_nothing_is_solved_twice_and_a_new_ridge_only_what_it_changes(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    solve_cells(config, images, tmp_path, CPU)
    assert solve_cells(config, images, tmp_path, CPU) == 0
    ridge = load_config(str(config_path), ["columns.1.ridge=0.5"])
    assert solve_cells(ridge, images, tmp_path, CPU) == 2


def test_nothing_is_solved_before_every_tile_is_there(config_path: Path, tmp_path: Path):
    config = load_config(str(config_path))
    images = load_images(config)
    with pytest.raises(Incomplete, match="no Gram matrix yet: run `ntk compute-gram`"):
        solve_cells(config, images, tmp_path, CPU)
    prepared(config_path, tmp_path)
    next(tmp_path.glob("gram-*/vanilla/c/0/1/0")).unlink()
    with pytest.raises(Incomplete, match=r"1 of .* tiles are missing"):
        solve_cells(config, images, tmp_path, CPU)


def test_a_damaged_record_is_named(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    solve_cells(config, images, tmp_path, CPU)
    victim = next((tmp_path / "solve").glob("*.json"))
    victim.write_text("{")
    with pytest.raises(StoreError, match=f"{victim.name}.* delete it"):
        solve_cells(config, images, tmp_path, CPU)


def test_an_indefinite_matrix_is_marked_everywhere_or_stops_by_name(
    config_path: Path, tmp_path: Path, monkeypatch, caplog
):
    """Numerically singular: one training image is another, times a hair."""
    config, images = prepared(config_path, tmp_path)
    real = GramStore.read

    def indefinite(self, readout, depth, rows, columns):
        k = real(self, readout, depth, rows, columns)
        return k - 2 * k.max() * np.eye(*k.shape) if np.array_equal(rows, columns) else k

    monkeypatch.setattr(GramStore, "read", indefinite)
    solve_cells(config, images, tmp_path, CPU)
    assert all(r.indefinite for r in collect(config, images, tmp_path, CPU).results.records)
    first = images.image_index[0]
    assert f"not positive definite at training image {first} (leading minor 1)" in caplog.text
    stop = load_config(str(config_path), ["columns.*.on_indefinite=stop"])
    with pytest.raises(NtkError, match=r"column CNTK-V-20, depth 3: .* leading minor 1 is not positive"):
        solve_cells(stop, images, tmp_path, CPU)
