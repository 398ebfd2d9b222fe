"""compute-gram: any tiling, order or number of processes gives the same values, and no tile twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from exact_ntk.errors import ConfigError, Incomplete
from exact_ntk.gram import compute
from exact_ntk.gram.fill import host_memory
from exact_ntk.kernels import cntk
from tests.gram.filling import blocks, chunks, filled, same
from tests.made_up import fill, table_of


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


@pytest.mark.parametrize("tile", [7, 25, 90])
def test_the_fused_kernels_give_the_same_bits_for_any_tile(config_path: Path, tmp_path: Path, tile: int):
    """Also where a tile holds the last training images and the first test images."""
    one = blocks(filled(config_path, tmp_path / "a", "gram.backend=fused"))
    other = blocks(filled(config_path, tmp_path / "b", "gram.backend=fused", f"gram.tile={tile}"))
    for key, k in one.items():
        np.testing.assert_array_equal(other[key], k, err_msg=key)
        n = k.shape[1]
        np.testing.assert_array_equal(k[:n], k[:n].T, err_msg=key)


def test_a_tile_is_one_pass_for_all_that_read_it(config_path: Path, tmp_path: Path, monkeypatch):
    passes = []
    real = compute.cntk_pass

    def counted(x1, x2, job, **options):
        passes.append((job.family, job.depths, job.readouts))
        return real(x1, x2, job, **options)

    monkeypatch.setattr(compute.TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
    monkeypatch.setattr(compute, "cntk_pass", counted)
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
    assert all(asked.shelf.look().complete(request) is None for request in asked.requests(True))
    monkeypatch.setattr(compute, "cntk_pass", None)
    served = filled(config_path, tmp_path / "float64", "gram.store=float32")
    assert {served.shelf.require(request)[0].stored for request in served.requests(True)} == {"float64"}


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


def test_an_unfit_backend_is_a_config_error(config_path: Path, tmp_path: Path, monkeypatch):
    def unfit(*args):
        raise ValueError("needs a compiler")

    monkeypatch.setattr("exact_ntk.kernels.resolve_backend", unfit)
    with pytest.raises(ConfigError, match=r"gram\.backend: needs a compiler"):
        fill(table_of(config_path, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_go_to_a_host_that_gives_no_page_locked_memory(dtype: torch.dtype, monkeypatch):
    def any_but_page_locked(*shape, empty=torch.empty, pin_memory: bool = False, **options):
        if pin_memory:
            raise RuntimeError("CUDA error: OS call failed or operation not supported on this OS")
        return empty(*shape, **options)

    values = torch.arange(6, dtype=dtype).view(2, 3)
    monkeypatch.setattr(torch, "empty", any_but_page_locked)
    host = host_memory(values)
    assert (host.shape, host.dtype) == (values.shape, values.dtype)
    assert torch.equal(host.copy_(values, non_blocking=True), values)
