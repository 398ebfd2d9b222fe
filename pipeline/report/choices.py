"""What each choice is worth: paired differences of columns that differ in one thing alone, by that thing."""

from dataclasses import dataclass

from exact_ntk.records import PairedDifference, Results
from exact_ntk.report.differing import differences
from exact_ntk.report.drawing import MOST_LINES, MOST_PANELS, Dot, Drawing, Line, Panel, dots, panel
from exact_ntk.report.series import all_series

WORDS = "difference in accuracy (points)"


@dataclass(frozen=True)
class _Effect:
    """label: of the series without the choice, or of both where others with it are of another.  n: training images."""

    label: str
    n: int
    found: PairedDifference


def choices_drawing(results: Results) -> Drawing | None:
    """Paired differences, a panel a choice: for each series without it a line against training images or depth, or a
    row. None for a single difference, which a note tells."""
    if len(results.paired) < 2:
        return None
    n = {r.column: r.n_train for r in results.records}
    labels = {head.name: series.label for series in all_series(results) for head in series.columns.values()}
    groups = differences(results)
    shown = {title: _effects(found, labels, n) for title, found in list(groups.items())[:MOST_PANELS]}
    panels = [_panel(f"choices-{k}", *each) for k, each in enumerate(shown.items())]
    cut = any(len(_lines(effects)) > MOST_LINES for effects in shown.values())
    some = f" Of each choice at most {MOST_LINES} lines are drawn." * cut
    return Drawing(
        "choices",
        "What each choice is worth",
        "Differences between columns that are alike but for one thing, image by image on the same draws and test "
        f"images. Each line is named by the columns without it. Bars: one standard error.{some}",
        panels,
        [
            ["choice", "column", "minus", "depth", "n_train", "difference", "standard_error"],
            *(
                [title, p.column, p.minus, p.depth, n[p.column], p.difference, p.standard_error]
                for title, found in groups.items()
                for p in found
            ),
        ],
        len(groups),
    )


def _effects(found: list[PairedDifference], labels: dict[str, str], n: dict[str, int]) -> list[_Effect]:
    """labels: of each column's series.  n: its training images."""
    without = [minus for _, minus in {(labels[p.column], labels[p.minus]) for p in found}]

    def label(p: PairedDifference) -> str:
        return f"{labels[p.column]} minus " * (without.count(labels[p.minus]) > 1) + labels[p.minus]

    return [_Effect(label(p), n[p.column], p) for p in found]


def _panel(name: str, title: str, effects: list[_Effect]) -> Panel:
    lines = _lines(effects)
    if not lines:
        values = tuple(Dot(e.label, e.found.difference, e.found.standard_error) for e in effects)
        return dots(name, title, values, WORDS, zero=True)
    by_n = _is_by_n(effects)
    return panel(
        name,
        title,
        [_line(label, some, by_n) for label, some in list(lines.items())[:MOST_LINES]],
        "training images n" if by_n else "depth L",
        WORDS,
        ticks=sorted({_at(e, by_n) for e in effects}),
        zero=True,
    )


def _is_by_n(effects: list[_Effect]) -> bool:
    """Whether they are drawn against numbers of training images, of which there are no fewer than depths."""
    return len({e.n for e in effects}) >= len({e.found.depth for e in effects})


def _lines(effects: list[_Effect]) -> dict[str, list[_Effect]]:
    """Against what the effects have more of: numbers of training images, or depths; the other names lines. Empty
    where there is one of both."""
    numbers, depths = ({e.n for e in effects}, {e.found.depth for e in effects})
    by_n = _is_by_n(effects)
    several = len({e.label for e in effects}) > 1
    lines: dict[str, list[_Effect]] = {}
    for e in effects:
        other = f"L = {e.found.depth}" * (len(depths) > 1) if by_n else f"n = {e.n}" * (len(numbers) > 1)
        label = ", ".join(filter(None, [e.label * (several or not other), other]))
        lines.setdefault(label, []).append(e)
    return lines if len(numbers) > 1 or len(depths) > 1 else {}


def _line(label: str, effects: list[_Effect], by_n: bool) -> Line:
    some = sorted(effects, key=lambda e: _at(e, by_n))
    error = [e.found.standard_error for e in some]
    return Line(label, [[_at(e, by_n) for e in some]], [[e.found.difference for e in some]], error)


def _at(effect: _Effect, by_n: bool) -> int:
    return effect.n if by_n else effect.found.depth
