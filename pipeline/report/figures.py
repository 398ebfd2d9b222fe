"""The report's line figures: what each draws of the records. None where there is nothing of the kind to draw."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from exact_ntk.records import ColumnHead, KernelRecord, NetworkRecord, Results
from exact_ntk.report.choices import choices_drawing
from exact_ntk.report.differing import configured
from exact_ntk.report.drawing import MOST_LINES, MOST_PANELS, Dot, Drawing, Line, Panel, dots, panel
from exact_ntk.report.series import all_series, leading

TITLES = {
    "vanilla": "vanilla readout",
    "gap": "global average pooling",
    "lap": "local average pooling",
    "myrtle": "Myrtle networks",
}
# What a network and a kernel must share for the gap between them to mean anything.
SAME = ("readout", "train", "test", "train_first", "train_last")
# What networks of one line may differ in.
APART = ("name", "width", "paper", "depths")
BARS = "Bars: one standard error."

Record = KernelRecord | NetworkRecord


def pooling(readout: str) -> str:
    """Which of `TITLES` a readout belongs to: lap for lap-4."""
    return readout.partition("-")[0]


def drawings(results: Results) -> list[Drawing]:
    """Every figure that these records give, in the report's order."""
    makers = (
        *(accuracy_drawing, learning_drawing, choices_drawing, difference_drawing, width_drawing),
        *(ridge_drawing, curves_drawing),
    )
    return [drawing for make in makers if (drawing := make(results))]


def accuracy_drawing(results: Results) -> Drawing | None:
    """Test accuracy against depth, a panel a readout, a line a column; where each has one depth, a row a column.

    Rows that are all in the learning curves are left out; None where nothing is left.
    """
    panels: list[Panel] = []
    left_out = 0
    curves = learning_curves(results)
    along = {r.column for curve in curves for r in curve.records}
    for readout, title in TITLES.items():
        heads = [c for c in results.columns if pooling(c.readout) == readout]
        found = {c.name: records for c in heads if (records := results.of_column(c.name))}
        if not found:
            continue
        name = f"accuracy-{readout}"
        deep = any(c.paper for c in heads) or any(len(records) > 1 for records in found.values())
        if deep or len(found) == 1:
            first = [c.name for c in leading(results) if c.name in found][:MOST_LINES]
            left_out += len(found) - len(first)
            lines = [_against_depth(c, found[c.name]) for c in heads if c.name in first]
            panels.append(_accuracy_panel(name, title, lines, "depth L"))
        elif not along >= found.keys():
            best = sorted((r for records in found.values() for r in records), key=lambda r: -r.accuracy)
            values = tuple(Dot(r.column, r.accuracy, r.standard_error) for r in best)
            panels.append(dots(name, title, values, "test accuracy (%)"))
    deep = any(len(c.depths) > 1 for c in results.columns)
    hollow = " Hollow: the paper." if any(c.paper for c in results.columns) else ""
    asks = "Whether depth helps, and which column is ahead at each depth." if deep else "Which column is ahead."
    some = f" Of each readout at most {MOST_LINES} columns are drawn: those of most training images." * (left_out > 0)
    dashed = " Dashed: kernels." * deep
    rows = [[r.column, r.depth, r.accuracy, r.standard_error] for r in results.records]
    return _drawing(
        "accuracy",
        "Accuracy against depth" if deep else "Accuracy",
        f"{asks} {BARS}{hollow}{dashed}{some}",
        panels,
        [["column", "depth", "accuracy", "standard_error"], *rows],
    )


def _against_depth(column: ColumnHead, found: list[Record]) -> Line:
    published = list(zip(column.depths, column.paper, strict=False))
    return _line(column.name, found, [r.depth for r in found], published, column.model != "cnn")


def _line(label: str, found: list[Any], x: list[int], published: list[tuple[int, float]], dashed: bool) -> Line:
    return Line(label, [x], [[r.accuracy for r in found]], [r.standard_error for r in found], published, dashed)


def _accuracy_panel(name: str, title: str, lines: list[Line], x_label: str) -> Panel:
    ticks = sorted({x for line in lines for x in line.x[0]})
    return panel(name, title, lines, x_label, "test accuracy (%)", ticks=ticks)


def _drawing(
    name: str, title: str, caption: str, panels: list[Panel], rows: list[list[Any]], total: int = 0
) -> Drawing | None:
    return Drawing(name, title, caption, panels, rows, total) if panels else None


def beside_kernel(results: Results) -> list[tuple[NetworkRecord, KernelRecord]]:
    """Each network cell with the kernel cell of the same images, trained ends and depth, where there is one."""
    columns = configured(results)

    def shared(record: Record) -> str:
        return repr([record.depth, *(columns[record.column][key] for key in SAME)])

    plain = [r for r in results.records if isinstance(r, KernelRecord) and r.model == "cntk" and r.ridge == 0]
    kernels = {shared(r): r for r in reversed(plain)}
    nets = [r for r in results.records if isinstance(r, NetworkRecord)]
    return [(net, kernels[shared(net)]) for net in nets if shared(net) in kernels]


def unpaired_error(a: Record, b: Record) -> float:
    """The standard error of a difference of two cells that are taken to be independent."""
    return float(np.hypot(a.standard_error, b.standard_error))


def difference_drawing(results: Results) -> Drawing | None:
    """Networks minus the kernel of the same images against depth, a line a network column."""
    pairs = sorted(beside_kernel(results), key=lambda pair: [c.name for c in results.columns].index(pair[0].column))
    panels = []
    for readout, title in TITLES.items():
        mine = [pair for pair in pairs if pair[0].readout == readout]
        lines = []
        for name, group in groupby(mine, key=lambda pair: pair[0].column):
            found = sorted(group, key=lambda pair: pair[0].depth)
            gaps = [net.accuracy - kernel.accuracy for net, kernel in found]
            lines.append(Line(name, [[n.depth for n, _ in found]], [gaps], [unpaired_error(*pair) for pair in found]))
        if lines:
            ticks = sorted({x for line in lines for x in line.x[0]})
            words = ("depth L", "CNN minus CNTK (points)")
            panels.append(panel(f"difference-{readout}", title, lines, *words, ticks=ticks, zero=True))
    return _drawing(
        "difference",
        "Network minus kernel",
        "Above the dashed line the finite networks are ahead of the kernel they tend to, on the same images. "
        "Bars: one standard error, the two taken as independent.",
        panels,
        [
            ["network", "kernel", "depth", "difference", "standard_error"],
            *([n.column, k.column, n.depth, n.accuracy - k.accuracy, unpaired_error(n, k)] for n, k in pairs),
        ],
    )


def _by_width(results: Results) -> list[list[NetworkRecord]]:
    """The records, by width, of every network that comes in at least two widths."""
    columns = configured(results)
    groups: dict[str, list[NetworkRecord]] = {}
    for record in results.records:
        if isinstance(record, NetworkRecord):
            rest = {k: v for k, v in columns[record.column].items() if k not in APART}
            groups.setdefault(repr([record.depth, rest]), []).append(record)
    return [sorted(nets, key=lambda r: r.width) for nets in groups.values() if len({r.width for r in nets}) > 1]


def width_drawing(results: Results) -> Drawing | None:
    """Networks against width, a line a depth, with the kernel they tend to as a line of its own."""
    kernels = {(net.column, net.depth): kernel for net, kernel in beside_kernel(results)}
    panels: list[Panel] = []
    rows: list[list[Any]] = []
    for readout, title in TITLES.items():
        lines = []
        for nets in sorted((g for g in _by_width(results) if g[0].readout == readout), key=lambda g: g[0].depth):
            widths, kernel = [r.width for r in nets], kernels.get((nets[0].column, nets[0].depth))
            lines.append(_line(f"CNN, L = {nets[0].depth}", nets, widths, [], False))
            rows += [[r.column, r.depth, r.width, r.accuracy, r.standard_error] for r in nets]
            if kernel:
                level = [kernel.accuracy] * len(widths)
                lines.append(Line(f"CNTK, L = {kernel.depth}", [widths], [level], dashed=True))
        if lines:
            panels.append(_accuracy_panel(f"width-{readout}", title, lines, "width (channels)"))
    return _drawing(
        "width",
        "Networks against width",
        f"How fast networks come to the kernel, the dashed line, as they widen. {BARS}",
        panels,
        [["column", "depth", "width", "accuracy", "standard_error"], *rows],
    )


@dataclass(frozen=True)
class LearningCurve:
    """A series at a depth, with cells for at least two numbers of training images; records: by that number."""

    series: str
    depth: int
    records: list[Record]


def learning_curves(results: Results) -> list[LearningCurve]:
    """Every curve that there is, in the order of the table."""
    curves = []
    for series in all_series(results):
        found = [r for head in series.columns.values() for r in results.of_column(head.name)]
        for depth in sorted({r.depth for r in found}):
            mine = sorted((r for r in found if r.depth == depth), key=lambda r: r.n_train)
            if len({r.n_train for r in mine}) > 1:
                curves.append(LearningCurve(series.label, depth, mine))
    return curves


def learning_drawing(results: Results) -> Drawing | None:
    """Accuracy against the number of training images, a line a curve; a panel a model and readout, or, where these have
    many curves, a series."""
    groups: dict[tuple[str, str], list[LearningCurve]] = {}
    for curve in learning_curves(results):
        groups.setdefault((curve.records[0].model, curve.records[0].readout), []).append(curve)
    panels: list[tuple[str, list[LearningCurve]]] = []
    for (model, readout), curves in groups.items():
        labels = list(dict.fromkeys(curve.series for curve in curves))
        title = f"{model.upper()}, {TITLES[pooling(readout)]}" + f" ({readout})" * ("-" in readout)
        if len(curves) <= MOST_LINES or len(labels) == 1:
            panels.append((title, curves))
        else:
            panels += [(label, [curve for curve in curves if curve.series == label]) for label in labels]
    return _drawing(
        "learning",
        "Accuracy against training images",
        f"What more training images are worth. {BARS}",
        [_learning_panel(place, *each) for place, each in enumerate(panels[:MOST_PANELS])],
        [
            ["column", "depth", "n_train", "accuracy", "standard_error"],
            *(
                [r.column, r.depth, r.n_train, r.accuracy, r.standard_error]
                for curves in groups.values()
                for curve in curves
                for r in curve.records
            ),
        ],
        len(panels),
    )


def _learning_panel(place: int, title: str, curves: list[LearningCurve]) -> Panel:
    """Each line is named by its series, its depth, or both: by what the others of the panel differ in."""
    several, deep = (len({getattr(curve, of) for curve in curves}) > 1 for of in ("series", "depth"))
    lines = []
    for curve in curves:
        label = ", ".join([curve.series] * several + [f"L = {curve.depth}"] * (deep or not several))
        n = [r.n_train for r in curve.records]
        lines.append(_line(label, curve.records, n, [], curve.records[0].model != "cnn"))
    return _accuracy_panel(f"learning-{place}", title, lines, "training images n")


def ridge_drawing(results: Results) -> Drawing | None:
    """The error that ridges were chosen by against the ridge, a panel a column, a colour a depth, a line a draw."""
    found: list[tuple[str, list[Line], list[float]]] = []
    rows: list[list[Any]] = []
    for column in leading(results):
        lines, ticks = [], []
        for r in results.of_column(column.name):
            curves = [d.ridge for d in r.by_draw] if isinstance(r, KernelRecord) else []
            errors = {k: list(zip(c.ridges, c.errors, strict=True)) for k, c in enumerate(curves) if c}
            known = [[(ridge, e) for ridge, e in curve if e is not None] for curve in errors.values()]
            if known:
                x, y = ([[point[of] for point in curve] for curve in known] for of in (0, 1))
                lines.append(Line(f"L = {r.depth}", x, y))
                ticks = [ridge for ridge, _ in next(iter(errors.values()))][::4]
            rows += [
                [r.column, r.depth, k, ridge, error, ridge == chosen.ridge]
                for k, chosen in enumerate(curves)
                if chosen
                for ridge, error in errors[k]
            ]
        if lines:
            found.append((column.name, lines, ticks))
    words = ("ridge / mean(diag K)", "squared error, left out")
    return _drawing(
        "ridge",
        "How ridges were chosen",
        "The squared error of training images that were left out, over all outputs: each draw takes the ridge where "
        "its line is lowest. No test image has a part in it.",
        [
            panel(f"ridge-{name}", name, lines, *words, ticks=ticks, log_y=True)
            for name, lines, ticks in found[:MOST_PANELS]
        ],
        [["column", "depth", "draw", "ridge", "error", "chosen"], *rows],
        len(found),
    )


CURVES = {"loss": "training loss", "train_accuracy": "training accuracy (%)", "test_accuracy": "test accuracy (%)"}


def curves_drawing(results: Results) -> Drawing | None:
    """Loss, training and test accuracy against epoch, a panel each and a readout, a colour a cell, a line a seed."""
    nets = [r for r in results.records if isinstance(r, NetworkRecord)]
    panels = []
    for readout, title in TITLES.items():
        cells = [r for r in nets if r.readout == readout]
        for key, label in CURVES.items() if cells else ():
            lines = [_curve(cell, key, several=len({r.column for r in cells}) > 1) for cell in cells]
            panels.append(panel(f"curves-{readout}-{key}", title, lines, "epoch", label, log_y=key == "loss"))
    return _drawing(
        "curves",
        "Training curves",
        "Whether the networks fit their training images, and whether test accuracy had settled when they stopped. A "
        "line a seed; one that diverged ends where it did.",
        panels,
        [["column", "depth", "seed", "epoch", *CURVES], *_epochs(nets)],
    )


def _curve(cell: NetworkRecord, key: str, several: bool) -> Line:
    values = [v for run in cell.runs if (v := getattr(run.history, key))]
    label = f"{cell.column}/{cell.depth}" if several else f"L = {cell.depth}"
    return Line(label, [list(range(1, len(v) + 1)) for v in values], values)


def _epochs(nets: list[NetworkRecord]) -> Iterable[list[Any]]:
    for cell in nets:
        for run in cell.runs:
            columns = (getattr(run.history, key) for key in CURVES)
            for epoch, values in enumerate(zip(*columns, strict=False), start=1):
                yield [cell.column, cell.depth, run.seed, epoch, *values]
