"""Figures whatever the environment says of matplotlib's backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exact_ntk.canvas import subplots, to_png

SCRIPT = """
from exact_ntk.report import figures
from exact_ntk.canvas import subplots, to_png
figure, axis = subplots(1, 1, (1, 1))
axis.plot([0, 1])
assert to_png(figure).startswith(b"\\x89PNG")
import os, matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams["backend"])
"""


@pytest.mark.parametrize(("named", "left"), [("module://not.installed", "module://not.installed"), ("none", "agg")])
def test_a_backend_in_the_environment_is_neither_used_nor_lost(named: str, left: str, tmp_path: Path):
    """As in a cell of a notebook, whose kernel exports a backend that this environment may lack."""
    environment = {**os.environ, "MPLBACKEND": named}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == [named, left]


def test_the_same_figure_gives_the_same_bytes():
    def drawn() -> bytes:
        figure, (left, _) = subplots(1, 2, (2, 1), sharey=True)
        left.plot([1, 2])
        return to_png(figure)

    assert drawn() == drawn()
