"""Tables of text, a header and rows of as many cells: in columns of equal width."""

from collections.abc import Sequence

Grid = tuple[Sequence[str], Sequence[Sequence[str]]]
MOST_NAMED = 3


def named(names: Sequence[str], kind: str = "columns") -> str:
    """The names, or of many the first and how many others there are."""
    if len(names) <= MOST_NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} other {kind}"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Header, rule and rows in columns."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows)])
