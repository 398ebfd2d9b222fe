"""Columns with mirror images, of unit diagonal, or both, against the doubled training set and plain formulas."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from exact_ntk.errors import ConfigError, DataError
from exact_ntk.gram import compute
from exact_ntk.kernels import cntk
from exact_ntk.regression.matrix import on_unit_diagonal
from exact_ntk.regression.ridge import leave_one_out
from exact_ntk.regression.solve import targets
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.report.tables import markdown_table
from exact_ntk.settings import load_config
from exact_ntk.table import Table
from tests.made_up import fill, once_filled, table_of

ON = "columns.0.flips=true"
UNIT = "columns.0.unit_diagonal=true"
RIDGE = "columns.0.ridge=0.01"
FLOAT64 = "gram.dtype=float64"


def solved(config_path: Path, folder: Path, *overrides: str) -> Table:
    table = once_filled(table_of(config_path, folder, *overrides))
    solve_cells(table.kernel_cells, table.device)
    return table


def doubled_set(table: Table, k: int, unit: bool, ridge: float) -> np.ndarray:
    """Outputs on the test images of regression on the training images and their mirror images."""
    cell = table.kernel_cells[0]
    place, images = cell.places[k], cell.places[k].sources[0].images
    x, train = images.x, images.x[place.train]
    both, test = torch.cat([train, train.flip(-1)]), x[place.test]
    how = dict(depths=(cell.depth,), readouts=(cell.column.kernel,), dtype=torch.float64, backend="reference")
    full, rows = cntk(both, **how)[0, 0], cntk(test, both, **how)[0, 0]
    if unit:
        of_test = cntk(test, diagonal=True, **how)[0, 0]
        rows = rows / torch.outer(of_test, full.diagonal()).sqrt()
        full = full / torch.outer(full.diagonal(), full.diagonal()).sqrt()
    y = targets(table.images.y[cell.draws[k].train], 10)
    shift = ridge * full.diagonal().mean() * torch.eye(len(full), dtype=torch.float64)
    return (rows @ torch.linalg.solve(full + shift, torch.cat([y, y]))).numpy()


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("preprocess", ["standard", "zca"])
def test_an_averaged_kernel_is_regression_on_the_doubled_set(
    config_path: Path, tmp_path: Path, unit: bool, preprocess: str
):
    more = (f"columns.0.preprocess={preprocess}", f"columns.0.unit_diagonal={str(unit).lower()}")
    table = solved(config_path, tmp_path, ON, RIDGE, FLOAT64, *more)
    cell = table.kernel_cells[0]
    for k, kept in enumerate(cell.arrays()):
        np.testing.assert_allclose(kept["outputs"], doubled_set(table, k, unit, 0.01), rtol=0, atol=1e-6)
    record = cell.record()[0]
    assert (record.flips, record.unit_diagonal) == (True, unit)
    assert f"with mirror images{', unit diagonal' * unit}, ridge 0.01" in markdown_table(collect(table).results)


def test_a_ridge_is_chosen_by_leaving_an_image_and_its_mirror_image_out(config_path: Path, tmp_path: Path):
    table = solved(config_path, tmp_path, ON, FLOAT64, "columns.0.ridge={select: loo, from: 0.001, to: 0.1}")
    cell = table.kernel_cells[0]
    train = table.images.x[cell.draws[0].train]
    both = torch.cat([train, train.flip(-1)])
    full = cntk(both, depths=(cell.depth,), readouts=("vanilla",), dtype=torch.float64, backend="reference")[0, 0]
    y = targets(table.images.y[cell.draws[0].train], 10)
    curve = cell.record()[0].by_draw[0].ridge
    for ridge, error in zip(curve.ridges, curve.errors, strict=True):
        residuals = []
        for i in range(20):
            rest = [j for j in range(40) if j % 20 != i]
            a = full[rest][:, rest] + ridge * full.diagonal()[:20].mean() * torch.eye(38, dtype=torch.float64)
            residuals.append(y[i] - full[i, rest] @ torch.linalg.solve(a, torch.cat([y, y])[rest]))
        assert error == pytest.approx(float(torch.stack(residuals).square().mean()), rel=1e-6)
    plain = leave_one_out(full, torch.cat([y, y]), curve.ridges)  # the twin is left in
    assert curve.errors[0] > 1.05 * float(plain.errors[0])


def test_a_unit_diagonal_is_of_test_images_too(config_path: Path, tmp_path: Path):
    table = solved(config_path, tmp_path, UNIT, FLOAT64)
    cell = table.kernel_cells[0]
    _, store = table.shelf.require(cell.request(0))
    how = dict(depths=(3,), readouts=("vanilla",), dtype=torch.float64, backend="reference", diagonal=True)
    at = np.array([89, 3, 50, 3])
    np.testing.assert_allclose(store.self_values("vanilla", 3, at), cntk(table.images.x[at], **how)[0, 0], rtol=1e-12)
    k = cell.matrix(store, cell.places[0].train, cell.places[0].train)
    (found,) = [values for i, j, values in k.pieces(slice(0, 5), slice(0, 5))]
    np.testing.assert_allclose(found.diagonal(), 1, rtol=1e-12)


def test_plain_flipped_and_scaled_columns_share_a_store_and_its_values(config_path: Path, tmp_path: Path, monkeypatch):
    tree = yaml.safe_load(config_path.read_text())
    plain, *_ = tree["columns"]
    tree["columns"] = [
        plain,
        {**plain, "name": "flips", "flips": True},
        {**plain, "name": "unit", "unit_diagonal": True},
    ]
    config_path.write_text(yaml.safe_dump(tree))
    solved(config_path, tmp_path / "alone", "columns.1.flips=false")
    calls = []
    real = compute.cntk_pass
    monkeypatch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(compute, "cntk_pass", lambda x1, x2, *a, **more: calls.append(x2) or real(x1, x2, *a, **more))
    table = table_of(config_path, tmp_path / "alone")
    fill(table)
    (store,) = (tmp_path / "alone").glob("gram-*")
    names = {path.name for path in store.glob("vanilla*")}
    assert names == {f"vanilla{kind}-L{depth}" for kind in ("", "-flip", "-self") for depth in (3, 4)}
    assert len(calls) == len(list(store.glob("vanilla-flip-L3/c/*/*")))  # none of the plain ones again
    assert None not in calls
    assert solve_cells(table.kernel_cells, table.device) == 4
    assert fill(table) == 0


def test_mirrored_values_do_not_depend_on_tiles_or_on_memory(config_path: Path, tmp_path: Path, monkeypatch, caplog):
    def values(folder: str, *overrides: str) -> np.ndarray:
        table = table_of(config_path, tmp_path / folder, ON, FLOAT64, *overrides)
        fill(table)
        cell = table.kernel_cells[0]
        _, store = table.shelf.require(cell.request(0))
        place = cell.places[0]
        return store.read("vanilla-flip", 3, np.concatenate([place.train, place.test]), place.train)

    whole = values("whole", "gram.tile=90")
    np.testing.assert_array_equal(whole[:20], whole[:20].T)
    np.testing.assert_allclose(values("small"), whole, rtol=1e-12)
    real = compute.cntk_pass

    def short(x1, *rest, **more):
        if len(x1) > 9:
            raise MemoryError
        return real(x1, *rest, **more)

    monkeypatch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(compute, "cntk_pass", short)
    np.testing.assert_allclose(values("parts", "gram.tile=30"), whole, rtol=1e-12)
    assert "going on in blocks of" in caplog.text


def test_what_breaks_the_symmetry_or_has_no_diagonal_is_refused(config_path: Path, npz: Path, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"column CNTK-V-20: flips needs K\(Fx, Fx'\) = K\(x, x'\) .* set it to true$"
    ):
        load_config(str(config_path), [ON, "columns.0.preprocess={method: zca, flips: false}"])
    with pytest.raises(ConfigError, match=r"columns\.0\.flips: unknown key"):
        load_config(str(config_path), ["columns.0={model: cnn, readout: gap, depths: [3], flips: true}"])
    assert load_config(str(config_path), [ON, "data.preprocess=zca"]).resolved()["columns"][0]["flips"] is True
    arrays = dict(np.load(npz))
    arrays["x_test"][4] = 90
    np.savez(npz, **arrays)
    table_of(config_path, tmp_path, "columns.0.preprocess=zca")
    match = r"column CNTK-V-20: test image 4 is zero once preprocessed, so its kernel has no unit diagonal"
    with pytest.raises(DataError, match=match):
        table_of(config_path, tmp_path, "columns.0.preprocess=zca", UNIT)


def test_a_missing_tile_of_any_array_is_waited_for(config_path: Path, tmp_path: Path):
    table = table_of(config_path, tmp_path, ON, UNIT)
    fill(table)
    cell = table.kernel_cells[0]
    for name in ("vanilla-flip-L3/c/1/0", "vanilla-self-L3/c/1/0"):
        (gone,) = tmp_path.glob(f"gram-*/{name}")
        gone.unlink()
        assert table.shelf.look().complete(cell.request(0)) is None
        assert fill(table) == 0
        assert gone.exists()
        assert not list(tmp_path.glob("gram-*/.locks/*"))
    kept = solved(config_path, tmp_path, ON, UNIT).kernel_cells[0].record()
    assert re.fullmatch("[0-9a-f]{16}", kept[0].fingerprint)


@pytest.mark.parametrize("projected", [False, True])
def test_a_unit_diagonal_leaves_a_matrix_symmetric_to_the_last_bit(projected: bool):
    x = torch.randn(40, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = x @ x.T
    k = torch.tril(k) + torch.tril(k, -1).T
    own = k.diagonal().rsqrt()
    unit = on_unit_diagonal(k, own, own, projected)
    assert torch.equal(unit, unit.T)
    torch.testing.assert_close(unit.diagonal(), torch.ones(40).double(), rtol=0, atol=1e-14)
