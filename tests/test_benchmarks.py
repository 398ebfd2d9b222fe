"""The benchmarks outside the package run, and measure what they say; never how fast."""

import json
import sys

from benchmarks import accuracy, cnn_speed
from exact_ntk.kernels.fused import build


def test_the_errors_of_the_fused_kernels_are_listed_by_readout_and_depth(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accuracy.py"])
    monkeypatch.setattr(accuracy, "DEPTHS", (3, 4))
    if build.compilers():
        accuracy.main()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 + 4 * 2
        # In units of 1e-7: the documented bound is 9.2.
        assert all(0 < float(line.split()[2]) < 9.2 for line in lines[1:])


def test_training_is_timed_beside_a_plain_model(monkeypatch, capsys):
    small = ["--image", "1", "5", "5", "--width", "4", "--depths", "3", "--images", "40", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["cnn_speed.py", *small])
    monkeypatch.setattr(cnn_speed, "matmul_peak", lambda *_: 1e12)
    cnn_speed.main()
    _, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(line["readout"], line["depth"]) for line in lines] == [("vanilla", 3), ("gap", 3)]
    assert all(line["ratio"] > 0 and line["memory_estimate_mib"] > 0 for line in lines)
