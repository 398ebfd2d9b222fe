"""The solve stage: what is kept of a draw, and nothing solved twice, too early, or lost with its store."""

import contextlib
import logging
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from exact_ntk.errors import Incomplete, NtkError, StoreError
from exact_ntk.gram import compute
from exact_ntk.gram.store import GramStore
from exact_ntk.kept import _damage
from exact_ntk.kernels import cntk
from exact_ntk.locks import try_lock
from exact_ntk.memory import default_memory, parse_bytes
from exact_ntk.records import KernelRecord, SolvedDraw, read_record
from exact_ntk.regression import early_stopping, plan, stage
from exact_ntk.regression.panels import PanelFiles
from exact_ntk.regression.ridge import leave_one_out
from exact_ntk.regression.solve import targets
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.report.tables import markdown_table
from exact_ntk.standard_error import standard_error
from exact_ntk.table import Table
from tests.made_up import fill, once_filled, table_of


def solve(table: Table) -> int:
    return solve_cells(table.kernel_cells, table.device)


def prepared(config_path: Path, folder: Path, *overrides: str) -> Table:
    return once_filled(table_of(config_path, folder, *overrides))


def records(table: Table) -> list[KernelRecord]:
    return collect(table).results.records


def test_a_cell_is_kernel_regression_on_its_draws(config_path: Path, tmp_path: Path):
    table = prepared(config_path, tmp_path)
    assert solve(table) == 8  # two depths of two draws and of two single ones
    found = collect(table).results
    assert not found.missing
    record = found.cell("CNTK-V-20", 4)
    cell = next(c for c in table.kernel_cells if (c.name, c.depth) == ("CNTK-V-20", 4))
    expected, right = [], []
    for d in cell.draws:
        x, options = table.images.x, dict(depths=(4,), readouts=("vanilla",), backend="reference")
        y = table.images.y
        alpha = torch.linalg.solve(cntk(x[d.train], **options)[0, 0], targets(y[d.train], 10))
        outputs = cntk(x[d.test], x[d.train], **options)[0, 0] @ alpha
        right.append((outputs.argmax(1).numpy() == y[d.test]).astype(float))
        expected.append(100 * float(np.mean(right[-1])))
    assert [r.accuracy for r in record.by_draw] == pytest.approx(expected)
    assert record.accuracy == pytest.approx(np.mean(expected))
    assert record.std == pytest.approx(np.std(expected, ddof=1))
    assert record.standard_error == pytest.approx(standard_error([d.test for d in cell.draws], right))
    assert (record.n_train, record.n_test, record.draws) == (20, 70, 2)
    assert all(r.residual < 1e-9 for r in record.by_draw)


def test_what_is_kept_of_an_unfinished_cell_is_read_once(config_path: Path, tmp_path: Path, monkeypatch):
    table = prepared(config_path, tmp_path)
    cell = next(c for c in table.kernel_cells if (c.name, c.depth) == ("CNTK-V-20", 4))
    assert stage.Solver(table.device, default_memory(table.device)).solve(cell, 0)
    read: Counter[str] = Counter()
    monkeypatch.setattr("exact_ntk.kept._damage", lambda path: read.update([path.suffix]) or _damage(path))
    lacking = cell.lacks()
    assert lacking
    assert (lacking.needs, lacking.failed) == ("run `ntk solve`", False)
    assert read == {".npz": 1, ".json": 1}


def test_what_is_kept_of_a_draw_needs_no_store_any_more(config_path: Path, tmp_path: Path):
    table = prepared(config_path, tmp_path)
    cell = next(c for c in table.kernel_cells if (c.name, c.depth) == ("CNTK-GAP-40", 3))
    _, store = table.shelf.require(cell.request(0))
    d = cell.draws[0]
    k, k_test = store.read("gap", 3, d.train, d.train), store.read("gap", 3, d.test, d.train)
    solve(table)
    before = collect(table)
    for gone in tmp_path.glob("gram-*"):
        shutil.rmtree(gone)
    (kept,), record = cell.arrays(), cell.record()[0]
    np.testing.assert_allclose(k @ kept["alpha"], targets(table.images.y[d.train], 10), atol=1e-9)
    np.testing.assert_allclose(k_test @ kept["alpha"], kept["outputs"], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(kept["train_index"], table.images.image_index[d.train])
    np.testing.assert_array_equal(kept["test_index"], table.images.image_index[d.test])
    np.testing.assert_array_equal(kept["label"], table.images.y[d.test])
    assert kept["from_test_set"].all()
    assert 100 * np.mean(kept["outputs"].argmax(1) == kept["label"]) == pytest.approx(record.accuracy)
    (draw,) = record.by_draw
    assert draw.one_norm == pytest.approx(np.linalg.norm(k, 1))
    assert draw.inverse_one_norm == pytest.approx(np.linalg.norm(np.linalg.inv(k), 1), rel=0.05)
    assert draw.condition == draw.one_norm * draw.inverse_one_norm
    order = np.argsort(table.images.y[d.train], kind="stable")
    scale = np.sqrt(np.diagonal(k))
    np.testing.assert_allclose(kept["heat_map"], (k / scale / scale[:, None])[np.ix_(order, order)], rtol=1e-6)
    after = collect(table_of(config_path, tmp_path))
    assert after.results == before.results
    for cell, draws in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[cell][0]["heat_map"], draws[0]["heat_map"])


def test_a_finished_cell_asks_for_no_tile_unless_all_are_wanted(config_path: Path, tmp_path: Path, monkeypatch):
    solve(prepared(config_path, tmp_path))
    for gone in tmp_path.glob("gram-*"):
        shutil.rmtree(gone)
    table = table_of(config_path, tmp_path)
    assert table.requests() == []
    assert len(table.requests(every=True)) == 8


def test_a_heat_map_is_small(config_path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stage, "HEAT_MAP_IMAGES", 8)
    table = prepared(config_path, tmp_path)
    solve(table)
    found = collect(table).arrays["CNTK-GAP-40", 3][0]
    assert found["heat_map"].shape == (8, 8)
    assert list(found["heat_map_label"]) == sorted(found["heat_map_label"])
    np.testing.assert_allclose(np.diagonal(found["heat_map"]), 1, rtol=1e-6)


def test_nothing_is_solved_twice_and_a_new_ridge_only_what_it_changes(config_path: Path, tmp_path: Path):
    assert solve(prepared(config_path, tmp_path)) == 8
    assert solve(prepared(config_path, tmp_path)) == 0
    assert solve(prepared(config_path, tmp_path, "columns.1.ridge=0.5")) == 2


def test_each_draw_chooses_its_ridge_without_the_test_images(config_path: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    asked = "columns.0.ridge={select: loo, from: 1.0e-3, to: 10}"
    table = prepared(config_path, tmp_path, asked)
    assert solve(table) == 8
    cell = table.kernel_cells[0]
    _, store = table.shelf.require(cell.request(0))
    y, images = table.images.y, cell.images
    for d, kept, found in zip(cell.draws, cell.arrays(), cell.record()[0].by_draw, strict=True):
        k = torch.from_numpy(store.read(*cell.array, d.train, d.train))
        curve = leave_one_out(k, targets(y[d.train], 10), cell.column.ridge.grid)
        assert found.ridge.errors == pytest.approx(curve.errors.tolist())
        assert found.ridge.ridge == curve.ridge
        shifted = k + curve.ridge * k.diagonal().mean() * torch.eye(20, dtype=torch.float64)
        np.testing.assert_allclose(shifted.numpy() @ kept["alpha"], targets(images.y[d.train], 10), atol=1e-9)
    assert cell.record()[0].ridge is None
    assert "the ridge of 20 images out of 9 from 0.001 to 10 by leave-one-out error: an eigen" in caplog.text
    assert not list((tmp_path / "solve").glob("*.ridge"))
    assert "CNTK-V-20: ridges chosen " in markdown_table(collect(table).results)
    # What the choice depends on, and nothing else, makes another cell.
    assert solve(prepared(config_path, tmp_path, asked, "columns.0.ridge.holdout=0.3")) == 0
    assert solve(prepared(config_path, tmp_path, asked, "columns.0.ridge.select=holdout")) == 4


def test_a_ridge_at_the_top_of_the_grid_is_said(config_path: Path, npz: Path, tmp_path: Path, caplog):
    arrays = dict(np.load(npz))
    np.savez(npz, **{**arrays, "y_train": np.random.default_rng(0).permutation(arrays["y_train"])})  # nothing to learn
    table = prepared(config_path, tmp_path, "columns.0.ridge={select: holdout, from: 0.1, to: 1}")
    solve(table)
    assert caplog.text.count("CNTK-V-20 L=3: the ridge 1 is the largest there was: give a larger ridge.to") == 1
    notes = markdown_table(collect(table).results)
    assert "each draw's ridge by held-out error" in notes
    assert "of 2 the largest there were) at depth 3" in notes


def test_one_more_draw_is_one_more_system(config_path: Path, tmp_path: Path):
    solve(prepared(config_path, tmp_path))
    more = prepared(config_path, tmp_path, "columns.0.train.draws=3")
    assert solve(more) == 2  # a draw at two depths
    assert next(r for r in records(more) if r.column == "CNTK-V-20").draws == 3


def test_names_are_no_part_of_what_is_done(config_path: Path, tmp_path: Path, monkeypatch):
    """A renamed column, config and folder: nothing is computed or solved."""
    solve(prepared(config_path, tmp_path / "runs" / "tiny"))
    before = records(table_of(config_path, tmp_path / "runs" / "tiny"))
    (tmp_path / "runs" / "tiny").rename(tmp_path / "runs" / "other")
    monkeypatch.setattr(compute, "cntk_pass", None)
    tree = yaml.safe_load(config_path.read_text())
    tree["name"] = "other"
    for k, column in enumerate(tree["columns"]):
        column["name"] = f"column-{k}"
    config_path.write_text(yaml.safe_dump(tree))
    table = prepared(config_path, tmp_path / "runs" / "other")
    assert solve(table) == 0
    after = records(table)
    assert [r.fingerprint for r in after] == [r.fingerprint for r in before]
    assert [r.column for r in after] == [f"column-{k}" for k in range(3) for _ in range(2)]


def test_what_is_there_is_solved_and_the_rest_is_said(config_path: Path, tmp_path: Path):
    """One missing tile of the pooled store blocks neither the vanilla cells nor the other depth."""
    table = table_of(config_path, tmp_path)
    with pytest.raises(Incomplete, match="no Gram matrix yet: run `ntk compute-gram`"):
        solve(table)
    prepared(config_path, tmp_path)
    next(tmp_path.glob("gram-*/gap-L4/c/1/0")).unlink()
    table = table_of(config_path, tmp_path)
    with pytest.raises(Incomplete, match=r"CNTK-GAP-40 at depth 4: 1 of .* tiles of gap are missing"):
        solve(table)
    results = collect(table).results
    assert len(results.records) == 5
    assert [(m.column, m.depth, m.needs) for m in results.missing] == [
        ("CNTK-GAP-40", 4, "run `ntk compute-gram` and `ntk solve`")
    ]
    fill(table, every=False)
    assert solve(table) == 1


def test_a_draw_that_another_process_holds_is_left_to_it_and_waited_for(config_path: Path, tmp_path: Path, monkeypatch):
    table = prepared(config_path, tmp_path)
    cell = table.kernel_cells[0]
    other = try_lock(cell.path(0, cell.places[0].sources[0]).with_suffix(".lock"))
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        assert len(list((tmp_path / "solve").glob("*.json"))) == 7
        other.release()

    monkeypatch.setattr(stage.time, "sleep", look)
    assert solve(table) == 8
    assert len(looks) == 1
    assert not list((tmp_path / "solve").glob("*.lock"))


def test_a_kill_between_the_arrays_and_the_record_of_a_draw_costs_that_draw(
    config_path: Path, tmp_path: Path, monkeypatch
):
    whole = prepared(config_path, tmp_path / "whole")
    solve(whole)
    table = prepared(config_path, tmp_path / "cut")
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(stage, "keep_record", lambda *_: os.kill(os.getpid(), 2))
        solve(table)
    (left,) = (tmp_path / "cut" / "solve").glob("*.npz")
    panels = left.with_suffix(".panels")
    (panels / "ridge-0.1").mkdir(parents=True)
    for path in (left, panels / "00002.panel", panels / "ridge-0.1" / "00002.panel"):
        path.with_name(f".{path.name}.x.partial").write_bytes(b"half")
    solved, beside = stage.kernel_regression, []

    def look(*args, **kwargs):
        beside.extend(panels.rglob(".*.partial"))
        return solved(*args, **kwargs)

    monkeypatch.setattr(stage, "kernel_regression", look)
    assert solve(table) == 8
    assert beside == []
    assert not list(left.parent.glob(".*partial"))
    assert records(table) == records(whole)


@pytest.mark.parametrize("suffix", [".json", ".npz", ".npz.sha256"])
def test_a_damaged_record_or_its_arrays_are_named_and_that_draw_alone_is_solved_again(
    suffix: str, config_path: Path, tmp_path: Path
):
    table = prepared(config_path, tmp_path)
    solve(table)
    before = records(table)
    record = next((tmp_path / "solve").glob("*.json"))
    victim = record.with_name(record.stem + suffix)
    victim.write_bytes(victim.read_bytes()[:-80])
    with pytest.raises(StoreError, match=f"{victim.name.removesuffix('.sha256')}.*: run `ntk run`"):
        collect(table)
    assert solve(table) == 1
    assert records(table) == before


def test_an_indefinite_matrix_is_marked_everywhere_or_stops_by_name(
    config_path: Path, tmp_path: Path, monkeypatch, caplog
):
    table = prepared(config_path, tmp_path)
    real = GramStore.pieces

    def indefinite(self, readout, depth, rows, columns):
        for i, j, values in real(self, readout, depth, rows, columns):
            yield i, j, values - 1e4 * np.equal.outer(rows[i], columns[j])

    monkeypatch.setattr(GramStore, "pieces", indefinite)
    solve(table)
    assert all(r.indefinite for r in records(table))
    first = table.images.image_index[0]
    assert f"not positive definite at training image {first} (leading minor 1)" in caplog.text
    stop = prepared(config_path, tmp_path, "columns.*.on_indefinite=stop")
    with pytest.raises(NtkError, match=r"column CNTK-V-20, depth 3: .* leading minor 1 is not positive"):
        solve(stop)


def of_rank_5(pieces):
    """What a store gives, reduced to rank 5 on the images: singular, which rounding hides from LU."""

    def features(self, readout, depth, rows, columns):
        found = np.empty((len(rows), 5))
        for i, j, values in pieces(self, readout, depth, rows, columns[:5]):
            found[np.ix_(i, j)] = values
        return found

    def reduced(self, readout, depth, rows, columns):
        of_rows, of_columns = (features(self, readout, depth, x, columns) for x in (rows, columns))
        yield np.arange(len(rows)), np.arange(len(columns)), of_rows @ of_columns.T

    return reduced


def test_a_solution_with_a_large_residual_is_no_cell_and_fails_again(config_path: Path, tmp_path: Path, monkeypatch):
    table = prepared(config_path, tmp_path)
    monkeypatch.setattr(GramStore, "pieces", of_rank_5(GramStore.pieces))
    advice = r"column CNTK-V-20, depth 3: the solution of draw 0 leaves a residual of .* give the column a ridge"
    with pytest.raises(NtkError, match=advice):
        solve(table)
    with pytest.raises(NtkError, match=advice):
        solve(table_of(config_path, tmp_path))
    results = collect(table).results
    assert {r.column for r in results.records} == {"NNGP-GAP-40"}  # the column with a ridge
    assert {(m.column, m.depth, m.failed) for m in results.missing} == {
        (name, depth, True) for name in ("CNTK-V-20", "CNTK-GAP-40") for depth in (3, 4)
    }
    assert all("residual" in m.needs for m in results.missing)


def test_a_cell_that_cannot_be_solved_stops_no_other(config_path: Path, tmp_path: Path, monkeypatch, caplog):
    def no_time(*_):
        raise NtkError("no time is best")

    monkeypatch.setattr(early_stopping, "stop_early", no_time)
    table = prepared(config_path, tmp_path, "columns.0.early_stopping={}")
    with pytest.raises(NtkError, match="column CNTK-V-20, depth 3: no time is best"):
        solve(table)
    assert "column CNTK-V-20, depth 4: no time is best" in caplog.text
    assert {r.column for r in records(table)} == {"CNTK-GAP-40", "NNGP-GAP-40"}


def test_what_is_solved_is_collected_where_no_backend_runs(config_path: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("exact_ntk.kernels.resolve_backend", lambda *_: "reference-cpu")
        table = prepared(config_path, tmp_path, "gram.backend=reference")
        solve(table)

    def unfit(*args):
        raise ValueError("needs a compiler")

    monkeypatch.setattr("exact_ntk.kernels.resolve_backend", unfit)
    assert records(table_of(config_path, tmp_path)) == records(table)


def test_the_record_says_which_values_served(config_path: Path, tmp_path: Path):
    fill(table_of(config_path, tmp_path, "gram.dtype=float64"))
    table = table_of(config_path, tmp_path)
    solve(table)
    assert {(r.backend, r.dtype) for r in records(table)} == {("reference-cpu", "float64")}


def test_panels_outlive_an_interruption_and_go_once_the_cell_stands(config_path: Path, tmp_path: Path, monkeypatch):
    whole = prepared(config_path, tmp_path / "whole")
    solve(whole)
    table = prepared(config_path, tmp_path / "cut")
    monkeypatch.setattr(plan.SolvePlan, "keeps_files", lambda *_: True)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(stage, "multiply", lambda *_: os.kill(os.getpid(), 2))
        solve(table)
    (kept,) = (tmp_path / "cut" / "solve").glob("*.panels/*")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "keep_record", lambda *_: os.kill(os.getpid(), 2))
        patch.setattr(PanelFiles, "write", None)  # it goes on from what is there
        with contextlib.suppress(KeyboardInterrupt):
            solve(table)
    assert kept.exists()
    assert solve(table) == 8
    assert not list((tmp_path / "cut" / "solve").glob("*.panels"))
    assert records(table) == records(whole)
    left = next((tmp_path / "cut" / "solve").glob("*.json")).with_suffix(".panels")
    left.mkdir()
    assert solve(table) == 0
    assert not left.exists()


def test_the_way_is_said_and_recorded_and_what_cannot_fit_is_refused_with_the_number(
    config_path: Path, tmp_path: Path, caplog
):
    caplog.set_level(logging.INFO, "ntk")
    table = prepared(config_path, tmp_path)
    few = stage.PROGRAM_BYTES + table.images.x.nbytes
    with pytest.raises(NtkError, match=r"column CNTK-V-20, depth 3: a system of 20 images takes .* MB of memory"):
        solve_cells(table.kernel_cells, table.device, few)
    number = re.search(r"--memory is .*, and would have to be (.*)$", caplog.text, re.MULTILINE)
    assert solve_cells(table.kernel_cells, table.device, parse_bytes(number[1], "--memory")) == 8
    assert re.search(
        r"CNTK-V-20: 20 images: 1 panel of .* all in memory beside K, .*; takes .* of .* GFLOP/s", caplog.text
    )
    kept = [read_record(path, SolvedDraw) for path in (tmp_path / "solve").glob("*.json")]
    assert {draw.provenance["factor"] for draw in kept} == {"in memory"}
    assert all(draw.provenance["peak_resident_bytes"] > 50e6 for draw in kept)


def test_a_small_matrix_is_held_with_the_same_bits(config_path: Path, tmp_path: Path, monkeypatch):
    real, read = GramStore._read_tile, []
    monkeypatch.setattr(GramStore, "_read_tile", lambda self, *what: read.append(what) or real(self, *what))
    found = {}
    for name, most in (("held", plan.HELD_BYTES), ("again", 0)):
        monkeypatch.setattr(plan, "HELD_BYTES", most)
        table = prepared(config_path, tmp_path / name, "columns.0.ridge=loo", "columns.0.flips=true")
        read.clear()
        solve(table)
        found[name] = len(read), [kept["alpha"] for cell in table.kernel_cells for kept in cell.arrays()]
    assert all(map(np.array_equal, found["held"][1], found["again"][1]))
    assert found["held"][0] < 0.7 * found["again"][0]  # what is left is mostly of test images


def test_a_disk_without_room_for_panels_is_said_or_refused(config_path: Path, tmp_path: Path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "ntk")
    table = prepared(config_path, tmp_path)
    monkeypatch.setattr(PanelFiles, "space_missing", lambda self: 5_000_000)
    monkeypatch.setattr(plan.SolvePlan, "keeps_files", lambda *_: True)
    assert solve(table) == 8
    assert "not to be resumed: the disk of" in caplog.text
    monkeypatch.setattr(plan.SolvePlan, "in_memory", False)
    with pytest.raises(NtkError, match=r"column .* whose disk lacks 5.0 MB: make room, or give more --memory"):
        solve(prepared(config_path, tmp_path, "columns.*.ridge=0.1"))
