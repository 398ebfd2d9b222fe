"""compute-gram: kills, errors, damage and too little memory cost what they hit, and no finished tile."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk.errors import StoreError
from exact_ntk.gram import compute
from exact_ntk.gram import fill as filling
from exact_ntk.gram.store import GramStore
from exact_ntk.provenance import read_provenance
from exact_ntk.regression.stage import solve_cells
from tests.gram.filling import blocks, chunks, command, filled, same
from tests.made_up import fill, table_of

FEW = ["columns.*.depths=[3]", "gram.tile=13"]


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


def test_what_was_done_is_recorded_also_when_the_work_ends_early(config_path: Path, tmp_path: Path, monkeypatch):
    block, left = compute.TileComputer.block, [20]

    def failing(self, rows, columns, arrays):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the power went")
        return block(self, rows, columns, arrays)

    monkeypatch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(compute.TileComputer, "block", failing)
    with pytest.raises(RuntimeError, match="power"):
        filled(config_path, tmp_path / "run")
    found = read_provenance(tmp_path / "run").values()
    assert sum(facts["tiles_computed"] for facts in found) == 20
    assert all(facts["seconds"] >= 0 and facts["device_type"] == "cpu" for facts in found)


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
        def __enter__(self) -> "Bar":
            return self

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            said = int(text.split(" entry-layers/s, ")[1].split()[0])
            assert 0 < said <= len(chunks(tmp_path))  # what is shown as done is on the disk

        def update(self, pairs: int) -> None:
            shown.append(pairs)

    shown: list[int] = []
    monkeypatch.setattr(filling, "progress", lambda *_: Bar())
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
    real_block, real_write, calls = compute.TileComputer.block, GramStore.write, []

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
        patch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
        patch.setattr(compute.TileComputer, "block", block)
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
    real, sides = compute.cntk_pass, []

    def short_of_memory(x1, x2, job, **options):
        sides.append(max(len(x1), len(x1 if x2 is None else x2)))
        if sides[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(x1, x2, job, **options)

    # Values of the reference depend on the block by a rounding error: float64 and a bound on that.
    options = ["gram.dtype=float64", "gram.tile=13", "columns.*.depths=[3]"]
    monkeypatch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(compute, "cntk_pass", short_of_memory)
    found = blocks(filled(config_path, tmp_path / "short", *options))
    assert "out of memory for a block of 13 x 13 images: going on in blocks of 7 x 7" in caplog.text
    assert caplog.text.count("out of memory") == 2 * 2  # once a size, of two families
    monkeypatch.setattr(compute, "cntk_pass", real)
    expected = blocks(filled(config_path, tmp_path / "whole", *options))
    for key, k in expected.items():
        np.testing.assert_allclose(found[key], k, rtol=1e-13, err_msg=key)


def test_not_even_a_pair_fits(config_path: Path, tmp_path: Path, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(compute, "cntk_pass", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        filled(config_path, tmp_path)


def test_a_kill_loses_little_of_the_record(config_path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(filling, "SECONDS_BETWEEN_RECORDS", -1.0)
    found: list[int] = []
    monkeypatch.setattr(filling, "add_provenance", lambda *_, **facts: found.append(facts["tiles_computed"]))
    filled(config_path, tmp_path)
    assert found == [1] * len({(p.parts[-5], p.parts[-2], p.parts[-1]) for p in chunks(tmp_path)})


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


def test_killed_anywhere_and_run_again_gives_the_same_bits(config_path: Path, tmp_path: Path):
    """kill -9 while tiles are being written; two processes that ask for other depths finish the rest."""
    slow = ["--set", "gram.tile=8", "--set", "columns.*.depths=[3, 5]"]
    runs = tmp_path / "runs"
    process = subprocess.Popen(command(config_path, runs, *slow), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(chunks(runs / "tiny")) < 6 and time.monotonic() < deadline:
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
