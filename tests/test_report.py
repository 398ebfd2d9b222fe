"""Tables, figures and the page: pure functions of records."""

import csv
import io

import numpy as np
import pytest

from pipeline import figures, report
from pipeline.figures import accuracy_figure, curves_figure, gram_figure, width_figure
from pipeline.html import page

PNG = b"\x89PNG\r\n"


def record(column: str, depth: int, accuracy: float, **more) -> dict:
    kernel = {"model": "cntk", "readout": "gap", "test_from": "test", "draws": 1, "ridge": 0.0, "indefinite": False}
    return {
        **kernel,
        "column": column,
        "depth": depth,
        "accuracy": accuracy,
        "standard_error": 0.5,
        "n_train": 2000,
        "n_test": 100,
        "by_draw": [{"overlaps": False}],
        **more,
    }


IMAGES = {"train": {"n": 20}, "test": {"n": 5}, "train_first": None, "train_last": None}


@pytest.fixture
def results() -> dict:
    return {
        "name": "made",
        "config": {
            "name": "made",
            "columns": [
                {"name": "CNTK-GAP", "readout": "gap", **IMAGES},
                {"name": "CNTK-V", "readout": "vanilla", **IMAGES},
            ],
        },
        "columns": [
            {"name": "CNTK-GAP", "model": "cntk", "readout": "gap", "depths": [3, 4], "paper": [70.47, 75.93]},
            {"name": "CNTK-V", "model": "cntk", "readout": "vanilla", "depths": [3], "paper": []},
        ],
        "records": [record("CNTK-GAP", 3, 70.123), record("CNTK-V", 3, 40.0, indefinite=True, readout="vanilla")],
        "paired": [{"column": "CNTK-GAP", "minus": "CNTK-V", "depth": 3, "difference": 5.2, "standard_error": 2.13}],
        "missing": [{"column": "CNTK-GAP", "depth": 4, "needs": "run `ntk compute-gram` and `ntk solve`"}],
    }


def test_the_table_puts_ours_beside_the_papers(results: dict):
    header, rows = report.grid(results)
    assert header == ["depth", "CNTK-GAP", "CNTK-V"]
    assert rows == [["3", "70.12 ± 0.50 (70.47)", "40.00 ± 0.50†"], ["4", "– (75.93)", ""]]


def test_notes_say_what_is_marked_and_what_would_fill_a_gap(results: dict):
    notes = "\n".join(report.notes(results))
    assert "† the Gram matrix was not positive definite; solved by LU" in notes
    assert "CNTK-GAP minus CNTK-V, image by image: +5.20 ± 2.13 at depth 3." in notes
    assert "missing CNTK-GAP/4: run `ntk compute-gram` and `ntk solve`" in notes
    assert "CNTK-GAP: 2000 training images, tested on 100." in notes
    results["records"][0]["by_draw"][0]["overlaps"] = True
    assert "‡ some draws share training images" in "\n".join(report.notes(results))


def test_seeds_that_never_fitted_their_images_are_said(results: dict):
    notes = "\n".join(report.notes(with_networks(results, (8,))))
    assert "net-w8 at depth 3: 1 of 2 seeds did not reach 100 % training accuracy in 1 epochs; mean" in notes
    results["records"][-1]["runs"] = results["records"][-1]["runs"][:1]
    assert "did not reach" not in "\n".join(report.notes(results))


def test_markdown_is_a_table_and_text_is_aligned(results: dict):
    lines = report.markdown(results).splitlines()
    assert lines[2] == "| depth | CNTK-GAP | CNTK-V |"
    assert lines[3].count("---:") == 3
    text = report.text(results).splitlines()
    assert len({len(line) for line in text[:3]}) == 1


def test_csv_has_a_line_a_cell(results: dict):
    rows = list(csv.DictReader(io.StringIO(report.csv_table(results))))
    assert [(r["column"], r["depth"], r["paper"]) for r in rows] == [("CNTK-GAP", "3", "70.47"), ("CNTK-V", "3", "")]


def test_figures_are_png_and_the_same_for_the_same_records(results: dict):
    assert accuracy_figure(results).startswith(PNG)
    assert accuracy_figure(results) == accuracy_figure(results)
    k = np.eye(6) + 0.1
    assert gram_figure(k, np.array([0, 1, 0, 1, 1, 2]), ("a", "b", "c"), "title").startswith(PNG)


def with_networks(results: dict, widths: tuple[int, ...], **kernel_column) -> dict:
    """The same table with a network of several widths beside CNTK-GAP, on the same images."""
    names = [f"net-w{w}" for w in widths]
    results["columns"] += [{"name": n, "model": "cnn", "readout": "gap", "depths": [3], "paper": []} for n in names]
    results["config"]["columns"] += [{"name": n, "readout": "gap", **IMAGES} for n in names]
    results["config"]["columns"][0].update(kernel_column)
    history = {"loss": [0.4, 0.1], "train_accuracy": [50.0, 100.0], "test_accuracy": [40.0, 60.0]}
    cut = {key: values[:1] for key, values in history.items()}
    runs = [
        {"history": history, "fitted_at": 2, "diverged": None, "epochs": 2},
        {"history": cut, "fitted_at": None, "diverged": None, "epochs": 1},
    ]
    for name, width in zip(names, widths, strict=True):
        network = {"model": "cnn", "width": width, "seeds": 2, "runs": runs, "train_accuracy": 75.0}
        results["records"].append(record(name, 3, 50.0 + width, **network))
    return results


def test_networks_are_drawn_against_width_beside_their_own_kernel(results: dict):
    ((readout, nets, kernel),) = figures._width_lines(with_networks(results, (16, 8)))
    assert (readout, [r["width"] for r in nets], kernel["column"]) == ("gap", [8, 16], "CNTK-GAP")
    assert width_figure(results).startswith(PNG)


@pytest.mark.parametrize("other", [{"train": {"n": 99}}, {"train_last": True}, {"test": {"n": 6}}])
def test_a_kernel_of_other_images_or_trained_ends_is_not_the_networks_limit(results: dict, other: dict):
    ((_, _, kernel),) = figures._width_lines(with_networks(results, (8, 16), **other))
    assert kernel is None
    assert width_figure(results).startswith(PNG)


def test_there_is_no_width_figure_for_one_width_and_no_curves_without_networks(results: dict):
    assert curves_figure(results) is None
    assert width_figure(results) is None
    one = with_networks(results, (8,))
    assert width_figure(one) is None
    assert curves_figure(one).startswith(PNG)
    assert curves_figure(one) == curves_figure(one)


def test_the_page_is_one_file_and_escapes_text(results: dict):
    provenance = {"report": {"device": "<cpu>", "threads": 2, "versions": {"torch": "2"}}}
    html = page(results, provenance, {"a < b": PNG})
    assert "a &lt; b" in html
    assert "&lt;cpu&gt;" in html
    assert 'src="data:image/png;base64,' in html
    assert "http" not in html
