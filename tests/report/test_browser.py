"""Reports in a browser, wide and narrow, light and dark: nothing asked for or broken, and table.csv's table."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from exact_ntk.report.compare import read_results
from exact_ntk.report.layout import laid_out
from exact_ntk.report.write import write_report
from tests.browsing import SCHEMES, WIDTHS, Browser, Seen, launched
from tests.made_up import collected, made_up_table, with_networks

pytestmark = pytest.mark.browser

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
# The page that has everything, and the real ones.
PAGES = ["made-up", *sorted(path.parent.name for path in PUBLISHED.glob("*/report.html"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "made"
    write_report(collected(with_networks(made_up_table(), (8, 16))), "name: made\n", folder)
    return folder


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_has_no_fault_and_the_table_of_its_csv(browser: Browser, made, tmp_path, name, scheme, width):
    folder = made if name == "made-up" else PUBLISHED / name
    with browser.open(folder / "report.html", width, scheme) as seen:
        seen.photograph(tmp_path, f"report-{name}-{width}-{scheme}")
        assert seen.faults() == []
        assert shown(seen, folder) == kept(folder / "table.csv")


def test_no_table_is_cut_off_on_paper(browser: Browser, made: Path):
    with browser.open(made / "report.html", 690, "light") as seen:  # A4 between its margins
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate("[...document.querySelectorAll('.wide')].every(e => e.scrollWidth <= e.clientWidth)")


def shown(seen: Seen, folder: Path) -> dict[str, str]:
    """Column/depth -> accuracy and error as the first table shows them, marks and the paper's value aside."""
    _, *rows = seen.page.evaluate(
        "[...document.querySelector('table').rows].map(r => [...r.cells].map(c => c.firstChild?.textContent ?? ''))"
    )
    _, places = laid_out(read_results(folder), lambda column, depth: f"{column.name}/{depth}")
    cells = {
        name: text.rstrip("†‡§¶")
        for names, texts in zip(places, rows, strict=True)
        for name, text in zip(names[1:], texts[1:], strict=True)
    }
    return {name: text for name, text in cells.items() if "±" in text}


def kept(path: Path) -> dict[str, str]:
    lines = csv.DictReader(path.read_text().splitlines())
    return {
        f"{r['column']}/{r['depth']}": f"{float(r['accuracy']):.2f} ± {float(r['standard_error']):.2f}" for r in lines
    }


def test_a_fault_is_seen(browser: Browser, tmp_path: Path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><title>t</title><img src="http://127.0.0.1:9/x.png"><div style="width: 3000px">wide</div>'
        '<script>console.log("hello"); throw Error("thrown")</script><a href="x"></a>'
    )
    with browser.open(bad, 390, "light") as seen:
        faults = "\n".join(seen.faults())
    for words in ("asks for http://127", "console: hello", "thrown", "broken image", "wider than", "axe: link-name"):
        assert words in faults
