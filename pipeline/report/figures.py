"""Figures: accuracy against depth and width, training curves, a Gram matrix by class. Each returns PNG bytes."""

from typing import Any

import numpy as np

from exact_ntk.canvas import subplots, to_png, viridis
from exact_ntk.records import ColumnHead, KernelRecord, NetworkRecord, Results

COLOURS = {"vanilla": "#2a6fbb", "gap": "#d1603d"}
LINES = {"cnn": ("-", "o"), "cntk": ("--", "s"), "nngp": (":", "^")}
TITLES = {"vanilla": "vanilla readout", "gap": "global average pooling"}
# What a network and a kernel must share for the gap between them to mean anything.
SAME = ("readout", "train", "test", "train_first", "train_last")
# What networks of one line may differ in.
APART = ("name", "width", "paper", "depths")


def accuracy_figure(results: Results) -> bytes:
    """Test accuracy against depth, a panel a readout, a line a column, with one standard error; hollow: the paper."""
    readouts = [r for r in COLOURS if any(c.readout == r for c in results.columns)]
    figure, axes = subplots(1, len(readouts), (1 + 4.6 * len(readouts), 4.2), sharey=True, squeeze=False)
    for axis, readout in zip(axes[0], readouts, strict=True):
        columns = [c for c in results.columns if c.readout == readout]
        ticks = sorted({d for c in columns for d in c.depths})
        for shade, column in enumerate(columns):
            _line(axis, results, column, 1.0 - 0.65 * shade / max(1, len(columns) - 1))
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(d) for d in ticks])
        axis.minorticks_off()
        axis.set(xlabel="depth L", title=TITLES[readout])
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=9)
    axes[0][0].set_ylabel("test accuracy (%)")
    return to_png(figure)


def _line(axis: Any, results: Results, column: ColumnHead, alpha: float) -> None:
    found = results.of_column(column.name)
    colour, (style, marker) = COLOURS[column.readout], LINES[column.model]
    axis.errorbar(
        [r.depth for r in found],
        [r.accuracy for r in found],
        yerr=[r.standard_error for r in found],
        linestyle=style,
        marker=marker,
        color=colour,
        alpha=alpha,
        capsize=2.5,
        markersize=5,
        label=column.name,
    )
    published = list(zip(column.depths, column.paper, strict=False))
    if published:
        axis.plot(*zip(*published, strict=True), marker, mfc="none", color=colour, alpha=alpha, markersize=9)


def width_figure(results: Results) -> bytes | None:
    """Networks against width, a panel a readout, a colour a depth: accuracy above, with the kernel's as a dashed line;
    below, network minus kernel. Bars: one standard error. None unless some network comes in two widths.
    """
    lines = _width_lines(results)
    readouts = [r for r in COLOURS if any(readout == r for readout, _, _ in lines)]
    if not readouts:
        return None
    size, shared = (1 + 4.6 * len(readouts), 6.2), {"sharex": "col", "sharey": "row"}
    figure, axes = subplots(2, len(readouts), size, squeeze=False, height_ratios=(3, 2), **shared)
    for (above, below), readout in zip(axes.T, readouts, strict=True):
        mine = [(depth, nets, kernel) for r, nets, kernel in lines if r == readout for depth in [nets[0].depth]]
        for k, (depth, nets, kernel) in enumerate(sorted(mine, key=lambda line: line[0])):
            colour, widths = viridis(0.85 * k / max(1, len(mine) - 1)), [r.width for r in nets]
            accuracy = np.array([r.accuracy for r in nets])
            bars = {"color": colour, "capsize": 2.5, "markersize": 5, "marker": "o"}
            errors = [r.standard_error for r in nets]
            above.errorbar(widths, accuracy, yerr=errors, label=f"L = {depth}", **bars)
            if kernel:
                above.axhline(kernel.accuracy, linestyle="--", color=colour)
                below.errorbar(widths, accuracy - kernel.accuracy, yerr=errors, **bars)
        ticks = sorted({r.width for _, nets, _ in mine for r in nets})
        below.set_xscale("log", base=2)
        below.set_xticks(ticks, [str(width) for width in ticks], fontsize=9)
        below.minorticks_off()
        below.axhline(0, linestyle="--", color="#666", linewidth=1)
        above.set(title=TITLES[readout])
        below.set(xlabel="width (channels)")
        above.plot([], [], "--", color="#666", label="CNTK")
        above.legend(frameon=False, fontsize=9)
        above.grid(alpha=0.25)
        below.grid(alpha=0.25)
    axes[0][0].set_ylabel("test accuracy (%)")
    axes[1][0].set_ylabel("CNN minus CNTK (points)")
    return to_png(figure)


Line = tuple[str, list[NetworkRecord], KernelRecord | None]


def _width_lines(results: Results) -> list[Line]:
    """Readout, records by width and the kernel's record, for every network that comes in at least two widths."""
    columns = {c["name"]: c for c in results.config["columns"]}

    def shared(record: KernelRecord | NetworkRecord) -> str:
        column = columns[record.column]
        return repr([record.depth, *(column[key] for key in SAME)])

    plain = [r for r in results.records if isinstance(r, KernelRecord) and r.model == "cntk" and not r.ridge]
    kernels = {shared(r): r for r in reversed(plain)}
    groups: dict[str, list[NetworkRecord]] = {}
    for record in results.records:
        if isinstance(record, NetworkRecord):
            rest = {k: v for k, v in columns[record.column].items() if k not in APART}
            groups.setdefault(repr([record.depth, rest]), []).append(record)
    return [
        (nets[0].readout, sorted(nets, key=lambda r: r.width), kernels.get(shared(nets[0])))
        for nets in groups.values()
        if len({r.width for r in nets}) > 1
    ]


def curves_figure(results: Results) -> bytes | None:
    """Loss, training and test accuracy against epoch, a row a readout, a colour a cell, a thin line a seed.

    None where no network is trained. A diverged run's line ends where it diverged.
    """
    nets = [r for r in results.records if isinstance(r, NetworkRecord)]
    readouts = [r for r in COLOURS if any(record.readout == r for record in nets)]
    if not readouts:
        return None
    panels = {"loss": "loss", "train_accuracy": "training accuracy (%)", "test_accuracy": "test accuracy (%)"}
    figure, axes = subplots(len(readouts), 3, (12, 0.6 + 3.2 * len(readouts)), sharey="col", squeeze=False)
    for row, readout in zip(axes, readouts, strict=True):
        cells = [r for r in nets if r.readout == readout]
        several = len({r.column for r in cells}) > 1
        for k, cell in enumerate(cells):
            label = f"{cell.column}/{cell.depth}" if several else f"L = {cell.depth}"
            colour = viridis(0.85 * k / max(1, len(cells) - 1))
            for axis, key in zip(row, panels, strict=True):
                for run in cell.runs:
                    values = getattr(run.history, key)
                    axis.plot(range(1, len(values) + 1), values, color=colour, linewidth=0.8, alpha=0.8)
            row[-1].plot([], [], color=colour, label=label)
        row[0].set_yscale("log")
        row[1].set_title(TITLES[readout])
        row[-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
        for axis, name in zip(row, panels.values(), strict=True):
            axis.set(ylabel=name, xlabel="epoch")
            axis.grid(alpha=0.25)
    return to_png(figure)


def gram_figure(k: np.ndarray, y: np.ndarray, classes: tuple[str, ...], title: str) -> bytes:
    """k (n, n) of unit diagonal, its images sorted by class y (n,)."""
    edges = np.flatnonzero(np.diff(y)) + 1
    middles = [float(np.flatnonzero(y == c).mean()) for c in np.unique(y)]
    figure, axis = subplots(1, 1, (5.6, 4.8))
    off_diagonal = k[~np.eye(len(k), dtype=bool)]
    low, high = np.percentile(off_diagonal, [1, 99.5]) if len(k) > 1 else (0, 1)
    image = axis.imshow(k, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
    for edge in edges:
        axis.axhline(edge - 0.5, color="white", linewidth=0.4, alpha=0.6)
        axis.axvline(edge - 0.5, color="white", linewidth=0.4, alpha=0.6)
    names = [classes[c] for c in np.unique(y)]
    axis.set_xticks(middles, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=8)
    axis.set_yticks(middles, names, fontsize=8)
    axis.set(title=title, xlabel=f"{len(k)} training images, sorted by class")
    figure.colorbar(image, label="K(x, x') / √(K(x, x) K(x', x'))")
    return to_png(figure)
