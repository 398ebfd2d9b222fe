"""Draws the README's learning curve from the published results: `python results/figures.py`."""

import csv
from pathlib import Path

from exact_ntk.records import KernelRecord
from exact_ntk.report.compare import read_results
from exact_ntk.report.drawing import Line, panel, standalone

ROOT = Path(__file__).parent.parent
PUBLISHED, DOCS = ROOT / "results" / "published", ROOT / "docs"
DEPTH = 11
# (label, readout, results that hold points of the line)
CURVES = (
    ("CNTK-GAP", "gap", ("cifar10-2k-lossless",)),
    ("CNTK-V", "vanilla", ("cifar10-2k-lossless", "cifar10-v-2k", "cifar10-v-curve")),
    ("CNTK-V, recompressed", "vanilla", ("cifar10-v-curve-jpeg", "cifar10-v-jpeg")),
)


def cells(names: tuple[str, ...], readout: str) -> list[KernelRecord]:
    """Kernel cells of a readout at `DEPTH`, by the number of training images; of several the one of least error."""
    found = [record for name in names for record in read_results(PUBLISHED / name).records]
    mine = [r for r in found if isinstance(r, KernelRecord) and (r.readout, r.depth) == (readout, DEPTH)]
    best = {r.n_train: r for r in sorted(mine, key=lambda r: -r.standard_error)}
    return [best[n] for n in sorted(best)]


def learning_curve() -> None:
    """Accuracy against the number of training images of CIFAR-10."""
    lines, rows = [], []
    for label, readout, names in CURVES:
        mine = cells(names, readout)
        n, accuracy = [float(r.n_train) for r in mine], [r.accuracy for r in mine]
        lines.append(Line(label, [n], [accuracy], [r.standard_error for r in mine]))
        rows += [[label, r.n_train, r.draws, r.n_test, r.accuracy, r.standard_error] for r in mine]
    ticks = [125, 500, 2000, 10000, 50000]
    title = f"CIFAR-10, L = {DEPTH}"
    drawn = panel("learning-curve", title, lines, "training images n", "test accuracy (%)", ticks=ticks)
    (DOCS / "learning-curve.svg").write_text(standalone(drawn.svg))
    with (DOCS / "learning-curve.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["line", "n_train", "draws", "n_test", "accuracy", "standard_error"], *rows]
        )


if __name__ == "__main__":
    learning_curve()
