"""The line figures: pure functions of records."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.records import Results, RidgeCurve
from exact_ntk.report.drawing import Drawing, _drawn, apart, standalone
from exact_ntk.report.figures import (
    accuracy_drawing,
    beside_kernel,
    curves_drawing,
    difference_drawing,
    drawings,
    learning_drawing,
    ridge_drawing,
    width_drawing,
)
from tests.made_up import replaced, with_networks


def texts(drawing: Drawing) -> list[str]:
    return ["".join(element.itertext()) for p in drawing.panels for element in ElementTree.fromstring(p.svg).iter()]


def test_figures_are_the_same_for_the_same_records(results: Results):
    nets = with_networks(results, (16, 8))
    drawn = drawings(nets)
    assert [d.name for d in drawn] == ["accuracy", "difference", "width", "curves"]
    again = accuracy_drawing(nets).panels[0]
    assert again is drawn[0].panels[0]  # kept, not drawn once more
    _drawn.cache_clear()
    assert drawn[:2] == [accuracy_drawing(nets), difference_drawing(nets)]
    assert "prefers-color-scheme" in standalone(drawn[0].panels[0].svg)


def test_accuracy_is_drawn_a_panel_a_readout_each_line_named_at_its_end(results: Results):
    drawing = accuracy_drawing(results)
    assert [p.name for p in drawing.panels] == ["accuracy-vanilla", "accuracy-gap"]
    assert "CNTK-GAP" in texts(drawing)
    assert "CNTK-GAP from 70.12 at 3" in drawing.panels[1].words
    assert "Hollow: the paper" in drawing.caption
    assert drawing.rows[1:] == [["CNTK-GAP", 3, 70.123, 0.5], ["CNTK-V", 3, 40.0, 0.5]]


def test_networks_are_drawn_beside_their_own_kernel(results: Results):
    nets = with_networks(results, (16, 8))
    assert [(n.width, k.column) for n, k in beside_kernel(nets)] == [(16, "CNTK-GAP"), (8, "CNTK-GAP")]
    row = difference_drawing(nets).rows[1]
    assert row[:3] == ["net-w16", "CNTK-GAP", 3]
    assert row[3:] == pytest.approx([66 - 70.123, 0.5 * 2**0.5])
    assert [row[2:4] for row in width_drawing(nets).rows[1:]] == [[8, 58.0], [16, 66.0]]
    assert "CNTK, L = 3" in texts(width_drawing(nets))


@pytest.mark.parametrize("other", [{"train": {"n": 99}}, {"train_last": True}, {"test": {"n": 6}}])
def test_a_kernel_of_other_images_or_trained_ends_is_not_the_networks_limit(results: Results, other: dict):
    nets = with_networks(results, (8, 16), **other)
    assert difference_drawing(nets) is None
    assert "CNTK, L = 3" not in texts(width_drawing(nets))


def test_how_ridges_were_chosen_is_drawn_a_line_a_draw(results: Results):
    curve = RidgeCurve(select="loo", ridge=1e-2, ridges=[1e-4, 1e-3, 1e-2], errors=[None, 0.2, 0.1])
    draw = results.records[0].by_draw[0].model_copy(update={"ridge": curve})
    drawing = ridge_drawing(replaced(results, "CNTK-GAP", by_draw=[draw, draw], ridge=None))
    assert [p.name for p in drawing.panels] == ["ridge-CNTK-GAP"]
    assert "L = 3 from 0.2 at 0.001 to 0.1 at 0.01" in drawing.panels[0].words
    assert drawing.rows[1] == ["CNTK-GAP", 3, 0, 1e-4, None, False]
    assert [row[2:] for row in drawing.rows[-2:]] == [[1, 1e-3, 0.2, False], [1, 1e-2, 0.1, True]]
    assert ridge_drawing(results) is None


def test_what_there_is_nothing_of_is_not_drawn(results: Results):
    assert [d.name for d in drawings(results)] == ["accuracy"]
    one = with_networks(results, (8,))
    assert width_drawing(one) is None
    assert drawings(results.model_copy(update={"records": []})) == []


def test_curves_hold_every_epoch_of_every_seed_and_an_empty_run_draws_nothing(results: Results):
    nets = with_networks(results, (8,))
    drawing = curves_drawing(nets)
    assert len(drawing.panels) == 3
    assert [row[2:4] for row in drawing.rows[1:]] == [[0, 1], [0, 2], [1, 1]]
    empty = nets.records[-1].runs[0].history.model_copy(update={"loss": [], "train_accuracy": []})
    runs = [run.model_copy(update={"history": empty}) for run in nets.records[-1].runs]
    assert len(curves_drawing(replaced(nets, "net-w8", runs=runs)).panels) == 3


def test_columns_that_differ_in_n_alone_give_a_learning_curve(results: Results):
    assert learning_drawing(results) is None
    small = {**results.config["columns"][0], "name": "small", "train": {"n": 100, "draws": 1}}
    record = results.records[0].model_copy(update={"column": "small", "n_train": 100, "accuracy": 50.0})
    more = results.model_copy(
        update={
            "config": {**results.config, "columns": [*results.config["columns"], small]},
            "columns": [*results.columns, results.columns[0].model_copy(update={"name": "small"})],
            "records": [*results.records, record],
        }
    )
    assert [row[2:4] for row in learning_drawing(more).rows[1:]] == [[100, 50.0], [2000, 70.123]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_names_are_apart_in_the_order_of_their_lines(places: list[float]):
    moved = apart(places, 0.1)
    order = sorted(range(len(places)), key=places.__getitem__)
    steps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(step > 0.1 - 1e-9 for step in steps)
    assert max(moved) <= 1
