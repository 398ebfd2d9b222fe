"""What each choice is worth: paired differences of columns that differ in one thing alone, by that thing."""

from dataclasses import dataclass
from typing import Any

from exact_ntk.records import PairedDifference, Results
from exact_ntk.report.drawing import Dot, Drawing, Line, Panel, dots, panel
from exact_ntk.report.layout import all_series, configured
from exact_ntk.report.paired import APART

WORDS = "difference in accuracy (points)"


@dataclass(frozen=True)
class _Effect:
    """label: of the series that the choice is added to.  n: its training images."""

    label: str
    n: int
    found: PairedDifference


def choices_drawing(results: Results) -> Drawing | None:
    """Paired differences, a panel a choice: for each series without it a line against training images or depth, or a
    row. None for a single difference, which a note tells."""
    if len(results.paired) < 2:
        return None
    columns = configured(results)
    labels = {head.name: series.label for series in all_series(results) for head in series.columns.values()}
    numbers = {r.column: r.n_train for r in results.records}
    groups: dict[str, list[_Effect]] = {}
    for p in results.paired:
        effect = _Effect(labels[p.minus], numbers[p.column], p)
        groups.setdefault(_choice(columns[p.column], columns[p.minus]), []).append(effect)
    panels = [_panel(f"choices-{k}", title, effects) for k, (title, effects) in enumerate(groups.items())]
    return Drawing(
        "choices",
        "What each choice is worth",
        "Differences between columns that are alike but for one thing, image by image on the same draws and test "
        "images. Each line is named by the column without it. Bars: one standard error.",
        panels,
        [
            ["choice", "column", "minus", "depth", "n_train", "difference", "standard_error"],
            *(
                [title, e.found.column, e.found.minus, e.found.depth, e.n, e.found.difference, e.found.standard_error]
                for title, effects in groups.items()
                for e in effects
            ),
        ],
    )


def _choice(column: dict[str, Any], minus: dict[str, Any]) -> str:
    """What a column has and what the other has in its place: mirror images minus none."""
    key = next((k for k in ("readout", *APART) if column.get(k) != minus.get(k)), "readout")
    return " minus ".join(_named(key, asked.get(key)) for asked in (column, minus))


def _named(key: str, value: Any) -> str:
    if key == "preprocess":
        method = value["method"] if isinstance(value, dict) else value
        return {"zca": "ZCA", "none": "unprocessed"}.get(method, f"{method} preprocessing")
    if key == "flips":
        return "mirror images" if value else "none"
    if key == "unit_diagonal":
        return {True: "unit diagonal", "projected": "projected unit diagonal"}.get(value, "none")
    if key == "ridge":
        return f"ridge by {value['select']}" if isinstance(value, dict) else f"ridge {value or 0:g}"
    return str(value)


def _panel(name: str, title: str, effects: list[_Effect]) -> Panel:
    of = {"n": len({e.n for e in effects}) > 1, "depth": len({e.found.depth for e in effects}) > 1}
    if not any(of.values()):
        values = tuple(Dot(e.label, e.found.difference, e.found.standard_error) for e in effects)
        return dots(name, title, values, WORDS, zero=True)
    lines: dict[str, list[_Effect]] = {}
    for e in effects:
        lines.setdefault(e.label + f", L = {e.found.depth}" * all(of.values()), []).append(e)
    return panel(
        name,
        title,
        [_line(label, some, of["n"]) for label, some in lines.items()],
        "training images n" if of["n"] else "depth L",
        WORDS,
        ticks=sorted({_at(e, of["n"]) for e in effects}),
        zero=True,
    )


def _line(label: str, effects: list[_Effect], by_n: bool) -> Line:
    some = sorted(effects, key=lambda e: _at(e, by_n))
    error = [e.found.standard_error for e in some]
    return Line(label, [[_at(e, by_n) for e in some]], [[e.found.difference for e in some]], error)


def _at(effect: _Effect, by_n: bool) -> int:
    return effect.n if by_n else effect.found.depth
