"""The table and its notes: pure functions of records."""

import csv
import io

from exact_ntk.records import Divergence, Results
from exact_ntk.report.notes import notes
from exact_ntk.report.tables import csv_table, grid, latex_table, markdown_table, text_table
from tests.made_up import DRAW, replaced, with_networks


def said(results: Results) -> str:
    return "\n".join(notes(results))


def test_the_table_puts_ours_beside_the_papers(results: Results):
    header, rows = grid(results)
    assert header == ["depth", "CNTK-GAP", "CNTK-V"]
    assert rows == [["3", "70.12 ± 0.50 (70.47)", "40.00 ± 0.50†"], ["4", "– (75.93)", ""]]


def test_notes_say_what_is_marked_and_what_would_fill_a_gap(results: Results):
    assert "† the Gram matrix was not positive definite; solved by LU" in said(results)
    assert "† CNTK-V: residual and condition in the 1-norm 1.0e-12 and 5.0e+01 at depth 3." in said(results)
    unknown = replaced(results, "CNTK-V", by_draw=[DRAW, DRAW.model_copy(update={"residual": 1e-5, "condition": None})])
    assert "† CNTK-V: residual and condition in the 1-norm 1.0e-05 and not finite at depth 3." in said(unknown)
    assert "CNTK-GAP minus CNTK-V, image by image: +5.20 ± 2.13 at depth 3." in said(results)
    assert "missing CNTK-GAP/4: run `ntk compute-gram` and `ntk solve`" in said(results)
    assert "CNTK-GAP: 2000 training images, tested on 100." in said(results)
    overlapping = replaced(results, "CNTK-GAP", by_draw=[DRAW.model_copy(update={"overlaps": True})])
    assert "‡ some draws share training images: the error understates" in said(overlapping)


def test_a_cell_that_failed_is_told_from_one_that_is_missing(results: Results):
    cell = results.missing[0].model_copy(update={"failed": True, "needs": "a residual of 2.0"})
    failed = results.model_copy(update={"missing": [cell]})
    assert grid(failed)[1][1] == ["4", "failed (75.93)", ""]
    assert "failed CNTK-GAP/4: a residual of 2.0." in notes(failed)


def test_notes_say_what_is_in_no_error(results: Results):
    assert "One draw" not in said(results)
    results.config["columns"][1]["train"] = {"n": 2000, "draws": 1}
    assert "CNTK-V: 2000 training images, one draw, tested on 100." in said(results)
    assert "One draw: how much draws of training images differ is in no error." in said(results)


def test_notes_say_what_every_column_was_tested_on(results: Results):
    nets = with_networks(results, (8,))
    assert "net-w8: 2000 training images, tested on 100, width 8, mean of 2 seeds." in said(nets)
    assert "tested on 100, width 8, one seed." in said(replaced(nets, "net-w8", seeds=1))
    outside = replaced(nets, "net-w8", test_from="both")
    assert "net-w8: 2000 training images, tested on 100 images outside the draw, width 8" in said(outside)


def test_seeds_that_never_fitted_their_images_are_said(results: Results):
    nets = with_networks(results, (8,))
    assert "net-w8 at depth 3: 1 of 2 seeds did not reach 100 % training accuracy in 1 epochs; mean" in said(nets)
    fitted = replaced(nets, "net-w8", runs=nets.records[-1].runs[:1])
    assert "did not reach" not in said(fitted)


def test_divergences_are_said_also_without_a_largest_rate(results: Results):
    known = Divergence(lr=100.0, lr_share=5.0, seed=1, part="fit", why="the loss passed 9")
    unknown = Divergence(lr=0.1, lr_share=None, seed=0, part="all", why="every output is 0")
    nets = replaced(with_networks(results, (8,)), "net-w8", diverged=[known, unknown])
    assert "at lr 100 (5.00 of the largest stable one), seed 1 (holdout): the loss passed 9." in said(nets)
    assert "at lr 0.1, seed 0: every output is 0." in said(nets)


def test_markdown_is_a_table_and_text_is_aligned(results: Results):
    lines = markdown_table(results).splitlines()
    assert lines[2] == "| depth | CNTK-GAP | CNTK-V |"
    assert lines[3].count("---:") == 3
    text = text_table(results).splitlines()
    assert len({len(line) for line in text[:3]}) == 1


def test_csv_has_a_line_a_cell(results: Results):
    rows = list(csv.DictReader(io.StringIO(csv_table(with_networks(results, (8,))))))
    assert [(r["residual"], r["condition"]) for r in rows] == [("1e-12", "50.0")] * 2 + [("", "")]
    assert [(r["column"], r["depth"], r["paper"], r["ridge"], r["seeds"]) for r in rows] == [
        ("CNTK-GAP", "3", "70.47", "0.0", ""),
        ("CNTK-V", "3", "", "0.0", ""),
        ("net-w8", "3", "", "", "2"),
    ]


def test_latex_is_a_tabular_with_every_sign_escaped(results: Results):
    assert r"3 & 70.12 $\pm$ 0.50 (70.47) & 40.00 $\pm$ 0.50\textsuperscript{\dag} \\" in latex_table(results)
    heads = [c.model_copy(update={"name": "50 %_a" if c.name == "CNTK-V" else c.name}) for c in results.columns]
    lines = latex_table(results.model_copy(update={"columns": heads})).splitlines()
    assert r"\begin{tabular}{rrr}" in lines
    assert r"depth & CNTK-GAP & 50 \%\_a \\" in lines
    assert r"4 & -- (75.93) &  \\" in lines
    assert all(sign.isascii() for sign in "".join(lines))
