"""Columns of Myrtle networks: a pass and an array a depth in one store, regression with them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from exact_ntk.errors import ConfigError, DataError
from exact_ntk.gram import compute
from exact_ntk.gram.fill import Filler
from exact_ntk.gram.plan import shares
from exact_ntk.kernels import myrtle
from exact_ntk.kernels.fused import cpu as fused_cpu
from exact_ntk.regression.solve import targets
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.report.figures import accuracy_drawing
from exact_ntk.report.tables import markdown_table
from exact_ntk.settings import load_config
from exact_ntk.table import Table
from tests.conftest import digit_arrays
from tests.made_up import fill, table_of

IMAGES = {"readout": "myrtle", "train": {"n": 20}, "test": {"n": 6}}
COLUMNS = [
    {**IMAGES, "model": "cntk", "depths": [5, 7], "ridge": 0.01},
    {**IMAGES, "model": "cntk", "depths": [5], "ridge": 0.01, "flips": True, "name": "flips"},
    {**IMAGES, "model": "nngp", "depths": [5, 10], "ridge": 0.01, "unit_diagonal": "projected", "name": "unit"},
]


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """Myrtle columns on 4 x 4 digits, on the reference kernels."""
    np.savez(tmp_path / "digits.npz", **digit_arrays(30, 10, side=4))
    path = tmp_path / "tiny.yaml"
    data, gram = {"dataset": "npz", "path": str(tmp_path / "digits.npz")}, {"backend": "reference", "tile": 10}
    path.write_text(yaml.safe_dump({"name": "tiny", "data": data, "gram": gram, "columns": COLUMNS}))
    return path


def regressed(table: Table, name: str, depth: int) -> np.ndarray:
    """Outputs on the test images, from `myrtle` itself."""
    (cell,) = [cell for cell in table.kernel_cells if (cell.name, cell.depth) == (name, depth)]
    x = table.images.x[np.concatenate([cell.draws[0].train, cell.draws[0].test])]
    how = dict(variant=depth, readouts=("nngp-unit" if name == "unit" else "ntk",), backend="reference")
    (k,) = myrtle(x, **how)
    unit = 20 / k.diagonal()[:20].sum()
    if cell.column.flips:
        k, unit = (k + myrtle(x, x.flip(-1), **how)[0]) / 2, 2 * unit
    a = k[:20, :20] + 0.01 / unit * torch.eye(20, dtype=torch.float64)
    return (k[20:, :20] @ torch.linalg.solve(a, targets(table.images.y[cell.draws[0].train], 10))).numpy()


def test_a_table_of_myrtle_networks_is_regression_with_their_kernels(config_path: Path, tmp_path: Path, monkeypatch):
    calls, real = [], compute.cntk_pass
    monkeypatch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(compute, "cntk_pass", lambda x1, x2, job, **how: calls.append(job) or real(x1, x2, job, **how))
    table = table_of(config_path, tmp_path / "run")
    fill(table)
    (store,) = (tmp_path / "run").glob("gram-*")
    of_ntk, of_nngp = ("myrtle-L5", "myrtle-L7", "myrtle-flip-L5"), ("myrtle-nngp-L5", "myrtle-nngp-L10")
    of_self = ("myrtle-nngp-self-L5", "myrtle-nngp-self-L10")
    assert {path.name for path in store.glob("myrtle*")} == {*of_ntk, *of_nngp, *of_self}
    tiles = len(list(store.glob("myrtle-L5/c/*/*")))
    passes = [(job.depths, job.readouts) for job in calls]
    assert passes.count(((5,), ("myrtle", "myrtle-nngp"))) == passes.count(((10,), ("myrtle-nngp",))) == tiles
    assert len(passes) == 4 * tiles  # of depth 5 one for mirror images, too
    solve_cells(table.kernel_cells, table.device)
    for cell in table.kernel_cells:
        np.testing.assert_allclose(cell.arrays()[0]["outputs"], regressed(table, cell.name, cell.depth), atol=1e-9)
    found = collect(table)
    record = found.results.cell("unit", 10)
    assert (record.backend, record.dtype, record.unit_diagonal) == ("reference-cpu", "float64", "projected")
    assert "unit diagonal through one more ReLU" in markdown_table(found.results)
    assert [p.name for p in accuracy_drawing(found.results).panels] == ["accuracy-myrtle"]


def test_work_is_planned_pass_by_pass(config_path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    table = table_of(config_path, tmp_path)
    filler, requests = Filler(table.shelf, table.device, 30), table.requests()
    by_column = shares(filler.plan(requests), requests)
    work = sum(filler.entry_layers(share) for column in by_column.values() for share in column)
    layers = {5: 2 + 1 / 16 + 1 / 256, 7: 2 + 2 / 16 + 2 / 256, 10: 3 + 3 / 16 + 3 / 256}
    pairs = 30 * 31 / 2 + 10 * 30  # in a tile of the training images, and one of the test images
    assert work == 16**2 * (pairs * (2 * layers[5] + layers[7] + layers[10]) + 40 * (layers[5] + layers[10]))


def test_values_of_any_backend_serve_and_its_own_come_first(config_path: Path, tmp_path: Path, monkeypatch):
    def served(*overrides: str) -> list[tuple[str, str]]:
        sources = table_of(config_path, tmp_path, *overrides).kernel_cells[0].places[0].sources
        return list(dict.fromkeys((s.backend, s.dtype) for s in sources))

    monkeypatch.setattr(fused_cpu, "unavailable", lambda: "there is no compiler")
    references = [("reference-cpu", "float64"), ("reference-cuda", "float64")]
    fused = [("fused-cpu", "float32"), ("fused-cuda", "float32")]
    assert sorted(served()) == references
    assert served("gram.backend=auto")[0] == references[0]
    assert sorted(served("gram.backend=auto")) == sorted([*references, *fused])
    assert sorted(served("gram.backend=auto", "gram.dtype=float64")) == references
    with pytest.raises(ConfigError, match=r"gram\.backend: backend fused cannot run: there is no compiler"):
        fill(table_of(config_path, tmp_path, "gram.backend=fused"))


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("columns.0.depths=[5, 6]", "columns.0: the Myrtle networks have depth 5, 7 or 10, not 6$"),
        ("columns.3.readout=myrtle", "columns.3.readout: .*'vanilla' or 'gap', not 'myrtle'"),
        ("columns.0.readout=mirtle", "columns.0.readout: should be 'vanilla', 'gap', 'myrtle' or 'lap-C'"),
        ("columns.0.unit_diagonal=projected", "columns.0: unit_diagonal: projected is one more ReLU of an NNGP kernel"),
        ("columns.0.unit_diagonal=one", "columns.0.unit_diagonal: should be true, false or 'projected', not 'one'"),
        ("columns.0.padding=circular", "columns.0.padding: unknown key"),
    ],
)
def test_what_is_no_myrtle_column_is_refused_by_its_key(config_path: Path, assignment: str, words: str):
    tree = yaml.safe_load(config_path.read_text())
    tree["columns"].append({"model": "cnn", "readout": "gap", "depths": [5]})
    config_path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(str(config_path), [assignment])
    assert "\n" not in str(caught.value)


def test_sides_that_two_pools_do_not_divide_are_refused(config_path: Path, tmp_path: Path):
    np.savez(tmp_path / "digits.npz", **digit_arrays(30, 10, side=6))
    words = r"column CNTK-Myrtle-20: Myrtle networks pool twice, so sides must be divisible by 4, .* 6 x 6: crop"
    with pytest.raises(DataError, match=words):
        table_of(config_path, tmp_path)
