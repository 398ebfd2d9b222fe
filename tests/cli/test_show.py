"""What a command has found: whole tables on any terminal, the same as JSON, and quiet where that is asked for."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from exact_ntk.cli import console
from exact_ntk.cli.console import steady_streams
from exact_ntk.cli.show import show
from exact_ntk.records import Results
from exact_ntk.report.notes import notes
from exact_ntk.report.tables import grid, text_table
from tests.cli.test_cli import ntk
from tests.conftest import digit_arrays
from tests.made_up import made_up_table


class Terminal(io.TextIOWrapper):
    """A terminal of some encoding."""

    def __init__(self, encoding: str):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def on_terminal(encoding: str, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "_typed", None)  # what another test has typed
    results, terminal = made_up_table(), Terminal(encoding)
    with contextlib.redirect_stdout(terminal), steady_streams():
        show("text", [grid(results)], notes(results), {}, as_json=False)
    return terminal.shown()


@pytest.mark.parametrize("width", [200, 40, 15])
def test_a_terminal_shows_every_cell_whole(width: int, monkeypatch):
    shown = on_terminal("utf-8", width, monkeypatch)
    _, rows = grid(made_up_table())
    words = [word for row in rows for cell in row for word in cell.split()]
    letters = "".join(shown.split())
    assert all(word in letters or width == 15 for word in words)
    assert "…" not in shown
    assert all(note in shown for note in notes(made_up_table()))


def test_a_terminal_without_the_signs_shows_plain_ones(monkeypatch):
    shown = on_terminal("ascii", 200, monkeypatch)
    assert "70.12 +- 0.50" in shown
    assert "40.00 +- 0.50*" in shown


def test_elsewhere_it_is_plain_text(capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setattr(console, "_typed", None)
    results = made_up_table()
    show(text_table(results), [grid(results)], notes(results), {}, as_json=False)
    assert capsys.readouterr().out == text_table(results) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    np.savez(folder / "digits.npz", **digit_arrays(20, 10, side=4))
    columns = [{"model": "cntk", "readout": "vanilla", "depths": [3]}]
    data = {"dataset": "npz", "path": "digits.npz"}
    tree = {"name": "tiny", "data": data, "gram": {"backend": "reference"}, "columns": columns}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_json_is_all_that_stdout_holds_and_quiet_leaves_stderr_empty(folder: Path):
    planned = ntk(folder, "plan", "tiny.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    before = json.loads(planned.stdout)
    assert before["parts"][0]["column"] == "CNTK-V"
    assert before["files"] > 0
    status = ntk(folder, "status", "tiny.yaml", "--json")
    assert status.returncode == 3
    assert [cell["column"] for cell in json.loads(status.stdout)["missing"]] == ["CNTK-V"]
    run = ntk(folder, "run", "tiny.yaml", "--quiet")
    assert (run.returncode, run.stderr) == (0, "")
    assert "CNTK-V" in run.stdout
    report = ntk(folder, "report", "tiny.yaml", "--json", "--quiet")
    assert Results.model_validate(json.loads(report.stdout)).records[0].n_train == 20
    assert report.stderr == ""
    done = json.loads(ntk(folder, "status", "tiny.yaml", "--json").stdout)
    assert (done["done"], done["missing"]) == ([{"column": "CNTK-V", "depth": 3}], [])
    assert "wrote" in ntk(folder, "report", "tiny.yaml").stderr  # the next command is not quiet
    assert json.loads(ntk(folder, "plan", "tiny.yaml", "--json").stdout)["parts"] == []
