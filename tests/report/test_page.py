"""The page: one file that asks for nothing, holds the table, and says what is missing."""

import base64
import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from exact_ntk.records import Results
from exact_ntk.report.figures import drawings
from exact_ntk.report.page import page
from exact_ntk.report.tables import csv_table
from tests.made_up import collected, made_up_table, with_networks


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    """The page of the made-up table; figures take a second to draw."""
    return made(made_up_table())


@pytest.fixture(scope="module")
def nets() -> str:
    return made(with_networks(made_up_table(), (8, 16)))


def made(results: Results) -> str:
    return page(collected(results), drawings(results), "name: <made>\n")


def test_the_page_is_one_file_that_asks_for_nothing(nets: str):
    links = [attrs[key] for _, attrs in Tags(nets).tags for key in ("src", "href", "xlink:href") if key in attrs]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in nets


def test_text_from_records_is_escaped(html: str):
    assert "<made>" not in html
    assert "&lt;cpu&gt;" in html
    assert "c &lt; d" in html


def test_every_figure_has_words_and_every_id_is_there_once(nets: str):
    tags = Tags(nets).tags
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "svg")
    assert sum(tag == "figcaption" for tag, _ in tags) >= sum(tag == "figure" for tag, _ in tags)
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_ours_stand_beside_the_paper_s_with_the_difference_in_standard_errors(html: str):
    text = Tags(html).text
    assert "70.12 ± 0.50paper 70.47, -0.7 SE" in text
    assert "–paper 75.93" in text  # missing
    assert "40.00 ± 0.50†" in text


def test_the_csv_link_holds_the_table(results: Results, html: str):
    links = [a for tag, a in Tags(html).tags if tag == "a" and a["download"] == "table.csv"]
    text = base64.b64decode(links[0]["href"].partition(",")[2]).decode()
    assert text == csv_table(results)
    assert len(list(csv.DictReader(io.StringIO(text)))) == 2


def test_seconds_of_cells_and_stages_and_the_command_are_there(html: str):
    text = Tags(html).text
    assert "3.2" in text  # 1.25 + 2
    assert "1,234.6" in text
    assert "ntk run config.yaml" in text
    assert "mine.npz where it says" in text


def test_stores_of_the_same_columns_share_a_row(results: Results):
    found = collected(results)
    of = {"columns": ["A", "B"], "device": "CPU"}
    other = {"gram-3": {**of, "columns": ["A"], "seconds": 4.0}, "gram-4": {**of, "device": "GPU"}}
    stages = {"gram-1": {**of, "seconds": 1.0}, "gram-2": {**of, "columns": ["B", "A"], "seconds": 2.5}, **other}
    text = Tags(page(replace(found, provenance={**found.provenance, "stages": stages}), [], "")).text
    assert "2 Gram storesA, B3.5CPUgram-3A4.0CPUgram-4A, B–GPU" in text


def test_classes_whose_names_begin_alike_are_told_apart(results: Results):
    names = ("class_a", "class_b", "other")
    text = page(replace(collected(results), classes=names), [], "")
    heads = re.findall('class="confusion"><thead>(.*?)</thead>', text)
    assert len(heads) == 2
    assert all(Tags(head).text == "".join(names) for head in heads)


def test_many_classes_have_no_matrix_and_nothing_finished_is_a_page_too(results: Results):
    found = collected(results)
    many = type(found)(results, found.provenance, found.arrays, tuple(f"class {k}" for k in range(30)))
    text = Tags(page(many, [], "")).text
    assert "up to 20 classes; here are 30" in text
    nothing = results.model_copy(update={"records": [], "paired": []})
    html = made(nothing)
    assert "No cell of made is finished" in html
    assert not re.search("<svg|<img", html)


def test_published_pages_can_be_sent():
    pages = list((Path(__file__).parents[2] / "results" / "published").glob("*/report.html"))
    assert pages
    assert {path.parent.name: path.stat().st_size for path in pages if path.stat().st_size > 3_000_000} == {}
