"""The benchmarks outside the package run, and measure what they say; never how fast."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import accuracy, cnn_speed, cpu_variants, float32_store, neural_tangents
from exact_ntk.kernels import cntk
from exact_ntk.kernels.fused import build, cpu
from exact_ntk.kernels.passes import Pass
from tests.made_up import fill, table_of


def test_the_errors_of_the_fused_kernels_are_listed_by_readout_and_depth(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accuracy.py"])
    monkeypatch.setattr(accuracy, "DEPTHS", (3, 4))
    if build.compilers():
        accuracy.main()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 + 4 * 2
        # In units of 1e-7: the documented bound is 9.2.
        assert all(0 < float(line.split()[2]) < 9.2 for line in lines[1:])


def test_kernels_compiled_in_two_ways_take_turns(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cpu_variants.py", "", "-DNTK_DEAR_ROOTS -O0"])
    monkeypatch.setattr(cpu_variants, "BLOCKS", {"gap": 2, "vanilla": 3})
    monkeypatch.setattr(cpu_variants, "ROUNDS", 1)
    monkeypatch.setattr(cpu_variants, "DEPTH", 3)
    if build.compilers():
        libraries = [cpu_variants.compiled(more) for more in sys.argv[1:]]
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        job = Pass("gap", (9,), ("gap",), False, False)
        first, second = (cpu.cntk_pass(x, None, job, library) for library in libraries)
        assert not torch.equal(first, second)
        torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
        cpu_variants.main()
        _, *lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0].split(maxsplit=1) for line in lines] == [
            ["gap", "''"],
            ["gap", "'-DNTK_DEAR_ROOTS -O0'"],
            ["vanilla", "''"],
            ["vanilla", "'-DNTK_DEAR_ROOTS -O0'"],
        ]
        assert all("over the first 1.00 (1.00 to 1.00)" in line for line in lines[::2])


def test_training_is_timed_beside_a_plain_model(monkeypatch, capsys):
    small = ["--image", "1", "5", "5", "--width", "4", "--depths", "3", "--images", "40", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["cnn_speed.py", *small])
    monkeypatch.setattr(cnn_speed, "matmul_peak", lambda *_: 1e12)
    cnn_speed.main()
    _, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(line["readout"], line["depth"]) for line in lines] == [("vanilla", 3), ("gap", 3)]
    assert all(line["ratio"] > 0 and line["memory_estimate_mib"] > 0 for line in lines)


def test_rounded_values_are_solved_beside_the_unrounded(config_path: Path, tmp_path: Path, monkeypatch, capsys):
    fill(table_of(config_path, tmp_path / "tiny"), every=False)
    monkeypatch.setattr(sys, "argv", ["float32_store.py", str(config_path), str(tmp_path), "30"])
    float32_store.main()
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:3] for line in lines] == [
        ["CNTK-GAP-40", "3", "30"],
        ["CNTK-GAP-40", "4", "30"],
        ["NNGP-GAP-40", "2", "30"],
        ["NNGP-GAP-40", "3", "30"],
    ]
    # Rounding is seen, and is no more than that of float32 over the smallest eigenvalue.
    assert all(1e-9 < float(line[6]) < 1e-7 / float(line[7]) * 30 for line in lines)
    assert all(abs(float(line[3]) - float(line[4])) < 10 for line in lines)


@pytest.mark.parametrize(("scale", "agrees"), [(1.0, True), (9.0, False)])
def test_a_kernel_of_elsewhere_is_timed_and_compared_at_its_scale(scale: float, agrees: bool, monkeypatch):
    class Elsewhere:
        """The same kernel by the reference, at the scale of neural-tangents, or at another."""

        def __init__(self, _: Path, readout: str, depth: int, shape: tuple[int, int], side: int, **__: str):
            x, y = map(torch.from_numpy, neural_tangents.random_images(*shape, side))
            how = dict(train_first=True, train_last=True, backend="reference", dtype=torch.float64)
            k = cntk(x, y, depths=(depth,), readouts=(readout,), **how)[0, 0]
            self.values = k.numpy() / (scale * neural_tangents.CHANNELS * (1 if readout == "gap" else side**2))

        def seconds(self, keep: str = "") -> float:
            if keep:
                np.save(keep, self.values)
            return 1.0

        def close(self) -> None:
            pass

    monkeypatch.setattr(neural_tangents, "Theirs", Elsewhere)
    monkeypatch.setattr(neural_tangents, "SIDE", 5)
    monkeypatch.setattr(neural_tangents, "SMALL_SIDE", 4)
    monkeypatch.setattr(neural_tangents, "OURS", {"gap": (3, 3), "vanilla": (3, 3)})
    _, _, *lines = neural_tangents.lines(Path("python"), 3, 2, {"gap": (1, 2), "vanilla": (2, 2)})
    found = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in found] == ["gap", "vanilla"]
    # Pairs, pixel pairs and layers of a second.
    assert [float(row[1]) for row in found] == [pytest.approx(2 * 625 * 2, rel=0.05), pytest.approx(4 * 25 * 2)]
    assert all((float(row[4]) < 1e-12) == agrees for row in found)
