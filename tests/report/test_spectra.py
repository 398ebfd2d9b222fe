"""Spectra and gradient flow in the report: a panel a column, or the reason."""

import numpy as np

from exact_ntk.report.collect import Collected
from exact_ntk.report.page import page
from exact_ntk.report.spectra import MOST_POINTS, kept_drawings, without_spectrum
from tests.made_up import collected, made_up_table


def with_spectrum() -> Collected:
    found = collected(made_up_table())
    more = {
        "eigenvalues": np.array([4.0, 1.0, 0.5, 0.0]),
        "flow_time": np.array([0.1, 10.0, 1e6]),
        "flow_loss": np.array([1.0, 0.5, 0.0]),
        "flow_test": np.array([30.0, 80.0, 70.0]),
    }
    found.arrays["CNTK-GAP", 3] = [{**found.arrays["CNTK-GAP", 3][0], **more}]
    found.provenance["cells"]["CNTK-V/3"] = {"draws": [{"no_spectrum": "5,001 images are too many"}]}
    return found


def test_a_column_that_has_one_is_drawn_and_another_says_why_not():
    found = with_spectrum()
    spectra, flow = kept_drawings(found)
    assert [p.name for d in (spectra, flow) for p in d.panels] == ["spectrum-CNTK-GAP", "flow-CNTK-GAP"]
    assert spectra.rows[1:] == [["CNTK-GAP", 3, i, v] for i, v in enumerate([1.0, 0.25, 0.125, 0.0], start=1)]
    assert flow.rows[-1] == ["CNTK-GAP", 3, 1e6, 0.0, 70.0]
    assert "from 30 at 0.1 to 70 at 1e+06" in flow.panels[0].words
    reason = "CNTK-V: no spectrum or gradient flow at depth 3: 5,001 images are too many."
    assert list(without_spectrum(found)) == [reason]
    assert reason in page(found, [], "")


def test_a_large_spectrum_takes_no_more_room_than_what_is_drawn_of_it():
    found = with_spectrum()
    found.arrays["CNTK-GAP", 3][0]["eigenvalues"] = 1 / np.arange(1.0, 5001)
    rows = kept_drawings(found)[0].rows[1:]
    assert len(rows) <= MOST_POINTS
    assert [rows[0][2:], rows[-1][2:]] == [[1, 1.0], [5000, 1 / 5000]]


def test_draws_solved_before_have_none():
    found = collected(made_up_table())
    assert kept_drawings(found) == []
    assert list(without_spectrum(found)) == []
