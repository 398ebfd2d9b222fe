"""compute-gram: any tiling, order, interruption or number of processes gives the same values, and no tile twice."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from exact_ntk.errors import ConfigError, Incomplete, StoreError
from exact_ntk.gram import fill as filling
from exact_ntk.gram.store import GramStore
from exact_ntk.kernels import cntk
from exact_ntk.provenance import read_provenance
from exact_ntk.regression.stage import solve_cells
from exact_ntk.table import Table
from tests.made_up import fill, table_of


def filled(config_path: Path, folder: Path, *overrides: str, **options) -> Table:
    table = table_of(config_path, folder, *overrides)
    fill(table, **options)
    return table


def blocks(table: Table) -> dict[str, np.ndarray]:
    """Everything the columns read."""
    out = {}
    for cell in table.kernel_cells:
        _, store = table.shelf.require(cell.request(list(range(len(cell.draws)))))
        for k, d in enumerate(cell.draws):
            rows = np.concatenate([d.train, d.test])
            out[f"{cell.name}/{cell.depth}/{k}"] = store.read(*cell.array, rows, d.train)
    return out


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def chunks(folder: Path) -> dict[Path, int]:
    """Finished chunks and when each was written."""
    return {p: p.stat().st_mtime_ns for p in folder.glob("gram-*/*-L*/c/*/*") if p.name.isdigit()}


def test_the_store_holds_the_kernel_of_the_images(config_path: Path, tmp_path: Path):
    table = filled(config_path, tmp_path / "run", "gram.dtype=float64")
    found = blocks(table)
    for cell in table.kernel_cells:
        for k, d in enumerate(cell.draws):
            x = table.images.x[np.concatenate([d.train, d.test])]
            readout, depth = cell.array
            truth = cntk(x, table.images.x[d.train], depths=(depth,), readouts=(readout,), dtype=torch.float64)[0, 0]
            np.testing.assert_allclose(found[f"{cell.name}/{depth}/{k}"], truth, rtol=1e-12)


@pytest.mark.parametrize("tile", [7, 90])
def test_tile_size_does_not_matter(config_path: Path, tmp_path: Path, tile: int):
    one = blocks(filled(config_path, tmp_path / "a", "gram.dtype=float64"))
    other = blocks(filled(config_path, tmp_path / "b", "gram.dtype=float64", f"gram.tile={tile}"))
    for key in one:
        np.testing.assert_allclose(other[key], one[key], rtol=1e-13)


def test_one_store_a_family_and_the_nngp_rides_along(config_path: Path, tmp_path: Path):
    filled(config_path, tmp_path)
    names = sorted(p.name for p in tmp_path.glob("gram-*/*-L*"))
    assert names == ["gap-L3", "gap-L4", "gap-nngp-L2", "gap-nngp-L3", "vanilla-L3", "vanilla-L4"]
    assert len(list(tmp_path.glob("gram-*"))) == 2


def test_a_tile_is_one_pass_for_all_that_read_it(config_path: Path, tmp_path: Path, monkeypatch):
    passes = []
    real = filling.cntk_pass

    def counted(x1, x2, job, **options):
        passes.append((job.family, job.depths, job.readouts))
        return real(x1, x2, job, **options)

    monkeypatch.setattr(filling.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(filling, "cntk_pass", counted)
    table = filled(config_path, tmp_path)
    tiles = {(p.parts[-5], p.parts[-2], p.parts[-1]) for p in chunks(tmp_path)}
    assert len(passes) == len(tiles)
    assert set(passes) == {("vanilla", (3, 4), ("vanilla",)), ("gap", (2, 3, 4), ("gap", "gap-nngp"))}
    assert fill(table) == 0
    assert len(passes) == len(tiles)


def test_only_missing_tiles_are_computed_again_with_the_same_bits(config_path: Path, tmp_path: Path):
    table = filled(config_path, tmp_path)
    before, kept = blocks(table), chunks(tmp_path)
    gone = sorted(kept)[1::2]
    for path in gone:
        path.unlink()
        del kept[path]
    with pytest.raises(Incomplete, match="are missing in"):
        blocks(table)
    fill(table)
    assert same(before, blocks(table))
    assert kept.items() <= chunks(tmp_path).items()
    assert set(gone) <= set(chunks(tmp_path))


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
    monkeypatch.setattr(filling, "cntk_pass", None)
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
    monkeypatch.setattr(filling, "cntk_pass", None)
    alone = filled(config_path, tmp_path)
    assert same(blocks(alone), {key: k for key, k in blocks(table).items() if key.startswith("NNGP")})


def test_a_float64_store_serves_a_float32_request(config_path: Path, tmp_path: Path, monkeypatch):
    filled(config_path, tmp_path, "gram.dtype=float64")
    monkeypatch.setattr(filling, "cntk_pass", None)
    table = filled(config_path, tmp_path)
    sources = {table.shelf.require(request)[0].dtype for request in table.requests(True)}
    assert sources == {"float64"}


def test_a_float32_store_does_not_serve_a_float64_request(config_path: Path, tmp_path: Path):
    filled(config_path, tmp_path)
    table = table_of(config_path, tmp_path, "gram.dtype=float64")
    assert all(table.shelf.complete(request) is None for request in table.requests(True))


def test_values_are_rounded_to_float32_where_that_is_asked_for_and_only_there(
    config_path: Path, tmp_path: Path, monkeypatch
):
    rounded = filled(config_path, tmp_path / "float32", "gram.store=float32")
    table = filled(config_path, tmp_path / "float64")
    for key, k in blocks(table).items():
        np.testing.assert_array_equal(blocks(rounded)[key], k.astype(np.float32))
        assert blocks(rounded)[key].dtype == np.float64
    sizes = [sum(p.stat().st_size for p in (tmp_path / f).glob("gram-*/*/c/1/0")) for f in ("float32", "float64")]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.05)
    asked = table_of(config_path, tmp_path / "float32")
    assert all(asked.shelf.complete(request) is None for request in asked.requests(True))
    monkeypatch.setattr(filling, "cntk_pass", None)
    served = filled(config_path, tmp_path / "float64", "gram.store=float32")
    assert {served.shelf.require(request)[0].stored for request in served.requests(True)} == {"float64"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_store_of_another_device_serves_where_it_is_complete(
    config_path: Path, tmp_path: Path, monkeypatch, whole: bool, caplog
):
    caplog.set_level(logging.INFO, "ntk")
    with monkeypatch.context() as patch:
        patch.setattr("exact_ntk.table.resolve_backend", lambda *_: "reference-cuda")
        filled(config_path, tmp_path, "gram.backend=auto")
    if not whole:
        for path in tmp_path.glob("gram-*/gap-L3/c/1/0"):
            path.unlink()
    monkeypatch.setattr("exact_ntk.table.resolve_backend", lambda *_: "reference-cpu")
    table = filled(config_path, tmp_path, "gram.backend=auto")
    found = {r.column: table.shelf.require(r)[0].backend for r in table.requests(True) if r.array[1] == 3}
    assert found["CNTK-V-20"] == found["NNGP-GAP-40"] == "reference-cuda"
    assert found["CNTK-GAP-40"] == ("reference-cuda" if whole else "reference-cpu")
    assert any("reference-cuda float32" in line and line.endswith("done") for line in caplog.messages)


def test_a_backend_that_is_not_admitted_serves_nothing(config_path: Path, tmp_path: Path, monkeypatch):
    filled(config_path, tmp_path)  # reference-cpu
    monkeypatch.setattr("exact_ntk.table.resolve_backend", lambda *_: "fused-cpu")
    table = table_of(config_path, tmp_path, "gram.backend=fused")
    assert all(table.shelf.complete(request) is None for request in table.requests(True))


def test_draws_are_planned_one_by_one(config_path: Path, tmp_path: Path, monkeypatch):
    """Two draws lie in another device's store: a third asks for its own tiles alone."""
    with monkeypatch.context() as patch:
        patch.setattr("exact_ntk.table.resolve_backend", lambda *_: "reference-cuda")
        filled(config_path, tmp_path, "gram.backend=auto")
    monkeypatch.setattr("exact_ntk.table.resolve_backend", lambda *_: "reference-cpu")
    table = filled(config_path, tmp_path, "gram.backend=auto", "columns.0.train.draws=3")
    found = [table.shelf.require(r)[0].backend for r in table.requests(True) if r.column == "CNTK-V-20"]
    assert sorted(found) == ["reference-cpu"] * 2 + ["reference-cuda"] * 4


def test_a_damaged_tile_of_a_store_of_other_arithmetic_is_mended_there(config_path: Path, tmp_path: Path, caplog):
    filled(config_path, tmp_path, "gram.dtype=float64")
    victim = next(iter(sorted(tmp_path.glob("gram-*/vanilla-L4/c/1/0"))))
    victim.write_bytes(victim.read_bytes()[:100])
    table = table_of(config_path, tmp_path)
    fill(table, repair=True)
    assert len(list(tmp_path.glob("gram-*-*"))) == 2
    assert {table.shelf.require(r)[0].dtype for r in table.requests(True)} == {"float64"}


def test_repair_computes_nothing_that_was_not_there(config_path: Path, tmp_path: Path):
    table = filled(config_path, tmp_path)
    solve_cells(table.kernel_cells, table.device)
    shutil.rmtree(next(tmp_path.glob("gram-*/vanilla-L3")).parent)
    victim = next(iter(sorted(tmp_path.glob("gram-*/gap-L4/c/1/0"))))
    victim.write_bytes(victim.read_bytes()[:100])
    before = chunks(tmp_path)
    fill(table_of(config_path, tmp_path), every=False, repair=True)
    assert {p for p, t in chunks(tmp_path).items() if before.get(p) != t} == {victim}


def test_metadata_that_cannot_be_read_cost_no_tile(config_path: Path, tmp_path: Path):
    filled(config_path, tmp_path)
    before = chunks(tmp_path)
    lost = next(tmp_path.glob("gram-*/vanilla-L3/zarr.json"))
    lost.write_text("")
    with pytest.raises(StoreError, match=r"delete its zarr\.json to have that written anew"):
        fill(table_of(config_path, tmp_path), repair=True)
    assert chunks(tmp_path) == before
    lost.unlink()
    fill(table_of(config_path, tmp_path), repair=True)
    assert chunks(tmp_path) == before


def test_small_columns_come_first(config_path: Path, tmp_path: Path):
    table = table_of(config_path, tmp_path)
    assert [r.column for r in table.requests(True)] == [
        *["CNTK-V-20"] * 4,
        *["CNTK-GAP-40"] * 2,
        *["NNGP-GAP-40"] * 2,
    ]
    first = [r for r in table.requests(True) if r.column == "CNTK-V-20"]
    fill(table, first)
    assert {p.parts[-4] for p in chunks(tmp_path)} == {"vanilla-L3", "vanilla-L4"}


def test_a_tile_that_two_columns_read_is_computed_for_both(config_path: Path, tmp_path: Path):
    """The first column alone is filled, but its tiles get the other column's depth in the same pass."""
    tree = yaml.safe_load(config_path.read_text())
    small = {"model": "cntk", "readout": "vanilla", "depths": [3], "train": {"n": 20}}
    tree["columns"] = [small, {**small, "depths": [3, 6], "train": {"n": 40}}]
    config_path.write_text(yaml.safe_dump(tree))
    table = table_of(config_path, tmp_path)
    fill(table, [r for r in table.requests() if r.column == "CNTK-V-20"])
    tiles = {depth: {p.parts[-2:] for p in tmp_path.glob(f"gram-*/vanilla-L{depth}/c/*/*")} for depth in (3, 6)}
    assert tiles[3] == tiles[6]
    assert ("4", "4") not in tiles[3]


def test_shards_share_the_work_and_leave_the_rest(config_path: Path, tmp_path: Path):
    table = table_of(config_path, tmp_path)
    left = [fill(table, shard=(k, 3)) for k in (1, 2, 3)]
    assert left[0] > left[1] > left[2] == 0
    assert same(blocks(table), blocks(filled(config_path, tmp_path / "whole")))


def test_hosts_whose_needs_differ_leave_no_tile_to_nobody(config_path: Path, tmp_path: Path):
    """One host has another config of the same images: it asks for less, and starts later."""
    filled(config_path, tmp_path, shard=(1, 2))
    filled(config_path, tmp_path, "columns.0.train.draws=1", "columns.*.depths=[3]", shard=(2, 2))
    table = filled(config_path, tmp_path, shard=(2, 2))
    assert same(blocks(table), blocks(filled(config_path, tmp_path / "whole")))


def test_what_was_done_is_recorded_also_when_the_work_ends_early(config_path: Path, tmp_path: Path, monkeypatch):
    block, left = filling.TileComputer.block, [20]

    def failing(self, rows, columns, arrays):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the power went")
        return block(self, rows, columns, arrays)

    monkeypatch.setattr(filling.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(filling.TileComputer, "block", failing)
    with pytest.raises(RuntimeError, match="power"):
        filled(config_path, tmp_path / "run")
    found = read_provenance(tmp_path / "run").values()
    assert sum(facts["tiles_computed"] for facts in found) == 20
    assert all(facts["seconds"] >= 0 and facts["device_type"] == "cpu" for facts in found)


FEW = ["columns.*.depths=[3]", "gram.tile=13"]


def test_a_process_that_waits_for_another_holds_no_tile(config_path: Path, tmp_path: Path, monkeypatch):
    """Else two that have each computed what the other waits for would wait for ever."""
    table = table_of(config_path, tmp_path, *FEW)
    whole = filled(config_path, tmp_path / "whole", *FEW)
    real, other = GramStore.claim, []
    looks = []

    def claim(self, tile):
        if not other:
            other.append((self, tile, real(self, tile)))
        return real(self, tile)

    def look(seconds: float) -> None:
        looks.append(seconds)
        monkeypatch.setattr(GramStore, "claim", real)
        held, first, lock = other[0]
        tiles = {tuple(map(int, p.parts[-2:])) for p in (tmp_path / "whole").glob(f"{held.path.name}/*/c/*/*")}
        assert len(tiles) > 1
        for tile in tiles - {first}:
            mine = held.claim(tile)
            assert mine is not None, tile
            mine.release()
        lock.release()

    monkeypatch.setattr(GramStore, "claim", claim)
    monkeypatch.setattr(filling.time, "sleep", look)
    fill(table)
    assert len(looks) == 1
    assert same(blocks(table), blocks(whole))


def test_tiles_in_flight_are_written_only_when_they_have_been_computed(config_path: Path, tmp_path: Path, monkeypatch):
    """A device that takes a while: at most one tile waits behind the one at work, and several are written at once."""
    begun, on_host, most = [], set(), [0]

    class Late(filling._Copy):
        def __init__(self, values):
            super().__init__(values)
            begun.append(self)
            most[0] = max(most[0], len(begun) - len(on_host))

        def done(self):
            return self in on_host

        def numpy(self):
            assert self in on_host
            return super().numpy()

    def some_time(seconds: float) -> None:
        on_host.add(begun[len(on_host)])

    class Bar(nullcontext):
        def set_postfix_str(self, text: str, refresh: bool) -> None:
            said = int(text.split(" entry-layers/s, ")[1].split()[0])
            assert 0 < said <= len(chunks(tmp_path))  # what is shown as done is on the disk

        def update(self, pairs: int) -> None:
            shown.append(pairs)

    shown: list[int] = []
    monkeypatch.setattr(filling._Filling, "bar", Bar())
    monkeypatch.setattr(filling, "_Copy", Late)
    monkeypatch.setattr(filling.time, "sleep", some_time)
    table = table_of(config_path, tmp_path, *FEW)
    monkeypatch.setattr(filling._Filling, "on_gpu", True)
    fill(table)
    assert most == [1 + filling.COMPUTED_AHEAD]
    assert len(shown) == len(begun)
    monkeypatch.undo()
    assert same(blocks(table), blocks(filled(config_path, tmp_path / "whole", *FEW)))


@pytest.mark.parametrize("failing", ["compute", "write"])
def test_an_error_with_tiles_in_flight_loses_none_that_was_computed(
    config_path: Path, tmp_path: Path, monkeypatch, failing: str
):
    real_block, real_write, calls = filling.TileComputer.block, GramStore.write, []

    def count(error: type[Exception]) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise error("the power went")

    def block(self, rows, columns, arrays):
        if failing == "compute":
            count(RuntimeError)
        return real_block(self, rows, columns, arrays)

    def write(self, tile, values):
        if failing == "write":
            count(OSError)
        real_write(self, tile, values)

    with monkeypatch.context() as patch:
        patch.setattr(filling.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
        patch.setattr(filling.TileComputer, "block", block)
        patch.setattr(GramStore, "write", write)
        patch.setattr(filling._Filling, "on_gpu", True)
        with pytest.raises((RuntimeError, OSError), match="power"):
            filled(config_path, tmp_path, *FEW)
    done = chunks(tmp_path)
    assert len({(p.parts[-2], p.parts[-1]) for p in done}) >= 4
    table = filled(config_path, tmp_path, *FEW)  # no lock is left held
    assert done.items() <= chunks(tmp_path).items()
    assert same(blocks(table), blocks(filled(config_path, tmp_path / "whole", *FEW)))


def test_out_of_memory_halves_the_block_and_changes_no_value(config_path: Path, tmp_path: Path, monkeypatch, caplog):
    real, sides = filling.cntk_pass, []

    def short_of_memory(x1, x2, job, **options):
        sides.append(max(len(x1), len(x1 if x2 is None else x2)))
        if sides[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(x1, x2, job, **options)

    # Values of the reference depend on the block by a rounding error: float64 and a bound on that.
    options = ["gram.dtype=float64", "gram.tile=13", "columns.*.depths=[3]"]
    monkeypatch.setattr(filling.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(filling, "cntk_pass", short_of_memory)
    found = blocks(filled(config_path, tmp_path / "short", *options))
    assert "out of memory for a block of 13 x 13 images: going on in blocks of 7 x 7" in caplog.text
    assert caplog.text.count("out of memory") == 2 * 2  # once a size, of two families
    monkeypatch.setattr(filling, "cntk_pass", real)
    expected = blocks(filled(config_path, tmp_path / "whole", *options))
    for key, k in expected.items():
        np.testing.assert_allclose(found[key], k, rtol=1e-13, err_msg=key)


def test_not_even_a_pair_fits(config_path: Path, tmp_path: Path, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(filling, "cntk_pass", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        filled(config_path, tmp_path)


def test_a_kill_loses_little_of_the_record(config_path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(filling, "SECONDS_BETWEEN_RECORDS", -1.0)
    found: list[int] = []
    monkeypatch.setattr(filling, "add_provenance", lambda *_, **facts: found.append(facts["tiles_computed"]))
    filled(config_path, tmp_path)
    assert found == [1] * len({(p.parts[-5], p.parts[-2], p.parts[-1]) for p in chunks(tmp_path)})


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


def test_a_damaged_tile_is_set_aside_and_computed_anew(config_path: Path, tmp_path: Path, caplog):
    table = filled(config_path, tmp_path)
    before, kept = blocks(table), chunks(tmp_path)
    victim = next(iter(sorted(tmp_path.glob("gram-*/vanilla-L4/c/1/0"))))
    content = bytearray(victim.read_bytes())
    content[9] ^= 4
    victim.write_bytes(content)
    with pytest.raises(StoreError, match=r"tile \(1, 0\) of vanilla-L4 is damaged"):
        blocks(table)
    fill(table, repair=True)
    assert "tile (1, 0) of vanilla-L4 is damaged" in caplog.text
    assert same(before, blocks(table))
    del kept[victim]
    assert kept.items() <= chunks(tmp_path).items()


def test_an_unfit_backend_is_a_config_error(config_path: Path, tmp_path: Path, monkeypatch):
    def unfit(*args):
        raise ValueError("needs a compiler")

    monkeypatch.setattr("exact_ntk.table.resolve_backend", unfit)
    with pytest.raises(ConfigError, match=r"gram\.backend: needs a compiler"):
        fill(table_of(config_path, tmp_path))


def command(config_path: Path, folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "exact_ntk.cli.main", "compute-gram", str(config_path), "--runs", str(folder), *more]


def test_killed_anywhere_and_run_again_gives_the_same_bits(config_path: Path, tmp_path: Path):
    """kill -9 while tiles are being written, twice; two processes that ask for other depths finish the rest."""
    slow = ["--set", "gram.tile=8", "--set", "columns.*.depths=[3, 5]"]
    runs = tmp_path / "runs"
    for _ in range(2):
        process = subprocess.Popen(command(config_path, runs, *slow), stderr=subprocess.DEVNULL)
        enough, deadline = len(chunks(runs / "tiny")) + 3, time.monotonic() + 60
        while len(chunks(runs / "tiny")) < enough and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = chunks(runs / "tiny")
    assert len(done) >= 6
    more = [slow, [*slow[:3], "columns.*.depths=[3, 4]"]]
    both = [subprocess.Popen(command(config_path, runs, *m), stderr=subprocess.PIPE) for m in more]
    assert [(p.wait(), p.stderr.read())[0] for p in both] == [0, 0]
    assert done.items() <= chunks(runs / "tiny").items()
    assert not list(runs.rglob("*.partial"))
    for overrides in (m[1::2] for m in more):
        fresh = filled(config_path, tmp_path / "fresh" / overrides[1], *overrides)
        assert same(blocks(fresh), blocks(table_of(config_path, runs / "tiny", *overrides)))


def test_a_kill_between_two_arrays_of_a_tile_costs_only_the_second(config_path: Path, tmp_path: Path, monkeypatch):
    real, written = GramStore.write, []

    class Killed(BaseException):
        pass

    def cut_short(self, tile, values):
        written.append(((self.path, tile), list(values)))
        first = next(iter(values))
        real(self, tile, {first: values[first]})
        raise Killed

    monkeypatch.setattr(GramStore, "write", cut_short)
    with pytest.raises(Killed):
        filled(config_path, tmp_path)
    before, cut = chunks(tmp_path), dict(written)
    assert len(before) == len(cut) > 0
    written.clear()
    monkeypatch.setattr(GramStore, "write", lambda *a: written.append(((a[0].path, a[1]), list(a[2]))) or real(*a))
    table = filled(config_path, tmp_path)
    again = dict(written)
    assert all(again[place] == arrays[1:] for place, arrays in cut.items())
    assert before.items() <= chunks(tmp_path).items()
    assert same(blocks(table), blocks(filled(config_path, tmp_path / "whole")))
