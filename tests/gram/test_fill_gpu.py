"""compute-gram, solve and run on a GPU: `pytest -m gpu`."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from exact_ntk import bench, kernels
from exact_ntk.gram.compute import TileComputer
from exact_ntk.gram.fill import _Copy
from exact_ntk.gram.sources import Source
from exact_ntk.kernels.fused import gpu_launch
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.table import Table
from tests.gram.filling import blocks, command
from tests.made_up import fill, table_of

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
FUSED = ["gram.backend=fused"]


def computed(config_path: Path, folder: Path, device: torch.device, *overrides: str) -> Table:
    table = table_of(config_path, folder, *FUSED, *overrides, device=str(device))
    fill(table)
    return table


def test_a_store_filled_on_a_gpu_holds_what_a_cpu_computes(config_path: Path, tmp_path: Path):
    on_cpu, on_gpu = (blocks(computed(config_path, tmp_path / d.type, d)) for d in (CPU, GPU))
    assert on_cpu.keys() == on_gpu.keys()
    for key, k in on_gpu.items():
        np.testing.assert_allclose(k, on_cpu[key], rtol=0, atol=4e-6 * np.abs(on_cpu[key]).max(), err_msg=key)


@pytest.mark.parametrize("tile", [5, 16, 90])
def test_same_bits_for_any_tile(config_path: Path, tmp_path: Path, tile: int):
    expected = blocks(computed(config_path, tmp_path / "8", GPU))
    found = blocks(computed(config_path, tmp_path / str(tile), GPU, f"gram.tile={tile}"))
    for key, k in expected.items():
        np.testing.assert_array_equal(found[key], k, err_msg=key)


def test_the_tile_size_is_chosen_by_the_measured_rate(config_path: Path, tmp_path: Path):
    table = computed(config_path, tmp_path, GPU, "gram.tile=auto")
    assert {r.sources[0].backend for r in table.requests(True)} == {"fused-cuda"}
    # So few images take no card half a minute: a tile is a quarter of the 40 that each family uses, or divides 20.
    assert {store.shape.side for r in table.requests(True) for store in table.shelf.look().stores(r.sources[0])} == {10}


def test_a_tile_is_copied_behind_the_next_ones_back():
    x = torch.randn(64, 1, 8, 8, device=GPU)
    expected = x.cpu().numpy()
    warm = _Copy(x)  # kernels that are loaded and memory that is pinned for the first time wait for the device
    torch.full((64, 1, 8, 8), 7.0, device=GPU)
    torch.cuda.synchronize()
    del warm
    torch.cuda._sleep(4_000_000_000)
    copy = _Copy(x)
    del x  # its memory must not go to the next tile before it is copied
    torch.full((64, 1, 8, 8), 7.0, device=GPU)
    done = torch.cuda.current_stream().record_event()
    assert not done.query()  # the next tile's work does not wait for the host
    assert not copy.done()
    torch.cuda.synchronize()
    np.testing.assert_array_equal(copy.numpy(), expected)


def test_regression_from_a_gpu_store(config_path: Path, tmp_path: Path):
    accuracy = {}
    for device in (CPU, GPU):
        folder = tmp_path / device.type
        table = computed(config_path, folder, device)
        assert solve_cells(table.kernel_cells, device) == 8
        records = collect(table).results.records
        accuracy[device.type] = {(r.column, r.depth): r.accuracy for r in records}
    # Values agree to 1e-6 or so: at most a test image near a tie may change sides, of 30 or 70 a draw.
    assert accuracy["cuda"] == pytest.approx(accuracy["cpu"], abs=3.4)


def test_the_benchmark_knows_a_gpus_limit(monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", ((1, 8, 8),))
    found = bench.run_bench(GPU, seconds=0.05)
    assert found["limit"]["multiply_adds_per_second"] == pytest.approx(
        gpu_launch.multiply_adds_per_second(GPU), rel=0.3
    )
    rates = {r["backend"]: r for r in found["rates"]}
    assert {"fused-cuda", "reference-cuda", "layer by layer"} <= rates.keys()
    assert all(0 < r["share_of_limit"] < 1 for r in found["rates"])


def test_a_store_holds_the_bytes_that_the_kernels_give(config_path: Path, tmp_path: Path):
    """Through pinned memory, several tiles in flight and several writers."""
    table = computed(config_path, tmp_path, GPU, "gram.tile=7")
    x = table.images.x.to(GPU)
    for cell in table.kernel_cells:
        _, store = table.shelf.require(cell.request(0))
        rows, columns = np.arange(len(x)), np.arange(table.images.n_train)
        stored = {}
        for tile in store.finished(cell.array):
            r, c = store.shape.bounds(tile)
            stored[tile] = store.read(*cell.array, rows[r], columns[c])
            readout, depth = cell.array
            ends = dict(
                train_first=cell.places[0].sources[0].train_first, train_last=cell.places[0].sources[0].train_last
            )
            k = (
                kernels.cntk(x[r], x[c], depths=(depth,), readouts=(readout,), backend="fused", **ends)[0, 0]
                .cpu()
                .numpy()
            )
            lower = np.add.outer(np.arange(r.start, r.stop), -np.arange(c.start, c.stop)) >= 0
            np.testing.assert_array_equal(stored[tile][lower], k[lower])
        assert len(stored) > 3


def test_a_fill_that_was_cut_short_goes_on_to_the_same_bits(config_path: Path, tmp_path: Path, monkeypatch):
    real, left = TileComputer.block, [4]

    def failing(self, rows, columns, arrays):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, rows, columns, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(TileComputer, "pairs_per_second", lambda self, arrays: 100.0)
        patch.setattr(TileComputer, "block", failing)
        with pytest.raises(KeyboardInterrupt):
            computed(config_path, tmp_path / "run", GPU)
    found = blocks(computed(config_path, tmp_path / "run", GPU))
    for key, k in blocks(computed(config_path, tmp_path / "whole", GPU)).items():
        np.testing.assert_array_equal(found[key], k, err_msg=key)


def test_two_processes_on_one_card(config_path: Path, tmp_path: Path):
    options = [*("--device", "cuda"), *("--set", "gram.backend=fused"), *("--set", "gram.tile=7")]
    both = [subprocess.Popen(command(config_path, tmp_path, *options), stderr=subprocess.PIPE) for _ in range(2)]
    assert [(p.communicate()[1], p.returncode)[1] for p in both] == [0, 0]
    found = blocks(table_of(config_path, tmp_path / "tiny", *FUSED, "gram.tile=7", device="cuda:0"))
    for key, k in blocks(computed(config_path, tmp_path / "alone", GPU, "gram.tile=7")).items():
        np.testing.assert_array_equal(found[key], k, err_msg=key)


def test_a_card_too_small_for_a_block_gives_the_same_bits(caplog):
    x = torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    source = Source("vanilla", True, True, "fused-cuda", "float32", SimpleNamespace(passing=lambda: x))
    block, arrays = (slice(2000, 4000), slice(0, 2000)), [("vanilla", 3), ("vanilla-nngp", 6)]
    whole = TileComputer(source, GPU).block(*block, arrays).cpu()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    try:
        # One array of the result is 32 MB, sums and result together are 5 of them and more.
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + (96 << 20)) / total, GPU)
        halved = TileComputer(source, GPU).block(*block, arrays)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert "is out of memory for a block of 2000 x 2000 images: going on in blocks of 1000 x 1000" in caplog.text
    assert torch.equal(halved, whole)


def test_ten_thousand_images_from_pixels_to_coefficients(tmp_path: Path):
    generator = np.random.default_rng(0)
    x, y = (generator.integers(0, high, size) for high, size in [(256, (10_200, 6, 6)), (10, 10_200)])
    arrays = {"x_train": x[:10_000].astype(np.uint8), "y_train": y[:10_000]}
    np.savez(tmp_path / "noise.npz", **arrays, x_test=x[10_000:].astype(np.uint8), y_test=y[10_000:])
    column = {"model": "cntk", "readout": "vanilla", "depths": [3], "train": {"n": "all"}}
    tree = {"name": "large", "data": {"dataset": "npz", "path": str(tmp_path / "noise.npz")}, "columns": [column]}
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(tree))
    table = computed(tmp_path / "large.yaml", tmp_path / "run", GPU)
    assert solve_cells(table.kernel_cells, GPU) == 1
    (record,) = collect(table).results.records
    assert record.n_train == 10_000
    assert record.by_draw[0].residual < 1e-9
    assert not record.indefinite
