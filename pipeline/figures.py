"""Figures: accuracy against depth, and a Gram matrix sorted by class. Each returns PNG bytes."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pipeline.report import paper_value

COLOURS = {"vanilla": "#2a6fbb", "gap": "#d1603d"}
LINES = {"cnn": ("-", "o"), "cntk": ("--", "s"), "nngp": (":", "^")}
TITLES = {"vanilla": "vanilla readout", "gap": "global average pooling"}


def to_png(figure: Figure) -> bytes:
    """PNG of a figure, which is closed."""
    out = io.BytesIO()
    # No software or date in the file: the same records give the same bytes.
    figure.savefig(out, format="png", dpi=140, metadata={"Software": None})
    plt.close(figure)
    return out.getvalue()


def accuracy_figure(results: dict[str, Any]) -> bytes:
    """Test accuracy against depth, a panel a readout, a line a column, with one standard error; hollow: the paper."""
    readouts = [r for r in COLOURS if any(c["readout"] == r for c in results["columns"])]
    figure, axes = plt.subplots(
        1, len(readouts), figsize=(1 + 4.6 * len(readouts), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, readout in zip(axes[0], readouts, strict=True):
        columns = [c for c in results["columns"] if c["readout"] == readout]
        ticks = sorted({d for c in columns for d in c["depths"]})
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


def _line(axis: Any, results: dict[str, Any], column: dict[str, Any], alpha: float) -> None:
    found = sorted((r for r in results["records"] if r["column"] == column["name"]), key=lambda r: r["depth"])
    colour, (style, marker) = COLOURS[column["readout"]], LINES[column["model"]]
    axis.errorbar(
        [r["depth"] for r in found],
        [r["accuracy"] for r in found],
        yerr=[r["standard_error"] for r in found],
        linestyle=style,
        marker=marker,
        color=colour,
        alpha=alpha,
        capsize=2.5,
        markersize=5,
        label=column["name"],
    )
    published = [(d, paper_value(column, d)) for d in column["depths"] if paper_value(column, d) is not None]
    if published:
        axis.plot(*zip(*published, strict=True), marker, mfc="none", color=colour, alpha=alpha, markersize=9)


def gram_figure(k: np.ndarray, y: np.ndarray, classes: tuple[str, ...], title: str) -> bytes:
    """k (n, n) scaled to unit diagonal, rows and columns sorted by class y (n,)."""
    order = np.argsort(y, kind="stable")
    scale = 1.0 / np.sqrt(np.diagonal(k))
    cosine = (k * scale[:, None] * scale[None, :])[np.ix_(order, order)]
    edges = np.flatnonzero(np.diff(y[order])) + 1
    middles = [float(np.flatnonzero(y[order] == c).mean()) for c in np.unique(y)]
    figure, axis = plt.subplots(figsize=(5.6, 4.8), layout="constrained")
    off_diagonal = cosine[~np.eye(len(k), dtype=bool)]
    low, high = np.percentile(off_diagonal, [1, 99.5])
    image = axis.imshow(cosine, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
    for edge in edges:
        axis.axhline(edge - 0.5, color="white", linewidth=0.4, alpha=0.6)
        axis.axvline(edge - 0.5, color="white", linewidth=0.4, alpha=0.6)
    names = [classes[c] for c in np.unique(y)]
    axis.set_xticks(middles, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=8)
    axis.set_yticks(middles, names, fontsize=8)
    axis.set(title=title, xlabel=f"{len(k)} training images, sorted by class")
    figure.colorbar(image, label="K(x, x') / √(K(x, x) K(x', x'))")
    return to_png(figure)
