"""Tables of many columns: in rows that a page and a terminal hold, with few figures and all values."""

import csv
import io
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.records import ColumnHead, PairedDifference, Results, RidgeCurve
from exact_ntk.report import choices, drawing, figures, layout, notes, page, series, spectra
from exact_ntk.report.choices import choices_drawing
from exact_ntk.report.collect import Collected
from exact_ntk.report.figures import accuracy_drawing, drawings, learning_drawing
from exact_ntk.report.notes import caveats, described
from exact_ntk.report.spectra import kept_drawings
from exact_ntk.report.tables import grid, latex_table, markdown_table
from exact_ntk.report.write import write_report
from tests.made_up import DRAW, IMAGES, collected, kernel_record, made_up_table, replaced

NUMBERS = (10, 160, 40, "all")
KINDS = {"V": {}, "V-loo": {"ridge": {"select": "loo"}}, "V-flips": {"flips": True}, "LAP-4": {"readout": "lap-4"}}
CURVE = RidgeCurve(select="loo", ridge=0.1, ridges=[0.01, 0.1], errors=[2.0, 1.0])


def many(numbers=NUMBERS, depths=(6,)) -> Results:
    """Every kind at every number of training images; n = 500 where all are asked for, accuracy n / 10 + depth."""
    columns, heads, records, paired = [], [], [], []
    for n, (kind, keys) in product(numbers, KINDS.items()):
        name, images = f"{kind}-{n}", 500 if n == "all" else n
        columns.append({"name": name, "readout": "vanilla", **IMAGES, "train": {"n": n, "draws": 2}, **keys})
        readout = columns[-1]["readout"]
        heads.append(ColumnHead(name=name, model="cntk", readout=readout, depths=list(depths), paper=[]))
        draw = DRAW.model_copy(update={"ridge": CURVE if "ridge" in keys else None})
        more = {"readout": readout, "n_train": images, "draws": 2, "by_draw": [draw, draw], "flips": "flips" in keys}
        if "flips" in keys:
            more["preprocessed"] = f"ZCA fitted on the draw's {images} training images"
        records += [kernel_record(name, depth, images / 10 + depth, **more) for depth in depths]
        if kind != "V":
            found = {"column": name, "minus": f"V-{n}", "difference": 1.5, "standard_error": 0.5}
            paired += [PairedDifference(**found, depth=depth) for depth in depths]
    config = {**made_up_table().config, "columns": columns}
    return made_up_table().model_copy(
        update={"config": config, "columns": heads, "records": records, "paired": paired, "missing": []}
    )


def test_columns_that_differ_in_training_images_are_a_row():
    header, rows = grid(many())
    assert header == ["depth 6", "n = 10", "n = 40", "n = 160", "n = all"]
    assert [row[0] for row in rows] == list(KINDS)
    assert rows[0][1:] == ["7.00 ± 0.50", "10.00 ± 0.50", "22.00 ± 0.50", "56.00 ± 0.50"]
    assert all(len(line) < 120 for line in markdown_table(many()).splitlines() if line.startswith("|"))
    assert r"V-flips & 7.00" in latex_table(many())


def test_several_depths_are_rows_of_their_own_and_one_number_leaves_columns_by_depth(monkeypatch):
    header, rows = grid(many(depths=(3, 6)))
    assert header[0] == "column"
    assert [row[0] for row in rows[:3]] == ["V at depth 3", "V at depth 6", "V-loo at depth 3"]
    monkeypatch.setattr(layout, "MOST_ACROSS", 3)
    header, rows = grid(many(numbers=(10,), depths=(3, 6)))
    assert header == ["column", "depth 3", "depth 6"]
    assert rows[1] == ["V-loo-10", "4.00 ± 0.50", "7.00 ± 0.50"]


def test_more_numbers_of_training_images_than_fit_across_are_rows():
    header, rows = grid(many(numbers=range(10, 24)))
    assert header == ["depth 6", *KINDS]
    assert rows[1] == ["n = 11", *["7.10 ± 0.50"] * 4]
    header, rows = grid(many(numbers=range(10, 24), depths=(3, 6)))
    assert header[:3] == ["", "V at depth 3", "V at depth 6"]
    assert len(rows) == 14


READOUTS = {"V": "vanilla", "GAP": "gap", "LAP-4": "lap-4", "LAP-8": "lap-8"}
CHOICES = {"": {}, "-loo": {"ridge": {"select": "loo"}}, "-flips": {"flips": True}}


def chosen(choices=CHOICES, readouts=READOUTS) -> Results:
    """Every choice for every readout, on the same images."""
    table, names = many(numbers=(10,)), {}
    columns, heads, records, paired = [], [], [], []
    for (kernel, readout), (choice, keys) in product(readouts.items(), choices.items()):
        name = f"{kernel}{choice}"
        names[name] = keys
        columns.append({**table.config["columns"][0], "name": name, "readout": readout, **keys})
        heads.append(table.columns[0].model_copy(update={"name": name, "readout": readout}))
        draw = DRAW.model_copy(update={"ridge": CURVE if "ridge" in keys else None})
        more = {"readout": readout, "by_draw": [draw], "flips": "flips" in keys}
        records.append(kernel_record(name, 6, 40.0 + len(records), **more))
        if keys:
            points = {"difference": len(records) - 8.0, "standard_error": 1.0}
            paired.append(PairedDifference(column=name, minus=kernel + next(iter(choices)), depth=6, **points))
    config = {**table.config, "columns": columns}
    return table.model_copy(update={"config": config, "columns": heads, "records": records, "paired": paired})


def test_columns_that_differ_in_choices_are_a_row(monkeypatch):
    monkeypatch.setattr(layout, "MOST_ACROSS", 10)
    header, rows = grid(chosen())
    assert header == ["depth 6", "plain", "loo", "flips"]
    assert [row[0] for row in rows] == list(READOUTS)
    assert rows[1][1:] == ["43.00 ± 0.50", "44.00 ± 0.50", "45.00 ± 0.50"]
    assert described(chosen()) == [
        "All: 2000 training images, tested on 100.",
        "loo: each draw's ridge by leave-one-out error.",
        "flips: with mirror images.",
        "loo: ridges chosen 0.1 (the largest there was) at depth 6.",
    ]
    less = DRAW.model_copy(update={"ridge": CURVE.model_copy(update={"ridge": 0.01})})
    table = replaced(chosen(), "V-loo", by_draw=[less])
    assert described(table)[3:] == [
        "V-loo: ridges chosen 0.01 at depth 6.",
        "GAP-loo, LAP-4-loo, LAP-8-loo: ridges chosen 0.1 (the largest there was) at depth 6.",
    ]


def test_a_difference_of_nothing_is_on_neither_side(monkeypatch):
    monkeypatch.setattr(notes, "MOST_PAIRED", 1)
    table = chosen()
    same = {"difference": 0.0, "standard_error": 0.0}
    table = table.model_copy(update={"paired": [p.model_copy(update=same) for p in table.paired]})
    assert caveats(table)[1] == (
        "ridge by loo minus ridge 0: +0.00 to +0.00 points in 4 comparisons, 0 above 0 by two standard errors, 0 below."
    )


def test_a_choice_that_names_do_not_tell_is_told_in_words(monkeypatch):
    monkeypatch.setattr(layout, "MOST_ACROSS", 10)
    zca = {"preprocess": {"method": "zca"}, "flips": True}
    names = {"V-flips": "V-mirrored", "V-both": "both"}
    header, rows = grid(renamed(chosen({**CHOICES, "-both": zca}), names))
    words = ["standard preprocessing", "standard preprocessing, ridge by loo", "standard preprocessing, mirror images"]
    assert header == ["depth 6", *words, "ZCA, mirror images"]
    assert [row[0] for row in rows] == ["V", *list(READOUTS)[1:]]


def test_choices_that_few_kernels_have_leave_a_row_a_column(monkeypatch):
    monkeypatch.setattr(layout, "MOST_ACROSS", 4)
    table = chosen({"": {}, **{f"-{k}": {"ridge": k / 10} for k in range(1, 6)}}, {"V": "vanilla"})
    assert grid(table)[0] == ["column", "depth 6"]  # more choices than fit
    monkeypatch.setattr(layout, "MOST_ACROSS", 10)
    monkeypatch.setattr(layout, "MOST_ACROSS", 6)
    table = chosen({"": {}, **{f"-{k}": {"ridge": k / 10} for k in range(1, 4)}})
    assert len(grid(table)[1]) == 4
    few = [k for k, head in enumerate(table.columns) if head.name.startswith("V") or head.name in READOUTS]
    config = {**table.config, "columns": [table.config["columns"][k] for k in few]}
    sparse = table.model_copy(update={"config": config, "columns": [table.columns[k] for k in few]})
    assert len(grid(sparse)[1]) == len(few) == 7  # of 16 cells 9 would be empty


ANY_COLUMN = st.fixed_dictionaries(
    {
        "readout": st.sampled_from(["vanilla", "gap", "lap-4"]),
        "train": st.fixed_dictionaries({"n": st.sampled_from([10, 40, "all"]), "draws": st.sampled_from([1, 2])}),
        "depths": st.lists(st.sampled_from([3, 6]), min_size=1, unique=True),
    },
    optional={
        "flips": st.booleans(),
        "ridge": st.sampled_from([0.0, 0.1, {"select": "loo"}]),
        "preprocess": st.sampled_from(["standard", "none", {"method": "zca"}, {"method": "zca", "relative": 10}]),
        "unit_diagonal": st.sampled_from([True, "projected"]),
    },
)
ANY_NAME = st.text("Vloo-_. n10K+", min_size=1, max_size=8)


@given(st.dictionaries(ANY_NAME, ANY_COLUMN, min_size=1, max_size=20), st.integers(1, 12))
def test_every_cell_of_any_table_has_one_place_and_every_column_a_turn(columns: dict[str, dict], across: int):
    heads = [
        ColumnHead(name=name, model="cntk", readout=c["readout"], depths=sorted(c["depths"]), paper=[])
        for name, c in columns.items()
    ]
    config = {**made_up_table().config, "columns": [{"name": name, **IMAGES, **c} for name, c in columns.items()]}
    table = made_up_table().model_copy(update={"config": config, "columns": heads, "records": [], "paired": []})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MOST_ACROSS", across)
        header, rows = layout.laid_out(table, lambda head, depth: f"{head.name}/{depth}")
    assert all(len(row) == len(header) for row in rows)
    places = [cell for row in rows for cell in row[1:] if cell]
    assert sorted(places) == sorted(f"{head.name}/{depth}" for head in heads for depth in head.depths)
    assert sorted(head.name for head in series.leading(table)) == sorted(columns)


def test_a_table_of_few_columns_is_a_row_a_depth(results: Results):
    assert not layout.is_wide(results)
    assert grid(results)[0][0] == "depth"


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=6, unique=True))
def test_a_series_is_named_by_what_its_columns_share(numbers: list[int]):
    found = series.all_series(many(numbers))
    last = [f"{kind}-{max(numbers)}" for kind in KINDS]
    assert [s.label for s in found] == (list(KINDS) if len(numbers) > 1 else last)
    assert all(list(s.columns) == sorted(numbers) for s in found)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=6, unique=True))
def test_first_are_the_largest_of_each_series_and_of_these_one_of_each_kernel(numbers: list[int]):
    kinds = ["V", "LAP-4", "V-loo", "V-flips"]
    leading = [head.name for head in series.leading(many(numbers))]
    assert leading == [f"{kind}-{n}" for n in sorted(numbers, reverse=True) for kind in kinds]


def renamed(table: Results, names: dict[str, str]) -> Results:
    columns = [{**c, "name": names.get(c["name"], c["name"])} for c in table.config["columns"]]
    heads = [head.model_copy(update={"name": names.get(head.name, head.name)}) for head in table.columns]
    update = {"config": {**table.config, "columns": columns}, "columns": heads, "records": []}
    return table.model_copy(update=update)


@pytest.mark.parametrize(
    "small, large, label",
    [
        ("small", "simple", "small"),
        ("plain", "plain-20", "plain"),
        ("lap-2", "lap-2-20", "lap-2"),
        ("kern10", "kern20", "kern"),
        ("CNN-n10-w8", "CNN-n20-w8", "CNN-w8"),
        ("V-500", "V-1K", "V"),
        ("n10.V", "n20.V", "V"),
        ("V-loo", "V-loo-20", "V-loo"),
        ("LAP-4-10-a", "LAP-4-10-b", "LAP-4-10-a"),
    ],
)
def test_a_series_keeps_what_its_names_share_or_its_first_name(small: str, large: str, label: str):
    names = {"V-10": small, "V-20": large, "V-loo-10": "W", "V-loo-20": "W-2"}
    found = series.all_series(renamed(many(numbers=(10, 20)), names))
    assert [s.label for s in found] == [label, "W", "V-flips", "LAP-4"]


def test_of_two_columns_of_one_number_the_second_begins_a_series_at_its_own_place():
    table = renamed(many(numbers=(10, 20)), {"LAP-4-10": "again"})
    table.config["columns"][3] |= {"readout": "vanilla", "train": {"n": 10, "draws": 5}}
    found = series.all_series(table)
    assert [s.label for s in found] == ["V", "V-loo", "V-flips", "again", "LAP-4-20"]


def test_no_two_series_have_one_label():
    names = {"V-10": "a", "V-20": "b", "V-loo-10": "a-10", "V-loo-20": "a-20"}
    assert [s.label for s in series.all_series(renamed(many(numbers=(10, 20)), names))] == [
        *("a", "a-10", "V-flips", "LAP-4")
    ]


def test_a_column_that_leaves_its_preprocessing_to_the_data_is_alike_to_one_that_names_it():
    table = many(numbers=(10, 20))
    table.config["columns"][0]["preprocess"] = table.config["columns"][1]["preprocess"] = "standard"
    assert [s.label for s in series.all_series(table)] == list(KINDS)
    titles = [p.words.partition(",")[0] for p in choices_drawing(table).panels]
    assert titles == ["ridge by loo minus ridge 0", "mirror images minus none", "lap-4 minus vanilla"]


def test_what_all_columns_share_is_said_once():
    assert described(many()) == [
        "All: tested on 100, mean of 2 draws.",
        "V-loo: each draw's ridge by leave-one-out error.",
        "V-flips: ZCA fitted on the draw's training images, with mirror images.",
        "V-loo: ridges chosen 0.1 (8 of 8 the largest there were) at depth 6.",
    ]
    table = many()
    for place, r in enumerate(table.records):
        table.records[place] = r.model_copy(update={"draws": 5}) if r.column.endswith("-10") else r
    assert described(table)[0] == "All: tested on 100, mean of 5 draws (n = 10), mean of 2 draws (n = 40, 160, all)."
    assert len(caveats(many())) == 12
    head, *worth = caveats(many(numbers=range(10, 30)))
    assert head.startswith("60 paired differences, image by image, are in results.json and drawn in report.html")
    sure = "20 comparisons, 20 above 0 by two standard errors, 0 below"
    assert worth[1] == f"mirror images minus none: +1.50 to +1.50 points in {sure}."


@pytest.mark.parametrize(
    "ticks, kept",
    [
        ([10], [10]),
        ([3, 4], [3, 4]),
        ([3, 4, 6, 11, 21], [3, 4, 6, 11, 21]),
        (range(10, 40), [10, 12, 14, 16, 18, 21, 24, 27, 31, 39]),
    ],
)
def test_numbers_below_an_axis_do_not_run_into_each_other(ticks, kept):
    assert drawing.spaced(ticks) == kept


def test_what_a_choice_is_worth_is_drawn_against_images_depth_or_in_rows():
    drawing = choices_drawing(many())
    titles = [p.words.partition(",")[0] for p in drawing.panels]
    assert titles == ["ridge by loo minus ridge 0", "mirror images minus none", "lap-4 minus vanilla"]
    assert "V from 1.5 at 10 to 1.5 at 500" in drawing.panels[0].words
    assert drawing.rows[1] == ["ridge by loo minus ridge 0", "V-loo-10", "V-10", 6, 10, 1.5, 0.5]
    by_depth = choices_drawing(many(numbers=(10,), depths=(3, 6)))
    assert "against depth L. V-10 from 1.5 at 3 to 1.5 at 6." in by_depth.panels[0].words
    both = choices_drawing(many(numbers=(10, 20), depths=(3, 4, 6)))
    assert "against depth L. n = 10 from 1.5 at 3 to 1.5 at 6; n = 20 from" in both.panels[0].words
    rows = choices_drawing(many(numbers=(10,)))
    assert rows.panels[0].words.endswith("difference in accuracy (points). V-10 1.5, error 0.5.")


def test_two_choices_of_one_name_are_told_apart():
    zca = [{"method": "zca"}, {"method": "zca", "relative": 10}]
    table = many(numbers=(10,), depths=(3, 6))
    for column, how in zip(table.config["columns"][1:3], zca, strict=True):
        del column["flips" if "flips" in column else "ridge"]
        column["preprocess"] = how
    found = {"difference": 1.5, "standard_error": 0.5, "depth": 3}
    paired = [PairedDifference(column="V-flips-10", minus="V-loo-10", **found)]
    for column in table.config["columns"][3:]:  # pooled in two ways, say with and without trained ends
        column["readout"] = "gap"
    table = table.model_copy(update={"paired": [*table.paired, *paired]})
    titles = [p.words.partition(", difference")[0] for p in choices_drawing(table).panels]
    assert titles == [
        *("ZCA minus standard preprocessing", "ZCA (relative 10) minus standard preprocessing"),
        *("gap minus vanilla", "ZCA (relative 10) minus ZCA"),
    ]
    table.config["columns"][2] |= {"preprocess": None, "readout": "gap"}
    words = {p.words.partition(",")[0]: p.words for p in choices_drawing(table).panels}
    assert "V-flips-10 minus V-10 from 1.5" in words["gap minus vanilla"]
    assert "LAP-4-10 minus V-10 from 1.5" in words["gap minus vanilla"]


def test_more_choices_than_a_page_holds_are_in_the_values():
    table = many(numbers=(10,))
    more = [{**table.config["columns"][0], "name": f"V-r{k}", "ridge": 0.01 * k} for k in range(1, 15)]
    found = {"minus": "V-10", "depth": 6, "difference": 1.5, "standard_error": 0.5}
    table = table.model_copy(
        update={
            "config": {**table.config, "columns": [*table.config["columns"], *more]},
            "columns": [*table.columns, *(table.columns[0].model_copy(update={"name": c["name"]}) for c in more)],
            "records": [*table.records, *(kernel_record(c["name"], 6, 10.0, readout="vanilla") for c in more)],
            "paired": [PairedDifference(column=c["name"], **found) for c in more],
        }
    )
    drawing = choices_drawing(table)
    assert (len(drawing.panels), drawing.total, len(drawing.rows)) == (12, 14, 15)


def test_more_lines_of_a_choice_than_can_be_told_apart_are_in_the_values(monkeypatch):
    monkeypatch.setattr(choices, "MOST_LINES", 2)
    found = choices_drawing(many(depths=(3, 4, 6)))
    assert [p.words.count(" from ") for p in found.panels] == [2, 2, 2]
    assert "Of each choice at most 2 lines are drawn." in found.caption
    assert len(found.rows) == 1 + 3 * 4 * 3
    assert "at most" not in choices_drawing(many()).caption


def test_accuracy_against_depth_has_lines_that_can_be_told_apart():
    drawing = accuracy_drawing(many(numbers=range(10, 15), depths=(3, 6)))
    vanilla, lap = (p.words for p in drawing.panels)
    assert (vanilla.count(" from "), lap.count(" from ")) == (12, 5)
    assert "V-14 from" in vanilla
    assert "V-loo-10 from" not in vanilla
    assert len(drawing.rows) == 1 + 2 * 20
    assert "Of each readout at most 12 columns are drawn" in drawing.caption


def test_learning_curves_stand_in_for_accuracy_and_else_it_is_rows():
    assert accuracy_drawing(many()) is None
    assert [len(p.words.split(";")) for p in learning_drawing(many()).panels] == [3, 1]
    rows = accuracy_drawing(many(numbers=(10,)))
    assert "V-flips-10 7, error 0.5" in rows.panels[0].words
    assert rows.title == "Accuracy"
    deep = learning_drawing(many(depths=(3, 6)))
    assert "V-loo, L = 6 from" in deep.panels[0].words


def test_many_learning_curves_are_a_panel_a_series():
    found = learning_drawing(many(depths=(3, 4, 5, 6, 7)))
    assert [p.words.partition(",")[0] for p in found.panels] == ["V", "V-loo", "V-flips", "CNTK"]


@pytest.fixture
def wide() -> Collected:
    found = collected(many(numbers=range(10, 14)))
    for draws in found.arrays.values():
        draws[0] |= {"eigenvalues": np.array([2.0, 1.0]), **{f"flow_{k}": np.ones(2) for k in ("time", "loss", "test")}}
    return replace(found, apart=[])


def test_a_page_of_many_columns_holds_few_figures_and_links_every_value(wide, tmp_path: Path, monkeypatch):
    for module in (figures, spectra, page):
        monkeypatch.setattr(module, "MOST_PANELS", 2)
    monkeypatch.setattr(page, "MOST_EMBEDDED", 300)
    drawn = {d.name: d for d in (*drawings(wide.results), *kept_drawings(wide))}
    assert [len(drawn[name].panels) for name in ("ridge", "spectrum", "flow")] == [2, 2, 2]
    assert drawn["spectrum"].panels[0].name == "spectrum-V-13"
    write_report(wide, "name: made\n", tmp_path / "made")
    html = (tmp_path / "made" / "report.html").read_text()
    assert "Of 16 panels 2 are drawn." in html
    assert html.count("Of 16 columns 2 are shown.") == 2
    assert html.count('alt="Gram matrix of') == 2
    beside = sorted(p.name for p in (tmp_path / "made" / "figures").glob("*.csv"))
    assert "spectrum.csv" in beside
    assert all(f"figures/{name}, beside this page" in html for name in beside)
    assert 'download="table.csv"' in html
    assert "Stages and cells: provenance.json, beside this page." in html
    rows = list(csv.reader(io.StringIO((tmp_path / "made" / "figures" / "spectrum.csv").read_text())))
    assert len(rows) == 1 + 16 * 2
    monkeypatch.setattr(page, "MOST_EMBEDDED", 10**6)
    write_report(wide, "name: made\n", tmp_path / "made")
    assert not list((tmp_path / "made" / "figures").glob("*.csv"))
    assert "<summary>Stages and cells</summary>" in (tmp_path / "made" / "report.html").read_text()
