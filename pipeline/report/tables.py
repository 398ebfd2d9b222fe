"""The accuracy table as Markdown, CSV, LaTeX and text: pure functions of results.json."""

import csv
import io
from collections.abc import Sequence

from exact_ntk.grids import Grid, aligned
from exact_ntk.records import CellRecord, EarlyStoppedCell, KernelRecord, NetworkRecord, Results

INDEFINITE = "†"
OVERLAP = "‡"
TEST_RULE = "§"
DIVERGED = "¶"
MISSING = "–"
FAILED = "failed"
CSV_KEYS = (
    "column",
    "depth",
    "accuracy",
    "standard_error",
    "std",
    "n_train",
    "n_test",
    "draws",
    "seeds",
    "ridge",
    "lr",
    "indefinite",
    "residual",
    "condition",
    "backend",
    "dtype",
    "stored",
    "fingerprint",
)


def depths(results: Results) -> list[int]:
    """Every depth of the table, in order."""
    return sorted({d for c in results.columns for d in c.depths})


def marks(record: CellRecord) -> str:
    """What a reader must know about a cell, as footnote marks."""
    if isinstance(record, KernelRecord):
        return INDEFINITE * record.indefinite + OVERLAP * any(d.overlaps for d in record.by_draw)
    return TEST_RULE * (record.lr_rule == "test") + DIVERGED * (record.seeds_diverged > 0)


def spread(record: CellRecord) -> str:
    """A cell's accuracy and standard error: 41.2 ± 0.8, with its marks."""
    return f"{record.accuracy:.2f} ± {record.standard_error:.2f}{marks(record)}"


def grid(results: Results) -> Grid:
    """Header and rows of the table: a row a depth, a cell "accuracy ± error (paper's value)"."""
    header = ["depth", *(c.name for c in results.columns)]
    failed = {(cell.column, cell.depth) for cell in results.missing if cell.failed}
    rows = []
    for depth in depths(results):
        row = [str(depth)]
        for column in results.columns:
            record = results.cell(column.name, depth)
            empty = MISSING if depth in column.depths else ""
            text = spread(record) if record else FAILED if (column.name, depth) in failed else empty
            published = column.paper_value(depth)
            row.append(text + (f" ({published:.2f})" if published is not None else ""))
        rows.append(row)
    return header, rows


def notes(results: Results) -> list[str]:
    """What the table's numbers are, and what is marked or missing."""
    lines = ["Test accuracy in %, ± its standard error."]
    if any(c.paper for c in results.columns):
        lines[0] += " In brackets: Arora et al. 2019, table 1."
    for column in results.columns:
        found = results.of_column(column.name)
        if found:
            lines.append(f"{column.name}: {_describe(found[0], _is_one_draw(results, column.name))}.")
    if any(_is_one_draw(results, r.column) for r in results.records):
        lines.append("One draw: how much draws of training images differ is in no error.")
    lines += _seen(results) + _ridges(results) + _paired(results) + _explained_marks(results) + _indefinite(results)
    for r in results.records:
        lines += _of_network(r) if isinstance(r, NetworkRecord) else _of_kernel(r, results)
    by_need: dict[tuple[str, str], list[str]] = {}
    for cell in results.missing:
        how = FAILED if cell.failed else f"{MISSING} missing"
        by_need.setdefault((how, cell.needs), []).append(f"{cell.column}/{cell.depth}")
    lines += [f"{how} {', '.join(cells)}: {need}." for (how, need), cells in by_need.items()]
    return lines


def _seen(results: Results) -> list[str]:
    """The columns that are tested on images which they were trained on."""
    lines = []
    for column in results.columns:
        found = results.of_column(column.name)
        if found and found[0].copies_tested:
            r = found[0]
            draws = r.draws if isinstance(r, KernelRecord) else 1
            of = f"{r.n_test * draws} images tested" + (f" in {draws} draws" if draws > 1 else "")
            lines.append(f"{r.column}: {r.copies_tested} of the {of} equal a training image of their draw.")
    return lines


def _explained_marks(results: Results) -> list[str]:
    everything = "".join(marks(r) for r in results.records)
    meanings = {
        INDEFINITE: "the Gram matrix was not positive definite; solved by LU",
        OVERLAP: "some draws share training images: the error understates how much draws differ",
        TEST_RULE: "the learning rate was chosen on the test images, as in the paper",
        DIVERGED: "some seeds diverged at the reported learning rate: the mean is of the others",
    }
    return [f"{mark} {meaning}." for mark, meaning in meanings.items() if mark in everything]


def _indefinite(results: Results) -> list[str]:
    """How well the cells that are marked so are solved."""
    by_column: dict[str, list[str]] = {}
    for r in results.records:
        if isinstance(r, KernelRecord) and r.indefinite:
            condition = "not finite" if r.condition is None else f"{r.condition:.1e}"
            text = f"{r.residual:.1e} and {condition} at depth {r.depth}"
            by_column.setdefault(r.column, []).append(text)
    return [
        f"{INDEFINITE} {name}: residual and condition in the 1-norm {', '.join(texts)}."
        for name, texts in by_column.items()
    ]


def _paired(results: Results) -> list[str]:
    by_columns: dict[tuple[str, str], list[str]] = {}
    for p in results.paired:
        text = f"{p.difference:+.2f} ± {p.standard_error:.2f} at depth {p.depth}"
        by_columns.setdefault((p.column, p.minus), []).append(text)
    return [f"{a} minus {b}, image by image: {', '.join(texts)}." for (a, b), texts in by_columns.items()]


LEFT_OUT = {"loo": "leave-one-out", "holdout": "held-out"}
UNIT = {False: "", True: ", unit diagonal", "projected": ", unit diagonal through one more ReLU"}
SOURCES = {"test": "", "undrawn": " training images outside the draw", "both": " images outside the draw"}


def _is_one_draw(results: Results, name: str) -> bool:
    """Whether a column stands on one draw of the training images where there could be others."""
    return any(
        c["name"] == name and c["train"]["n"] != "all" and c["train"]["draws"] == 1 for c in results.config["columns"]
    )


def _describe(r: CellRecord, one_draw: bool) -> str:
    images = f"{r.n_train} training images{', one draw' * one_draw}, tested on {r.n_test}{SOURCES[r.test_from]}"
    images += f", {r.preprocessed}" if r.preprocessed else ""
    if isinstance(r, NetworkRecord):
        return f"{images}, width {r.width}, mean of {r.seeds} seeds"
    images += f", mean of {r.draws} draws" if r.draws > 1 else ""
    images += ", with mirror images" * r.flips + UNIT[r.unit_diagonal]
    curve = r.by_draw[0].ridge
    if curve:
        return f"{images}, each draw's ridge by {LEFT_OUT[curve.select]} error"
    return images + (f", ridge {r.ridge:g}" if r.ridge else "")


def _ridges(results: Results) -> list[str]:
    """The ridges that draws have chosen, a line a column."""
    lines = []
    for column in results.columns:
        texts = []
        for r in results.of_column(column.name):
            curves = [d.ridge for d in r.by_draw if d.ridge] if isinstance(r, KernelRecord) else []
            chosen = sorted({curve.ridge for curve in curves})
            if chosen:
                ends = f" ({sum(c.at_the_top for c in curves)} of {len(curves)} the largest there were)"
                text = " to ".join(f"{ridge:g}" for ridge in (chosen[0], chosen[-1])[: len(chosen)])
                texts.append(f"{text}{ends * any(c.at_the_top for c in curves)} at depth {r.depth}")
        lines += [f"{column.name}: ridges chosen {', '.join(texts)}."] if texts else []
    return lines


def _of_network(r: NetworkRecord) -> list[str]:
    at = f"{r.column} at depth {r.depth}"
    lines = []
    for d in r.diverged:
        share = "" if d.lr_share is None else f" ({d.lr_share:.2f} of the largest stable one)"
        rate = "" if d.lr is None else f" at lr {d.lr:.3g}{share}"
        lines.append(
            f"{at}: diverged, and left out,{rate}, seed {d.seed}{' (holdout)' if d.part == 'fit' else ''}: {d.why}."
        )
    unfitted = [run for run in r.runs if run.fitted_at is None and run.diverged is None]
    if unfitted:
        lines.append(
            f"{at}: {len(unfitted)} of {len(r.runs)} seeds did not reach 100 % training accuracy in "
            f"{max(run.epochs for run in unfitted)} epochs; mean training accuracy {r.train_accuracy:.1f} %."
        )
    return lines


def _of_kernel(r: KernelRecord, results: Results) -> list[str]:
    at = f"{r.column} at depth {r.depth}"
    if r.early_stopping:
        return [f"{at}: {_early(r.early_stopping)}."]
    asked = any(c["name"] == r.column and c.get("early_stopping") for c in results.config["columns"])
    return [f"{at}: no early stopping: gradient flow diverges on every draw (add a ridge)."] if asked else []


def _early(e: EarlyStoppedCell) -> str:
    time = "at t = infinity" if e.time is None else f"at t = {e.time:.3g} / lambda_max"
    without = (
        f"; {e.draws_without_flow} of {e.draws + e.draws_without_flow} draws have no gradient flow and are left out"
    )
    return (
        f"accuracy on {e.n_held_out} held-out training images peaks {time}, {e.held_out:.2f} there and "
        f"{e.held_out_at_infinity:.2f} at infinity; trained without them, test accuracy is {e.test:.2f} there "
        f"and {e.test_at_infinity:.2f} at infinity" + (without if e.draws_without_flow else "")
    )


def markdown_table(results: Results) -> str:
    """table.md."""
    header, rows = grid(results)
    lines = [f"# {results.name}", "", f"| {' | '.join(header)} |", f"|{'---:|' * len(header)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(results))]) + "\n"


def text_table(results: Results) -> str:
    """The table for a terminal."""
    return "\n".join([aligned(*grid(results)), "", *notes(results)])


def csv_table(results: Results) -> str:
    """table.csv: a line a cell."""
    published = {(c.name, d): c.paper_value(d) for c in results.columns for d in c.depths}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_KEYS, "paper"])
    for r in results.records:
        writer.writerow([*(getattr(r, key, None) for key in CSV_KEYS), published.get((r.column, r.depth))])
    return out.getvalue()


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", MISSING: "--"},
    **{"<": r"$<$", ">": r"$>$", "|": r"$|$", "²": r"$^2$"},
    INDEFINITE: r"\textsuperscript{\dag}",
    OVERLAP: r"\textsuperscript{\ddag}",
    TEST_RULE: r"\textsuperscript{\S}",
    DIVERGED: r"\textsuperscript{\P}",
}


def latex_table(results: Results) -> str:
    """table.tex: a tabular to \\input, with booktabs' rules, and the notes below it."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_in_latex(cell) for cell in cells) + r" \\"

    header, rows = grid(results)
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{'r' * len(header)}}}",
            r"\toprule",
            line(header),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\par\smallskip\footnotesize",
            *(_in_latex(note) for note in notes(results)),
            "",
        ]
    )


def _in_latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
