"""compute-gram, solve and run on a GPU: `pytest -m gpu`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk import bench
from exact_ntk.gram.fill import _Copy
from exact_ntk.kernels.fused import gpu
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from exact_ntk.table import Table
from tests.gram.test_fill import blocks
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
    assert {store.shape.side for r in table.requests(True) for store in table.shelf.stores(r.sources[0])} == {10}


def test_a_tile_is_copied_behind_the_next_ones_back():
    x = torch.randn(64, 1, 8, 8, device=GPU)
    expected = x.cpu().numpy()
    torch.cuda._sleep(1_000_000_000)
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
    assert found["limit"]["multiply_adds_per_second"] == pytest.approx(gpu.multiply_adds_per_second(GPU), rel=0.3)
    rates = {r["backend"]: r for r in found["rates"]}
    assert {"fused-cuda", "reference-cuda", "layer by layer"} <= rates.keys()
    assert all(0 < r["share_of_limit"] < 1 for r in found["rates"])
