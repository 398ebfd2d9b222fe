"""Cells that other processes work on while a report reads them."""

from pathlib import Path

import pytest

from exact_ntk.errors import Incomplete
from exact_ntk.regression.cell import KernelCell
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from tests.made_up import once_filled, table_of


def test_a_cell_that_is_finished_while_it_is_read_is_in_the_report(config_path: Path, tmp_path: Path, monkeypatch):
    once_filled(table := table_of(config_path, tmp_path))
    solve_cells(table.kernel_cells, table.device)
    whole = [(r.column, r.depth) for r in collect(table).results.records]
    real, early = KernelCell.record, []

    def not_yet(self):
        if self.name not in early:
            return early.append(self.name)
        return real(self)

    monkeypatch.setattr(KernelCell, "record", not_yet)
    assert [(r.column, r.depth) for r in collect(table).results.records] == whole
    monkeypatch.setattr(KernelCell, "record", lambda self: None)
    with pytest.raises(Incomplete, match="changed while it was read: run the same command again"):
        collect(table)
