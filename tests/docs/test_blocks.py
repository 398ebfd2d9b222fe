"""Every code block of the documentation runs, or says why not; how many of each is printed."""

from collections import Counter
from pathlib import Path

import pytest

from exact_ntk.errors import NtkError
from tests.docs.blocks import Block, Reader, blocks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path)
    for block in blocks(page):
        if block.kind != "not run":
            reader.run(block)


@pytest.mark.docs
def test_how_many_blocks_run_is_printed(capsys: pytest.CaptureFixture):
    counts = Counter(block.kind for page in PAGES for block in blocks(page))
    with capsys.disabled():
        print(
            "\ncode blocks: "
            + ", ".join(f"{counts[k]} {k}" for k in ("as it stands", "with smaller values", "not run"))
        )
    assert counts["as it stands"] > counts["with smaller values"] + counts["not run"]


def test_a_block_that_is_wrong_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '```yaml title="mine.yaml"\nname: mine\ndata: {dataset: digits}\ncolumns: []\n```\n'
        "<!-- run with 5 -> 2 -->\n```python\nassert 5 == 2\nx = 5\n```\n"
        "```sh\nfalse\n```\n<!-- not run: no -->\n```python\n1 / 0\n```\n```python\nprint(x)\n```\n```text\n5\n```\n"
    )
    yaml, smaller, shell, skipped, last = blocks(page)
    assert [b.kind for b in (smaller, shell, skipped)] == ["with smaller values", "as it stands", "not run"]
    reader = Reader(tmp_path)
    reader.run(smaller)
    for block in (yaml, shell, last):
        with pytest.raises((AssertionError, NtkError)):
            reader.run(block)
    with pytest.raises(ValueError, match="9 is not in the block"):
        reader.run(Block("python", None, "x = 1", "run with 9 -> 1", "here"))
