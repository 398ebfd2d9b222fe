"""The report's line figures: what each draws of the records. None where there is nothing of the kind to draw."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np

from exact_ntk.records import KernelRecord, NetworkRecord, Results
from exact_ntk.report.drawing import Drawing, Line, Panel, panel

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
    makers = (accuracy_drawing, difference_drawing, width_drawing, learning_drawing, ridge_drawing, curves_drawing)
    return [drawing for make in makers if (drawing := make(results))]


def accuracy_drawing(results: Results) -> Drawing | None:
    """Test accuracy against depth, a panel a readout, a line a column."""
    panels = []
    for readout, title in TITLES.items():
        lines = []
        for column in results.columns:
            found = results.of_column(column.name)
            if pooling(column.readout) == readout and found:
                published = list(zip(column.depths, column.paper, strict=False))
                lines.append(_line(column.name, found, [r.depth for r in found], published, column.model != "cnn"))
        if lines:
            panels.append(_accuracy_panel(f"accuracy-{readout}", title, lines, "depth L"))
    hollow = " Hollow: the paper." if any(c.paper for c in results.columns) else ""
    rows = [[r.column, r.depth, r.accuracy, r.standard_error] for r in results.records]
    return _drawing(
        "accuracy",
        "Accuracy against depth",
        f"Whether depth helps, and which column is ahead at each depth. {BARS}{hollow} Dashed: kernels.",
        panels,
        [["column", "depth", "accuracy", "standard_error"], *rows],
    )


def _line(label: str, found: list[Any], x: list[int], published: list[tuple[int, float]], dashed: bool) -> Line:
    return Line(label, [x], [[r.accuracy for r in found]], [r.standard_error for r in found], published, dashed)


def _accuracy_panel(name: str, title: str, lines: list[Line], x_label: str) -> Panel:
    ticks = sorted({x for line in lines for x in line.x[0]})
    return panel(name, title, lines, x_label, "test accuracy (%)", ticks=ticks)


def _drawing(name: str, title: str, caption: str, panels: list[Panel], rows: list[list[Any]]) -> Drawing | None:
    return Drawing(name, title, caption, panels, rows) if panels else None


def beside_kernel(results: Results) -> list[tuple[NetworkRecord, KernelRecord]]:
    """Each network cell with the kernel cell of the same images, trained ends and depth, where there is one."""
    columns = {c["name"]: c for c in results.config["columns"]}

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
    columns = {c["name"]: c for c in results.config["columns"]}
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


def learning_drawing(results: Results) -> Drawing | None:
    """Accuracy against the number of training images, a panel a kind of column, a line a depth."""
    columns = {c["name"]: c for c in results.config["columns"]}
    groups: dict[str, list[Record]] = {}
    for record in results.records:
        rest = {k: v for k, v in columns[record.column].items() if k not in ("name", "paper", "depths", "train")}
        groups.setdefault(repr(rest), []).append(record)
    panels: list[Panel] = []
    rows: list[list[Any]] = []
    for found in groups.values():
        lines = []
        for depth in sorted({r.depth for r in found}):
            mine = sorted((r for r in found if r.depth == depth), key=lambda r: r.n_train)
            if len({r.n_train for r in mine}) > 1:
                lines.append(_line(f"L = {depth}", mine, [r.n_train for r in mine], [], found[0].model != "cnn"))
                rows += [[r.column, r.depth, r.n_train, r.accuracy, r.standard_error] for r in mine]
        if lines:
            title = f"{found[0].model.upper()}, {TITLES[pooling(found[0].readout)]}"
            panels.append(_accuracy_panel(f"learning-{len(panels)}", title, lines, "training images n"))
    return _drawing(
        "learning",
        "Accuracy against training images",
        f"What more training images are worth at each depth. {BARS}",
        panels,
        [["column", "depth", "n_train", "accuracy", "standard_error"], *rows],
    )


def ridge_drawing(results: Results) -> Drawing | None:
    """The error that ridges were chosen by against the ridge, a panel a column, a colour a depth, a line a draw."""
    panels: list[Panel] = []
    rows: list[list[Any]] = []
    for column in results.columns:
        lines, ticks = [], []
        for r in results.of_column(column.name):
            curves = [d.ridge for d in r.by_draw] if isinstance(r, KernelRecord) else []
            found = {k: list(zip(c.ridges, c.errors, strict=True)) for k, c in enumerate(curves) if c}
            known = [[(ridge, e) for ridge, e in curve if e is not None] for curve in found.values()]
            if known:
                x, y = ([[point[of] for point in curve] for curve in known] for of in (0, 1))
                lines.append(Line(f"L = {r.depth}", x, y))
                ticks = [ridge for ridge, _ in next(iter(found.values()))][::4]
            rows += [
                [r.column, r.depth, k, ridge, error, ridge == chosen.ridge]
                for k, chosen in enumerate(curves)
                if chosen
                for ridge, error in found[k]
            ]
        if lines:
            words = ("ridge / mean(diag K)", "squared error, left out")
            panels.append(panel(f"ridge-{len(panels)}", column.name, lines, *words, ticks=ticks, log_y=True))
    return _drawing(
        "ridge",
        "How ridges were chosen",
        "The squared error of training images that were left out, over all outputs: each draw takes the ridge where "
        "its line is lowest. No test image has a part in it.",
        panels,
        [["column", "depth", "draw", "ridge", "error", "chosen"], *rows],
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
