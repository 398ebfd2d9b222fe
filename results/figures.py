"""Draws the figures of the documentation from the published results: `python results/figures.py`."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exact_ntk.kernel_names import family_of
from exact_ntk.kernels import Pass
from exact_ntk.records import KernelRecord
from exact_ntk.report.choices import choices_drawing
from exact_ntk.report.compare import read_results
from exact_ntk.report.drawing import Line, Panel, panel, standalone

ROOT = Path(__file__).parent.parent
PUBLISHED, DOCS = ROOT / "results" / "published", ROOT / "docs"
DEPTH = 11
# (label, readout, results that hold points of the line)
CURVES = (
    ("CNTK-GAP", "gap", ("cifar10-2k-lossless",)),
    ("CNTK-V", "vanilla", ("cifar10-2k-lossless", "cifar10-v-2k", "cifar10-v-curve")),
    ("CNTK-V, recompressed", "vanilla", ("cifar10-v-curve-jpeg", "cifar10-v-jpeg")),
)
# (label, name of the column, results that hold it), one draw of 2,000 images and the same 1,017 to test on.
COLUMNS = (
    ("CNTK-V", "CNTK-V-2K", "cifar10-2k-lossless"),
    ("CNTK-GAP", "CNTK-GAP-2K", "cifar10-2k-lossless"),
    ("Myrtle-10", "Myrtle", "cifar10-myrtle-2k"),
    ("Myrtle-10, NNGP", "Myrtle-NNGP", "cifar10-myrtle-2k"),
)
# (label, columns without and with mirror images, depth, results), one draw of 500 images and the same 2,000 to test on.
POOLED = ("V", "LAP-4", "LAP-8", "LAP-12", "GAP")
WITH_MIRRORS = (  # in the order in which the six colours are the same for a kernel's lines
    *((name, name, 6, "cifar10-beyond-500") for name in POOLED),
    ("Myrtle-5", "Myrtle", 5, "cifar10-myrtle-500"),
    *((f"{name}, ZCA", f"{name}-ZCA", 6, "cifar10-beyond-500") for name in POOLED),
    ("Myrtle-10", "Myrtle", 10, "cifar10-myrtle-500"),
)
SIDE = 32
# Of pooling's planes, those that a window reaches, where others are left out: benchmarks/README.md.
PLANES = {"lap-4": (17 / 32) ** 2}


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
    _write(drawn, [["line", "n_train", "draws", "n_test", "accuracy", "standard_error"], *rows])


def accuracy_against_cost() -> None:
    """Accuracy on 2,000 training images: a line a kernel, from depth to depth, each as if computed alone."""
    found = {label: read_results(PUBLISHED / name).of_column(column) for label, column, name in COLUMNS}
    _against_cost("accuracy-cost", "CIFAR-10, 2,000 training images", found)


def accuracy_against_cost_with_mirrors() -> None:
    """Accuracy on 500 training images: a line a kernel, from without to with mirror images."""
    found = {}
    for label, column, depth, name in WITH_MIRRORS:
        results = read_results(PUBLISHED / name)
        found[label] = [results.cell(each, depth) for each in (column, f"{column}-flips")]
    _against_cost("accuracy-cost-500", "CIFAR-10, 500 training images", found)


def _against_cost(name: str, title: str, kernels: Mapping[str, Sequence[object]]) -> None:
    """Accuracy against the work of a pair of images, a line a label."""
    lines, rows = [], []
    for label, found in kernels.items():
        mine = [r for r in found if isinstance(r, KernelRecord)]
        work = [work_of(r) for r in mine]
        accuracy, error = [r.accuracy for r in mine], [r.standard_error for r in mine]
        lines.append(Line(label, [work], [accuracy], error, dashed=any(r.preprocessed for r in mine)))
        rows += [
            [label, r.depth, r.flips, int(w), r.n_train, r.n_test, r.accuracy, r.standard_error]
            for w, r in zip(work, mine, strict=True)
        ]
    ticks, x_label = [1e4, 1e5, 1e6, 1e7], "entry-layers a pair of images"
    header = ["line", "depth", "mirror_images", "entry_layers", "n_train", "n_test", "accuracy", "standard_error"]
    _write(panel(name, title, lines, x_label, "test accuracy (%)", ticks=ticks), [header, *rows])


def work_of(cell: KernelRecord) -> float:
    """Entry-layers of a pair of images, computed alone, and as many for its mirror image if that has a part."""
    job = Pass(family_of(cell.readout), (cell.depth,), (cell.readout,), True, True)
    return job.entry_layers(1, SIDE, SIDE) * PLANES.get(cell.readout, 1.0) * (2 if cell.flips else 1)


def mirror_images() -> None:
    """What mirror images are worth to vanilla kernels on few images."""
    drawing = choices_drawing(read_results(PUBLISHED / "cifar10-small-v"))
    assert drawing is not None
    header, *rows = drawing.rows
    title = "mirror images minus none"
    (drawn,) = (p for p in drawing.panels if p.words.startswith(title))
    _write(replace(drawn, name="mirror-images"), [header, *(row for row in rows if row[0] == title)])


def _write(drawn: Panel, rows: list[list[Any]]) -> None:
    """The figure, and the values in it."""
    (DOCS / f"{drawn.name}.svg").write_text(standalone(drawn.svg))
    with (DOCS / f"{drawn.name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    learning_curve()
    accuracy_against_cost()
    accuracy_against_cost_with_mirrors()
    mirror_images()
