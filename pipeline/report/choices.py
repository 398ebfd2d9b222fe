"""What each choice is worth: paired differences of columns that differ in one thing alone, by that thing."""

from dataclasses import dataclass
from typing import Any

from exact_ntk.config import RidgeChoice, Zca
from exact_ntk.records import PairedDifference, Results
from exact_ntk.report.drawing import MOST_PANELS, Dot, Drawing, Line, Panel, dots, panel
from exact_ntk.report.layout import all_series, configured
from exact_ntk.report.paired import APART

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
    columns, n = configured(results), {r.column: r.n_train for r in results.records}
    labels = {head.name: series.label for series in all_series(results) for head in series.columns.values()}
    groups: dict[str, list[PairedDifference]] = {}
    for p in results.paired:
        groups.setdefault(_choice(columns[p.column], columns[p.minus]), []).append(p)
    shown = list(groups.items())[:MOST_PANELS]
    panels = [_panel(f"choices-{k}", title, _effects(found, labels, n)) for k, (title, found) in enumerate(shown)]
    return Drawing(
        "choices",
        "What each choice is worth",
        "Differences between columns that are alike but for one thing, image by image on the same draws and test "
        "images. Each line is named by the columns without it. Bars: one standard error.",
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


def _choice(column: dict[str, Any], minus: dict[str, Any]) -> str:
    """What a column has and what the other has in its place: mirror images minus none."""
    key = next((k for k in ("readout", *APART) if column.get(k) != minus.get(k)), "readout")
    return " minus ".join(_in_words(key, asked.get(key)) for asked in (column, minus))


def _in_words(key: str, value: Any) -> str:
    if key == "preprocess":
        if isinstance(value, dict):
            return "ZCA" + _settings(Zca.model_validate(value))
        return "unprocessed" if value == "none" else f"{value} preprocessing"
    if key == "flips":
        return "mirror images" if value else "none"
    if key == "unit_diagonal":
        return {True: "unit diagonal", "projected": "projected unit diagonal"}.get(value, "none")
    if key == "ridge":
        if isinstance(value, dict):
            return f"ridge by {value['select']}" + _settings(RidgeChoice.model_validate(value))
        return f"ridge {value or 0:g}"
    return str(value)


def _settings(how: Zca | RidgeChoice) -> str:
    """Those that are not the defaults, without which two that differ in them would share a name."""
    given = how.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"method", "select"})
    said = [
        key if value is True else f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in given.items()
    ]
    return f" ({', '.join(said)})" if said else ""


def _panel(name: str, title: str, effects: list[_Effect]) -> Panel:
    """Against what the effects have more of: numbers of training images, or depths; the other names lines."""
    numbers, depths = ({e.n for e in effects}, {e.found.depth for e in effects})
    if len(numbers) == len(depths) == 1:
        values = tuple(Dot(e.label, e.found.difference, e.found.standard_error) for e in effects)
        return dots(name, title, values, WORDS, zero=True)
    by_n = len(numbers) >= len(depths)
    several = len({e.label for e in effects}) > 1
    lines: dict[str, list[_Effect]] = {}
    for e in effects:
        other = f"L = {e.found.depth}" * (len(depths) > 1) if by_n else f"n = {e.n}" * (len(numbers) > 1)
        label = ", ".join(filter(None, [e.label * (several or not other), other]))
        lines.setdefault(label, []).append(e)
    return panel(
        name,
        title,
        [_line(label, some, by_n) for label, some in lines.items()],
        "training images n" if by_n else "depth L",
        WORDS,
        ticks=sorted(numbers if by_n else depths),
        zero=True,
    )


def _line(label: str, effects: list[_Effect], by_n: bool) -> Line:
    some = sorted(effects, key=lambda e: _at(e, by_n))
    error = [e.found.standard_error for e in some]
    return Line(label, [[_at(e, by_n) for e in some]], [[e.found.difference for e in some]], error)


def _at(effect: _Effect, by_n: bool) -> int:
    return effect.n if by_n else effect.found.depth
