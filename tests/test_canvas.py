"""Figures whatever the environment says of matplotlib's backend."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from exact_ntk.canvas import heat_png, subplots, to_png, to_svg

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


def test_an_svg_is_the_same_text_with_ink_in_the_page_s_colour_and_ids_of_its_own():
    def drawn(name: str) -> str:
        figure, axis = subplots(1, 1, (2, 1))
        axis.errorbar([1, 2], [3, 4], yerr=[1, 1], marker="o")
        axis.set_title("words <&>")
        return to_svg(figure, name)

    text = drawn("a")
    assert text == drawn("a")
    root = ElementTree.fromstring(text)
    assert {"width", "height", "style"}.isdisjoint(root.attrib)
    assert "words &lt;&amp;&gt;" in text  # as text, which can be found and read aloud
    assert "currentColor" in text
    assert "#000000" not in text
    assert not re.search(r"<style|<metadata|DejaVu|#ffffff", text)
    ids = set(re.findall(r'\bid="([^"]*)"', text))
    assert ids
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', text)) <= ids
    assert ids.isdisjoint(re.findall(r'\bid="([^"]*)"', drawn("b")))


def test_a_heat_map_is_a_pixel_an_entry():
    png = heat_png(np.eye(7), 0.0, 1.0)
    assert png == heat_png(np.eye(7), 0.0, 1.0)
    assert png[16:24] == (7).to_bytes(4, "big") * 2
