"""Provenance: summed over interrupted runs and over processes at work together."""

import multiprocessing
from pathlib import Path

import torch

from exact_ntk.files import temporary_beside
from exact_ntk.provenance import add_provenance, read_provenance, time_left

CPU = torch.device("cpu")


def test_numbers_are_added_and_lists_joined(tmp_path: Path):
    add_provenance(tmp_path, "gram-1", CPU, columns=["A"], tiles_computed=3, seconds=1.25)
    add_provenance(tmp_path, "gram-1", CPU, columns=["B", "A"], tiles_computed=1, seconds=2.0)
    add_provenance(tmp_path, "solve", CPU, cells=2, seconds=0.5)
    found = read_provenance(tmp_path)
    assert set(found) == {"gram-1", "solve"}
    first = found["gram-1"]
    assert (first["columns"], first["tiles_computed"], first["seconds"]) == (["A", "B"], 4, 3.25)
    assert first["device_type"] == "cpu"
    assert time_left(tmp_path, "gram-1", 8) == "0:00:06"
    assert time_left(tmp_path, "gram-2", 8) is None


def test_what_killed_writers_of_any_stage_have_left_goes(tmp_path: Path):
    add_provenance(tmp_path, "gram-1", CPU, tiles_computed=3)
    left = temporary_beside(tmp_path / "provenance" / "gram-2.json")
    left.touch()
    add_provenance(tmp_path, "solve", CPU, cells=2)
    assert not left.exists()
    assert set(read_provenance(tmp_path)) == {"gram-1", "solve"}


def test_a_damaged_file_stops_nothing(tmp_path: Path, caplog):
    add_provenance(tmp_path, "solve", CPU, cells=2)
    (tmp_path / "provenance" / "solve.json").write_text("")
    assert read_provenance(tmp_path) == {"solve": {}}
    (tmp_path / "provenance" / "solve.json").write_text('{"cells": "two", "columns": [{}]}')
    add_provenance(tmp_path, "solve", CPU, cells=1, columns=["A"])
    assert read_provenance(tmp_path)["solve"]["cells"] == 1
    (tmp_path / "provenance" / "solve.json").write_text("")
    add_provenance(tmp_path, "solve", CPU, cells=1)
    assert read_provenance(tmp_path)["solve"]["cells"] == 1
    assert "is damaged: its seconds and counts begin anew" in caplog.text


def add_forty(folder: Path) -> None:
    for _ in range(40):
        add_provenance(folder, "solve", CPU, cells=1)


def test_no_update_is_lost_between_processes(tmp_path: Path):
    both = [multiprocessing.get_context("fork").Process(target=add_forty, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert read_provenance(tmp_path)["solve"]["cells"] == 80
