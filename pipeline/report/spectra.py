"""Spectra and gradient flow of the kernel columns, from what the solve stage keeps of their first draws."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from exact_ntk.records import ColumnHead
from exact_ntk.report.collect import Collected
from exact_ntk.report.drawing import MOST_PANELS, Drawing, Line, Panel, panel
from exact_ntk.report.series import leading

# Points of a line: more can be seen neither on a screen nor on paper.
MOST_POINTS = 60
SMALLEST = 1e-16  # of the largest eigenvalue: below is what float64 makes of 0


def kept_drawings(collected: Collected) -> list[Drawing]:
    """Spectra, loss and accuracy over training time, as far as there are any."""
    return [drawing for make in (spectrum_drawing, flow_drawing) if (drawing := make(collected)).panels]


def _firsts(collected: Collected, column: ColumnHead, key: str) -> list[tuple[int, dict[str, np.ndarray]]]:
    """(depth, arrays) of a column's first draws that hold a key."""
    found = ((d, collected.arrays.get((column.name, d), [])) for d in column.depths)
    return [(depth, draws[0]) for depth, draws in found if draws and key in draws[0]]


def spectrum_drawing(collected: Collected) -> Drawing:
    """Eigenvalues against their place, a panel a column, a line a depth."""
    found: list[tuple[str, list[Line]]] = []
    rows: list[list[Any]] = [["column", "depth", "place", "eigenvalue_over_largest"]]
    for column in leading(collected.results):
        lines = []
        for depth, arrays in _firsts(collected, column, "eigenvalues"):
            values = arrays["eigenvalues"] / arrays["eigenvalues"][0]
            places = np.unique(np.geomspace(1, len(values), MOST_POINTS).round().astype(int))
            rows += [[column.name, depth, i, values[i - 1]] for i in places.tolist()]
            at = places[values[places - 1] > SMALLEST]
            lines.append(Line(f"L = {depth}", [at.tolist()], [values[at - 1].tolist()]))
        if lines:
            found.append((column.name, lines))
    caption = (
        "How fast the eigenvalues of the Gram matrix fall: the flatter, the more directions a network learns early, "
        "and the better conditioned the system. The first draw, ridge included. Drawn, and in the CSV, are at most "
        f"{MOST_POINTS} of them: ntk export --what spectrum gives all."
    )
    panels = _panels("spectrum", found, ("place", "eigenvalue over the largest"), log_y=True)
    return Drawing("spectrum", "Spectra", caption, panels, rows, len(found))


def flow_drawing(collected: Collected) -> Drawing:
    """Test accuracy of the infinitely wide network over training time, a panel a column, a line a depth."""
    found: list[tuple[str, list[Line]]] = []
    rows: list[list[Any]] = [["column", "depth", "time_times_largest_eigenvalue", "training_loss", "test_accuracy"]]
    for column in leading(collected.results):
        lines = []
        for depth, arrays in _firsts(collected, column, "flow_time"):
            time, loss, test = (arrays[key].tolist() for key in ("flow_time", "flow_loss", "flow_test"))
            lines.append(Line(f"L = {depth}", [time], [test]))
            rows += [[column.name, depth, *values] for values in zip(time, loss, test, strict=True)]
        if lines:
            found.append((column.name, lines))
    caption = (
        "Whether training to the end, which is kernel regression, is worth it: a line that falls on the right would "
        "gain by early stopping. Gradient flow from f = 0 on the first draw; the CSV has its training loss too."
    )
    panels = _panels("flow", found, ("training time × largest eigenvalue", "test accuracy (%)"))
    return Drawing("flow", "Gradient flow", caption, panels, rows, len(found))


def _panels(name: str, found: list[tuple[str, list[Line]]], words: tuple[str, str], log_y: bool = False) -> list[Panel]:
    """A panel a column, of the first ones."""
    return [
        panel(
            *(f"{name}-{column}", column, lines, *words),
            ticks=_decades(max(line.x[0][-1] for line in lines)),
            log_y=log_y,
        )
        for column, lines in found[:MOST_PANELS]
    ]


def _decades(most: float) -> Sequence[float]:
    """1, 10, 100, ... or every second, third, ... of them, to about `most`: at most five."""
    powers = range(int(np.ceil(np.log10(max(most, 10)))) + 1)
    return [10.0**k for k in powers[:: -(-len(powers) // 5)]]


def without_spectrum(collected: Collected) -> Iterator[str]:
    """The kernel columns whose first draws have none, and why."""
    for column in collected.results.columns:
        reasons: dict[str, list[int]] = {}
        for depth in column.depths:
            draws = collected.provenance["cells"].get(f"{column.name}/{depth}", {}).get("draws", [{}])
            if reason := draws[0].get("no_spectrum"):
                reasons.setdefault(reason, []).append(depth)
        for reason, found in reasons.items():
            yield f"{column.name}: no spectrum or gradient flow at depth {', '.join(map(str, found))}: {reason}."
