"""The benchmark's arithmetic and its table; never its speed."""

import json

import pytest
import torch

from exact_ntk import bench


def test_every_backend_readout_size_and_depth_is_measured(monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", ((1, 3, 3), (3, 32, 32)))
    monkeypatch.setattr(bench, "_pairs_per_second", lambda *_: (1e3, 7))
    found = bench.run_bench(torch.device("cpu"))
    backends = {rate["backend"] for rate in found["rates"]}
    assert {"reference-cpu", "layer by layer"} <= backends
    assert len(found["rates"]) == len(backends) * 2 * 2 * 2
    json.dumps(found, allow_nan=False)
    last = found["rates"][-1]
    assert (last["readout"], last["depth"], last["pairs"]) == ("gap", 21, 49)
    assert last["entry_layers_per_second"] == 1024**2 * 20 * 1e3
    assert last["full_table_hours"] == (50_000 * 50_001 / 2 + 50_000 * 10_000) / 1e3 / 3600
    if found["limit"]:
        assert found["limit"]["multiply_adds_per_second"] > 0
        assert last["share_of_limit"] == last["entry_layers_per_second"] / found["limit"]["entry_layers_per_second"]
    assert bench.format_bench(found).count("\n") >= len(found["rates"])


@pytest.mark.parametrize("capability, each", [((9, 0), 947 / 32), ((8, 6), 947 / 32), ((8, 0), 23), ((7, 5), 23)])
def test_a_gpus_limit_is_of_issue_slots_or_of_its_float32_units(monkeypatch, capability, each):
    monkeypatch.setattr(bench, "resolve_backend", lambda *_: "fused-cuda")
    monkeypatch.setattr(bench.gpu_launch, "multiply_adds_per_second", lambda _: 1e13)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    limit = bench._limit(torch.device("cuda", 0))
    assert limit["entry_layers_per_second"] == pytest.approx(1e13 / each)


def test_rates_come_from_computing(monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", ((1, 3, 3),))
    found = bench.run_bench(torch.device("cpu"), seconds=0.002)
    assert all(rate["entry_layers_per_second"] > 0 and rate["full_table_hours"] is None for rate in found["rates"])
