"""compute-gram: what a store holds serves whoever asks for it, and nobody else."""

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from exact_ntk.gram import compute
from exact_ntk.kernels import cntk
from tests.gram.filling import blocks, chunks, filled, same
from tests.made_up import table_of


def test_one_store_a_family_and_the_nngp_rides_along(config_path: Path, tmp_path: Path):
    filled(config_path, tmp_path)
    names = sorted(p.name for p in tmp_path.glob("gram-*/*-L*"))
    assert names == ["gap-L3", "gap-L4", "gap-nngp-L2", "gap-nngp-L3", "vanilla-L3", "vanilla-L4"]
    assert len(list(tmp_path.glob("gram-*"))) == 2


def test_more_depths_later_write_their_own_arrays_alone(config_path: Path, tmp_path: Path):
    filled(config_path, tmp_path, "columns.*.depths=[3]")
    before = chunks(tmp_path)
    table = filled(config_path, tmp_path, "columns.*.depths=[3, 5]")
    after = chunks(tmp_path)
    assert before.items() <= after.items()
    assert {p.parts[-4] for p in after.keys() - before.keys()} == {"vanilla-L5", "gap-L5", "gap-nngp-L5"}
    fresh = filled(config_path, tmp_path / "fresh", "columns.*.depths=[3, 5]")
    assert same(blocks(table), blocks(fresh))


def test_fewer_depths_or_columns_ask_for_nothing(config_path: Path, tmp_path: Path, monkeypatch):
    filled(config_path, tmp_path)
    monkeypatch.setattr(compute, "cntk_pass", None)
    filled(config_path, tmp_path, "columns.*.depths=[3]")
    tree = yaml.safe_load(config_path.read_text())
    config_path.write_text(yaml.safe_dump({**tree, "columns": tree["columns"][:1]}))
    filled(config_path, tmp_path)


def test_nngp_columns_take_any_store_of_the_family(config_path: Path, tmp_path: Path, monkeypatch):
    """Alone, with its own default ends, and beside a CNTK column of other trained ends."""
    tree = yaml.safe_load(config_path.read_text())
    tree["columns"] = [{**tree["columns"][1], "train_last": True}, tree["columns"][2]]
    config_path.write_text(yaml.safe_dump(tree))
    table = filled(config_path, tmp_path)
    assert len(list(tmp_path.glob("gram-*"))) == 1
    config_path.write_text(yaml.safe_dump({**tree, "columns": tree["columns"][1:]}))
    monkeypatch.setattr(compute, "cntk_pass", None)
    alone = filled(config_path, tmp_path)
    assert same(blocks(alone), {key: k for key, k in blocks(table).items() if key.startswith("NNGP")})


def test_local_averages_and_gap_of_the_same_trained_ends_share_a_store(config_path: Path, tmp_path: Path):
    tree = yaml.safe_load(config_path.read_text())
    whole = {"model": "cntk", "readout": "gap", "depths": [3], "train": {"n": 40}}
    windows = [{**whole, "readout": f"lap-{c}"} for c in (1, 2)]
    process = {**windows[0], "model": "nngp"}
    tree["columns"] = [*windows, process, {**whole, "train_first": True, "train_last": True, "name": "GAP-all"}]
    config_path.write_text(yaml.safe_dump(tree))
    table = filled(config_path, tmp_path)
    assert len(list(tmp_path.glob("gram-*"))) == 1
    names = {p.name for p in tmp_path.glob("gram-*/*-L*")}
    assert names == {"lap-1-L3", "lap-2-L3", "lap-1-nngp-L3", "gap-L3"}
    d, x = table.kernel_cells[0].draws[0], table.images.x
    expected = cntk(x[d.train], depths=(3,), readouts=("lap-1", "lap-2"), backend="reference")[:, 0]
    found = blocks(table)
    for name, k in zip(("CNTK-LAP-1-40", "CNTK-LAP-2-40"), expected.numpy(), strict=True):
        np.testing.assert_allclose(found[f"{name}/3/0"][: len(d.train)], k, rtol=1e-6)


def test_a_float64_store_serves_a_float32_request(config_path: Path, tmp_path: Path, monkeypatch):
    filled(config_path, tmp_path, "gram.dtype=float64")
    monkeypatch.setattr(compute, "cntk_pass", None)
    table = filled(config_path, tmp_path)
    sources = {table.shelf.require(request)[0].dtype for request in table.requests(True)}
    assert sources == {"float64"}


def test_a_float32_store_does_not_serve_a_float64_request(config_path: Path, tmp_path: Path):
    filled(config_path, tmp_path)
    table = table_of(config_path, tmp_path, "gram.dtype=float64")
    assert all(table.shelf.look().complete(request) is None for request in table.requests(True))


@pytest.mark.parametrize("whole", [True, False])
def test_a_store_of_another_device_serves_where_it_is_complete(
    config_path: Path, tmp_path: Path, monkeypatch, whole: bool, caplog
):
    caplog.set_level(logging.INFO, "ntk")
    with monkeypatch.context() as patch:
        patch.setattr("exact_ntk.kernels.resolve_backend", lambda *_: "reference-cuda")
        filled(config_path, tmp_path, "gram.backend=auto")
    if not whole:
        for path in tmp_path.glob("gram-*/gap-L3/c/1/0"):
            path.unlink()
    monkeypatch.setattr("exact_ntk.kernels.resolve_backend", lambda *_: "reference-cpu")
    table = filled(config_path, tmp_path, "gram.backend=auto")
    found = {r.column: table.shelf.require(r)[0].backend for r in table.requests(True) if r.array[1] == 3}
    assert found["CNTK-V-20"] == found["NNGP-GAP-40"] == "reference-cuda"
    assert found["CNTK-GAP-40"] == ("reference-cuda" if whole else "reference-cpu")
    assert any("reference-cuda float32" in line and line.endswith("done") for line in caplog.messages)


def test_a_backend_that_is_not_admitted_serves_nothing(config_path: Path, tmp_path: Path, monkeypatch):
    filled(config_path, tmp_path)  # reference-cpu
    monkeypatch.setattr("exact_ntk.kernels.resolve_backend", lambda *_: "fused-cpu")
    table = table_of(config_path, tmp_path, "gram.backend=fused")
    assert all(table.shelf.look().complete(request) is None for request in table.requests(True))


def test_draws_are_planned_one_by_one(config_path: Path, tmp_path: Path, monkeypatch):
    """Two draws lie in another device's store: a third asks for its own tiles alone."""
    with monkeypatch.context() as patch:
        patch.setattr("exact_ntk.kernels.resolve_backend", lambda *_: "reference-cuda")
        filled(config_path, tmp_path, "gram.backend=auto")
    monkeypatch.setattr("exact_ntk.kernels.resolve_backend", lambda *_: "reference-cpu")
    table = filled(config_path, tmp_path, "gram.backend=auto", "columns.0.train.draws=3")
    found = [table.shelf.require(r)[0].backend for r in table.requests(True) if r.column == "CNTK-V-20"]
    assert sorted(found) == ["reference-cpu"] * 2 + ["reference-cuda"] * 4


def test_a_changed_config_opens_a_new_store_and_names_the_old(config_path: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    filled(config_path, tmp_path)
    before = chunks(tmp_path)
    filled(config_path, tmp_path, "order.seed=1")
    assert before.items() <= chunks(tmp_path).items()
    assert "was computed with another images: left as it is" in caplog.text


def test_stores_of_an_earlier_format_are_named_and_passed_over(config_path: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    old = tmp_path / "gram-0123456789abcdef"
    old.mkdir()
    filled(config_path, tmp_path)
    assert "gram-0123456789abcdef is of an earlier format and is left as it is" in caplog.text
    assert list(old.iterdir()) == []


def test_a_run_of_another_name_with_the_same_tiles_is_named(config_path: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    filled(config_path, tmp_path / "old-name")
    filled(config_path, tmp_path / "new-name")
    assert f"{tmp_path}/old-name holds Gram matrices of the same images" in caplog.text


def test_a_cnns_learning_rate_recomputes_no_tile(config_path: Path, tmp_path: Path):
    tree = yaml.safe_load(config_path.read_text())
    tree["columns"].append({"model": "cnn", "readout": "gap", "depths": [3], "train": {"n": 20}})
    config_path.write_text(yaml.safe_dump(tree))
    fields = [
        [r.sources[0].fields for r in table_of(config_path, tmp_path, f"columns.3.lr=[{lr}]").requests()]
        for lr in ("0.1", "0.2")
    ]
    assert fields[0] == fields[1]
