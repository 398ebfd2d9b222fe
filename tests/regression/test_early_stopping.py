"""Early stopping from a Gram store: opt-in, recorded, in the notes, and no part of the cells without it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk.draws import draw
from exact_ntk.errors import ConfigError, NtkError
from exact_ntk.gram.store import GramStore
from exact_ntk.kernels import cntk
from exact_ntk.records import EarlyStopped
from exact_ntk.regression import early_stopping, stage
from exact_ntk.regression.cell import over_draws
from exact_ntk.regression.early_stopping import NoFlow, require_fit, stop_early
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.matrix import Held
from exact_ntk.regression.plan import DoesNotFit, SolvePlan
from exact_ntk.regression.solve import targets
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.report.notes import notes
from exact_ntk.settings import load_config
from exact_ntk.table import Table
from tests.made_up import fill, once_filled, table_of

COLUMN = "CNTK-V-20"


def solved(config_path: Path, folder: Path, *overrides: str) -> tuple[Table, int]:
    table = once_filled(table_of(config_path, folder, *overrides))
    return table, solve_cells(table.kernel_cells, table.device)


def records(table: Table) -> dict:
    return {(r.column, r.depth): r for r in collect(table).results.records}


def test_it_is_gradient_flow_on_what_is_not_held_out(config_path: Path, tmp_path: Path):
    table, _ = solved(config_path, tmp_path, "columns.0.early_stopping.holdout=0.25")
    record, images = records(table)[COLUMN, 4], table.images
    found = [d.early_stopping for d in record.by_draw]
    for k, early in enumerate(found):
        d = draw(images, table.config.columns[0], COLUMN, k)
        held_out, fit = d.train[:5], d.train[5:]
        options = dict(depths=(4,), readouts=("vanilla",), backend="reference")
        k_fit, k_held_out, k_test = (cntk(images.x[s], images.x[fit], **options)[0, 0] for s in (fit, held_out, d.test))
        flow = GradientFlow((k_fit + k_fit.T) / 2, targets(images.y[fit], 10))
        curve = flow.early_stopping(k_held_out, torch.from_numpy(images.y[held_out]))
        assert (early.held_out, early.held_out_at_infinity) == (curve.best_accuracy, float(curve.accuracies[-1]))
        outputs = flow.predict(k_test, curve.best_time)
        assert early.test == pytest.approx(100 * np.mean(outputs.argmax(1).numpy() == images.y[d.test]), abs=3)
        assert early.n_held_out == 5
        assert early.time == pytest.approx(curve.best_time * flow.largest_eigenvalue, rel=0.2)
    assert record.early_stopping.test == pytest.approx(np.mean([e.test for e in found]))
    assert record.early_stopping.held_out >= record.early_stopping.held_out_at_infinity


def test_the_notes_tell_it_for_every_cell_that_has_it(config_path: Path, tmp_path: Path):
    table, _ = solved(config_path, tmp_path, "columns.0.early_stopping={}")
    results = collect(table).results
    lines = [line for line in notes(results) if "held-out training images" in line]
    assert [line.split(":")[0] for line in lines] == [f"{COLUMN} at depth 3", f"{COLUMN} at depth 4"]
    assert "2 held-out" in lines[0]


def test_only_the_columns_that_ask_for_it_are_solved_anew(config_path: Path, tmp_path: Path):
    table, count = solved(config_path, tmp_path)
    assert count == 8
    before = records(table)
    assert all(record.early_stopping is None for record in before.values())
    assert "early_stopping" not in json.dumps(table.config.resolved())
    asked, count = solved(config_path, tmp_path, "columns.0.early_stopping.holdout=0.25")
    assert count == 4
    after = records(asked)
    for key, record in before.items():
        changed = key[0] == COLUMN
        assert (after[key].fingerprint != record.fingerprint) == changed
        assert after[key].accuracy == record.accuracy
        if not changed:
            assert after[key] == record
    assert solved(config_path, tmp_path, "columns.0.early_stopping.holdout=0.3")[1] == 4


def test_a_ridge_is_that_of_the_solve():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((30, 40), generator=generator, dtype=torch.float64)
    k = features @ features.T
    labels = np.arange(30) % 3
    y = targets(labels, 3)
    found = stop_early(Held(k[:20, :20]), Held(k[20:, :20]), labels[:20], labels[20:], y[:20], 0.2, 1000.0)
    k_fit = k[4:20, 4:20] + 1000.0 * k[4:20, 4:20].diagonal().mean() * torch.eye(16, dtype=torch.float64)
    outputs = k[20:, 4:20] @ torch.linalg.solve(k_fit, y[4:20])
    assert found.test_at_infinity == 100 * np.mean(outputs.argmax(1).numpy() == labels[20:])


def test_infinity_is_none_and_the_median_of_times():
    one = EarlyStopped(
        time=3.0, held_out=50.0, held_out_at_infinity=40.0, test=45.0, test_at_infinity=35.0, n_held_out=2
    )
    at_infinity, later = one.model_copy(update={"time": None, "test": 55.0}), one.model_copy(update={"time": 4.0})
    mean = over_draws([one, at_infinity, later])
    assert (mean.time, mean.n_held_out, mean.draws, mean.draws_without_flow) == (4.0, 2, 3, 0)
    assert mean.test == pytest.approx(145 / 3)
    assert over_draws([at_infinity]).time is None
    assert (over_draws([None, one]).draws, over_draws([None, one]).draws_without_flow) == (1, 1)
    assert over_draws([None, None]) is None


def test_mistakes_are_named(config_path: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"columns\.0\.early_stopping\.holdout"):
        load_config(str(config_path), ["columns.0.early_stopping.holdout=1.5"])
    with pytest.raises(ConfigError, match="did you mean holdout"):
        load_config(str(config_path), ["columns.0.early_stopping.holdut=0.5"])
    with pytest.raises(ConfigError, match=f"column {COLUMN}: early_stopping: holdout 0.001 of 20 images leaves none"):
        solved(config_path, tmp_path, "columns.0.early_stopping.holdout=0.001")
    with pytest.raises(ConfigError, match=f"column {COLUMN}: ridge: holdout 0.98 of 20 images leaves none"):
        solved(config_path, tmp_path, "columns.0.ridge={select: holdout, holdout: 0.98}")
    assert not list(tmp_path.glob("gram-*"))


def test_a_matrix_without_a_flow_keeps_its_regression(config_path: Path, tmp_path: Path, monkeypatch, caplog):
    def negative(self, readout, depth, rows, columns):
        yield np.arange(len(rows)), np.arange(len(columns)), -np.equal.outer(rows, columns).astype(float)

    monkeypatch.setattr(GramStore, "pieces", negative)
    table, _ = solved(config_path, tmp_path, "columns.0.early_stopping={}")
    results = collect(table).results
    record = results.cell(COLUMN, 4)
    assert record.indefinite
    assert record.early_stopping is None
    assert "no early stopping: k_train must have a positive eigenvalue" in caplog.text
    assert f"{COLUMN} at depth 4: no early stopping: gradient flow diverges on every draw" in "\n".join(notes(results))


def test_draws_without_a_flow_are_counted(config_path: Path, tmp_path: Path, monkeypatch):
    real, calls = early_stopping.stop_early, []

    def every_other(*arguments):
        calls.append(1)
        if len(calls) % 2:
            raise NoFlow("k_train has the eigenvalue -1")
        return real(*arguments)

    monkeypatch.setattr(early_stopping, "stop_early", every_other)
    table, _ = solved(config_path, tmp_path, "columns.0.early_stopping={}")
    results = collect(table).results
    stopped = results.cell(COLUMN, 3).early_stopping
    assert (stopped.draws, stopped.draws_without_flow) == (1, 1)
    assert "1 of 2 draws have no gradient flow and are left out" in "\n".join(notes(results))


def test_what_cannot_fit_is_refused_before_anything_is_solved(config_path: Path, tmp_path: Path, monkeypatch):
    require_fit(40, 0.25, 0, 8 * 3 * 30 * 30)
    with pytest.raises(DoesNotFit, match=r"early_stopping: the eigendecomposition of 30 images takes 0\.1 MB") as error:
        require_fit(40, 0.25, 0, 8 * 3 * 30 * 30 - 7)
    assert error.value.missing == 7
    require_fit(40, 0.75, 0, 8 * 10 * 70)
    with pytest.raises(DoesNotFit):
        require_fit(40, 0.75, 0, 8 * 10 * 70 - 1)
    monkeypatch.setattr(stage, "plan_solve", lambda *_: SolvePlan(40, (range(1),), 0, 0))
    monkeypatch.setattr(stage, "kernel_regression", None)
    table = table_of(config_path, tmp_path, "columns.0.early_stopping={}")
    fill(table, every=False)
    with pytest.raises(NtkError, match=r"column CNTK-V-20, depth 3: early_stopping: .* would have to be"):
        solve_cells(table.kernel_cells[:1], table.device, 1)


def test_a_negative_eigenvalue_is_no_flow():
    k = torch.diag(torch.tensor([2.0, 1.0, -0.5, 1.0], dtype=torch.float64))
    labels = np.array([0, 1, 0, 1])
    with pytest.raises(NoFlow, match="eigenvalue"):
        stop_early(Held(k), Held(k), labels, labels, targets(labels, 2), 0.25, 0.0)
