"""train-cnn: which runs a cell needs, that none is trained twice, and what its record says."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from exact_ntk.errors import ConfigError, NtkError, StoreError
from exact_ntk.locks import try_lock
from exact_ntk.networks import cost, lr, stage, training
from exact_ntk.networks.cell import ALL, FIT, RunKey
from exact_ntk.networks.stage import Only, train_cells
from exact_ntk.networks.training import TrainingRun
from exact_ntk.report.collect import collect
from exact_ntk.standard_error import standard_error
from exact_ntk.table import Table
from tests.made_up import table_of

CPU = torch.device("cpu")


@pytest.fixture
def cnn_config(tmp_path: Path, npz: Path) -> Path:
    path = tmp_path / "cnn.yaml"
    column = {
        **{"model": "cnn", "readout": "gap", "depths": [3], "train": {"n": 30}, "test": {"from": "test", "n": 20}},
        **{"width": 6, "seeds": 2, "epochs": 3, "settle": 2, "batch_size": 10, "lr": [0.25]},
    }
    tree = {"name": "nets", "data": {"dataset": "npz", "path": str(npz)}, "columns": [column]}
    path.write_text(yaml.safe_dump(tree))
    return path


def prepared(path: Path, folder: Path, *overrides: str) -> Table:
    return table_of(path, folder, *overrides)


def train(table: Table, only: Only | None = None) -> int:
    return train_cells(table.network_cells, table.device, only)


def runs_on_disk(folder: Path, part: str = "all") -> list[str]:
    return sorted(p.name for p in (folder / "cnn").glob(f"*-{part}-s*.json"))


def test_a_cell_is_the_mean_over_its_seeds(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path)
    assert train(table) == 2
    found = collect(table)
    (record,) = found.results.records
    assert record.accuracy == pytest.approx(np.mean([r.accuracy for r in record.runs]))
    assert record.std == pytest.approx(np.std([r.accuracy for r in record.runs], ddof=1))
    assert (record.seeds, record.n_train, record.n_test) == (2, 30, 20)
    assert (record.lr_rule, record.lr_share) == ("single", pytest.approx(0.25))
    assert all(len(r.history.test_accuracy) == r.epochs for r in record.runs)
    (provenance,) = found.provenance["cells"].values()
    for run in provenance["runs"]:
        assert run["seconds"] >= run["train_seconds"] > 0
        assert run["flops_per_second"] == pytest.approx(
            run["images_per_second"] * run["training_flops_per_image"], rel=1e-3
        )


def test_no_run_is_trained_twice_and_only_what_changed_anew(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path)
    train(table)
    assert train(table) == 0
    more_seeds = prepared(cnn_config, tmp_path, "columns.0.seeds=3")
    assert train(more_seeds) == 1
    other = prepared(cnn_config, tmp_path, "columns.0.lr=[0.1]")
    assert train(other) == 2


def test_the_rate_is_chosen_on_held_out_training_images(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path, "columns.0.lr=[0.001, 0.25]", "columns.0.epochs=15", "columns.0.holdout=0.3")
    assert train(table) == 2 + 2
    assert len(runs_on_disk(tmp_path, "fit")) == 2
    (cell,) = table.network_cells
    assert not set(cell.fit) & set(cell.held_out)
    assert set(cell.fit) | set(cell.held_out) == set(cell.draw.train)
    scores = {lr: cell.trained(RunKey(lr, 0, FIT)).result.accuracy for lr in (0.001, 0.25)}
    record = cell.record()[0]
    assert record.lr_rule == "holdout"
    assert record.lr_share == pytest.approx(max(scores, key=scores.get))


def test_the_papers_rule_uses_every_run_and_is_marked(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path, "columns.0.lr=[0.01, 0.25]", "columns.0.select=test")
    assert train(table) == 4
    (cell,) = table.network_cells
    means = {lr: np.mean([cell.trained(RunKey(lr, s, ALL)).result.accuracy for s in range(2)]) for lr in (0.01, 0.25)}
    record = cell.record()[0]
    assert record.lr_rule == "test"
    assert record.accuracy == pytest.approx(max(means.values()))


def test_a_diverging_rate_is_said_reported_and_averaged_into_nothing(cnn_config: Path, tmp_path: Path, caplog):
    table = prepared(cnn_config, tmp_path, "columns.0.lr=[0.25, 1000.0]", "columns.0.holdout=0.3")
    train(table)
    assert any("lr" in line and "diverged in epoch" in line for line in caplog.messages)
    (record,) = collect(table).results.records
    assert record.lr_share == pytest.approx(0.25)
    assert [d.lr_share for d in record.diverged] == [pytest.approx(1000)]


def test_the_error_of_a_cell_is_that_of_its_images_and_seeds(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path, "columns.0.seeds=3")
    train(table)
    (cell,) = table.network_cells
    runs = [cell.trained(RunKey(0.25, seed, ALL)) for seed in range(3)]
    for run in runs:
        assert 100 * np.mean(run.right) == pytest.approx(run.result.accuracy)
    scores = [np.array(run.right) for run in runs]
    expected = standard_error([cell.draw.test] * 3, scores)
    assert cell.record()[0].standard_error == expected > 0


def test_a_cell_is_named_by_how_its_rate_was_chosen_too(cnn_config: Path, tmp_path: Path):
    names = set()
    for rates, holdout in ([0.25], 0.3), ([0.25, 1000.0], 0.3), ([0.25, 1000.0], 0.4):
        table = prepared(cnn_config, tmp_path, f"columns.0.lr={rates}", f"columns.0.holdout={holdout}")
        train(table)
        (cell,) = table.network_cells
        record = cell.record()[0]
        assert record.lr_share == pytest.approx(0.25)
        names.add(record.fingerprint)
    assert len(names) == 3


def test_a_network_dead_at_initialisation_costs_its_own_cell_alone(
    cnn_config: Path, tmp_path: Path, monkeypatch, caplog
):
    table = prepared(cnn_config, tmp_path, "columns.0.depths=[3, 4]")
    alive = training.build_network

    def dead_at_depth_3(setting, data):
        net = alive(setting, data)
        if setting.depth == 3:
            with torch.no_grad():
                net.convolutions[0].zero_()
        return net

    monkeypatch.setattr(training, "build_network", dead_at_depth_3)
    assert train(table) == 4
    found = collect(table).results
    assert [r.depth for r in found.records] == [4]
    (missing,) = found.missing
    assert missing.depth == 3
    assert "ReLUs are dead" in missing.needs
    assert "depth 3: the gradient at initialisation is 0" in caplog.text
    assert train(table) == 0


def test_what_killed_writers_left_is_removed(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path)
    (cell,) = table.network_cells
    record = cell.path(RunKey(0.25, 0, ALL))
    record.parent.mkdir(parents=True)
    for path in (record, record.with_suffix(".pt")):
        (record.parent / f".{path.name}.x1y2.partial").write_bytes(b"half")
    other = record.parent / ".other.json.x1y2.partial"
    other.write_bytes(b"of another process at work")
    train(table)
    assert list(record.parent.glob(".*.partial")) == [other]


def test_where_every_rate_diverges_the_cell_says_so(cnn_config: Path, tmp_path: Path, caplog):
    table = prepared(cnn_config, tmp_path, "columns.0.lr=[1.0e+4]")
    train(table)
    found = collect(table).results
    assert found.records == []
    assert "every run at the chosen learning rate diverged" in found.missing[0].needs
    assert "every run at the chosen learning rate diverged" in caplog.text


def test_absolute_rates_are_taken_as_they_are(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path, "columns.0.lr=[0.01]", "columns.0.lr_unit=absolute")
    train(table)
    (record,) = collect(table).results.records
    assert (record.lr, record.lr_unit) == (0.01, "absolute")
    assert "summed over outputs, mean over the batch" in record.loss


def test_only_the_runs_asked_for_are_trained(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path, "columns.0.depths=[3, 4]")
    only = Only.parse("CNN-GAP-30/4", 0.25, 1, table.network_cells)
    assert train(table, only) == 1
    (name,) = runs_on_disk(tmp_path)
    assert name.startswith("gap-L4-w6-lr0.25-all-s1-")


@pytest.mark.parametrize(
    "only, lr, seed, words",
    [
        ("CNN-V", None, None, "no such CNN column; there is CNN-GAP-30"),
        ("CNN-GAP-30/9", None, None, "no depth 9"),
        (None, 7.0, None, "not among"),
        (None, None, 5, "seeds run from 0 to 1"),
    ],
)
def test_a_filter_that_fits_nothing_is_refused(cnn_config: Path, tmp_path: Path, only, lr, seed, words: str):
    with pytest.raises(ConfigError, match=words):
        Only.parse(only, lr, seed, prepared(cnn_config, tmp_path).network_cells)


def test_an_unwritable_folder_and_too_small_a_holdout_are_named(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path)
    (tmp_path / "cnn").write_text("")
    with pytest.raises(NtkError, match=r"cannot write .*/cnn"):
        train(table)
    table = prepared(cnn_config, tmp_path, "columns.0.lr=[0.1, 0.2]", "columns.0.holdout=0.001")
    with pytest.raises(ConfigError, match="holdout"):
        train(table)


def test_a_checkpoint_of_another_config_is_named_with_what_differs(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path)
    other = prepared(cnn_config, tmp_path, "columns.0.momentum=0.9")
    (cell,), (another,) = (t.network_cells for t in (table, other))
    path = cell.path(RunKey(0.25, 0, ALL)).with_suffix(".pt")
    path.parent.mkdir()
    TrainingRun(another.setting(1.0, 0), another.data(ALL, CPU), another.fields(RunKey(0.25, 0, ALL))).save(path)
    with pytest.raises(StoreError, match=rf"{path}: delete it .* another momentum"):
        train(table)


def test_every_width_is_a_cell_of_its_own(cnn_config: Path, tmp_path: Path):
    table = prepared(cnn_config, tmp_path, "columns.0.width=[4, 6]", "columns.0.seeds=1")
    assert train(table, Only.parse("CNN-GAP-30-w6", None, None, table.network_cells)) == 1
    assert train(table) == 1
    narrow, wide = collect(table).results.records
    assert [(r.column, r.width) for r in (narrow, wide)] == [("CNN-GAP-30-w4", 4), ("CNN-GAP-30-w6", 6)]
    assert narrow.parameters == 9 * (4 + 4 * 4) + 4 * 10
    assert narrow.lr != wide.lr


def test_a_second_width_or_a_new_name_retrains_nothing(cnn_config: Path, tmp_path: Path):
    """Networks that share a name add their width to it, once there are several."""
    assert train(prepared(cnn_config, tmp_path)) == 2
    assert train(prepared(cnn_config, tmp_path, "columns.0.width=[6, 4]")) == 2
    assert train(prepared(cnn_config, tmp_path, "columns.0.name=another")) == 0


def test_a_run_that_another_process_holds_is_left_to_it_and_waited_for(cnn_config: Path, tmp_path: Path, monkeypatch):
    table = prepared(cnn_config, tmp_path)
    (cell,) = table.network_cells
    held = cell.path(RunKey(0.25, 0, ALL))
    looks: list[float] = []
    other = try_lock(held.with_suffix(".lock"))

    def look(seconds: float) -> None:
        looks.append(seconds)
        assert len(runs_on_disk(tmp_path)) == 1
        other.release()

    monkeypatch.setattr(stage.time, "sleep", look)
    assert train(table) == 2
    assert len(looks) == 1
    assert len(runs_on_disk(tmp_path)) == 2


SCRIPT = """
import sys
from pathlib import Path
import torch
from exact_ntk.networks.stage import train_cells
from tests.made_up import table_of
torch.set_num_threads(1)
table = table_of(sys.argv[1], Path(sys.argv[2]), "columns.0.seeds=6")
print(train_cells(table.network_cells, table.device))
"""


def test_two_processes_share_a_sweep(cnn_config: Path, tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT, str(cnn_config), str(tmp_path / "shared")]
    root = Path(__file__).parents[2]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    trained = [int(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(trained) == 6
    together, apart = (prepared(cnn_config, tmp_path / name, "columns.0.seeds=6") for name in ("shared", "alone"))
    assert train(together) == 0
    assert train(apart, Only(seed=4)) == 1
    (shared,), (alone,) = together.network_cells, apart.network_cells
    one, other = (cell.trained(RunKey(0.25, 4, ALL)) for cell in (alone, shared))
    # Another number of threads, hence other rounding: a step or two of three epochs on 30 images.
    assert one.result.history.loss == pytest.approx(other.result.history.loss, rel=1e-3)
    assert one.result.accuracy == pytest.approx(other.result.accuracy, abs=5)
    assert one.lr == other.lr


def test_a_device_too_small_is_told_what_would_fit(cnn_config: Path, tmp_path: Path, monkeypatch):
    table = prepared(cnn_config, tmp_path)
    (cell,) = table.network_cells
    setting, data = cell.setting(1.0, 0), cell.data(ALL, CPU)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def memory_of(batch: int) -> int:
        return cost.training_bytes(cost.make_network(setting, data), replace(setting, batch_size=batch), data)

    monkeypatch.setattr(cost, "EVALUATE_AT_ONCE", 1)
    for name in ("measure_cost", "train"):
        for memory, fits in [(memory_of(4), "about 4 would fit"), (memory_of(1) - 1, "none would fit")]:
            device = SimpleNamespace(total_memory=memory / stage.FITS)
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, device=device: device)
            with monkeypatch.context() as patch:
                patch.setattr(stage, name, full)
                with pytest.raises(NtkError, match=f"CNN-GAP-30/3: batches of 10 images do not fit .*: {fits}"):
                    train(table)


def test_a_search_that_does_not_fit_is_told_apart(cnn_config: Path, tmp_path: Path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(stage, "measure_rate_search", full)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**31))
    with pytest.raises(NtkError, match=r"the search for .* the memory of cpu, 2 GiB: lower width, or give abs"):
        train(prepared(cnn_config, tmp_path))


def test_absolute_rates_need_no_search(cnn_config: Path, tmp_path: Path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "ntk")
    assert train(prepared(cnn_config, tmp_path / "shares", "columns.0.seeds=1")) == 1
    assert "to find the largest stable learning rate" in caplog.messages[0]
    caplog.clear()
    monkeypatch.setattr(lr, "largest_stable_lr", None)
    options = ["columns.0.seeds=1", "columns.0.lr=[0.01]", "columns.0.lr_unit=absolute"]
    table = prepared(cnn_config, tmp_path / "absolute", *options)
    assert train(table) == 1
    assert "to find" not in caplog.messages[0]
    (record,) = collect(table).results.records
    assert record.lr_share is None
    assert not list(tmp_path.glob("absolute/cnn/*lr_max*"))


def test_the_cost_is_said_before_anything_is_trained(cnn_config: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    table = prepared(cnn_config, tmp_path)
    train(table)
    said = caplog.messages
    assert said[0].startswith("CNN-GAP-30/3: 2 runs of 30 images and at most 3 epochs; ")
    assert all(word in said[0] for word in ("parameters", "FLOP", "images/s", "MiB"))
    assert "in all" in said[1]
    caplog.clear()
    train(table)
    assert caplog.messages == []
