"""Figures and the page: pure functions of records."""

import numpy as np
import pytest

from exact_ntk.records import Results
from exact_ntk.report import figures
from exact_ntk.report.figures import accuracy_figure, curves_figure, gram_figure, width_figure
from exact_ntk.report.page import page
from tests.made_up import with_networks

PNG = b"\x89PNG\r\n"


def test_figures_are_png_and_the_same_for_the_same_records(results: Results):
    assert accuracy_figure(results).startswith(PNG)
    assert accuracy_figure(results) == accuracy_figure(results)
    k = np.eye(6) + 0.1
    assert gram_figure(k, np.array([0, 1, 0, 1, 1, 2]), ("a", "b", "c"), "title").startswith(PNG)


def test_networks_are_drawn_against_width_beside_their_own_kernel(results: Results):
    nets = with_networks(results, (16, 8))
    ((readout, by_width, kernel),) = figures._width_lines(nets)
    assert (readout, [r.width for r in by_width], kernel.column) == ("gap", [8, 16], "CNTK-GAP")
    assert width_figure(nets).startswith(PNG)


@pytest.mark.parametrize("other", [{"train": {"n": 99}}, {"train_last": True}, {"test": {"n": 6}}])
def test_a_kernel_of_other_images_or_trained_ends_is_not_the_networks_limit(results: Results, other: dict):
    nets = with_networks(results, (8, 16), **other)
    ((_, _, kernel),) = figures._width_lines(nets)
    assert kernel is None
    assert width_figure(nets).startswith(PNG)


def test_there_is_no_width_figure_for_one_width_and_no_curves_without_networks(results: Results):
    assert curves_figure(results) is None
    assert width_figure(results) is None
    one = with_networks(results, (8,))
    assert width_figure(one) is None
    assert curves_figure(one).startswith(PNG)
    assert curves_figure(one) == curves_figure(one)


def test_the_page_is_one_file_and_escapes_text(results: Results):
    provenance = {"report": {"device": "<cpu>", "threads": 2, "versions": {"torch": "2"}}}
    html = page(results, provenance, {"a < b": PNG})
    assert "a &lt; b" in html
    assert "&lt;cpu&gt;" in html
    assert 'src="data:image/png;base64,' in html
    assert "http" not in html
