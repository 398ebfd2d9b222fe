"""The accuracy table as Markdown, CSV, LaTeX and text: pure functions of results.json."""

import csv
import io
from collections.abc import Sequence

from exact_ntk.grids import Grid, aligned
from exact_ntk.records import ColumnHead, Results
from exact_ntk.report.layout import laid_out
from exact_ntk.report.notes import DIVERGED, FAILED, INDEFINITE, MISSING, OVERLAP, TEST_RULE, notes, spread

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


def grid(results: Results) -> Grid:
    """Header and rows of the table: a cell is "accuracy ± error (paper's value)"."""
    failed = {(cell.column, cell.depth) for cell in results.missing if cell.failed}

    def cell(column: ColumnHead, depth: int) -> str:
        record, published = results.cell(column.name, depth), column.paper_value(depth)
        text = spread(record) if record else FAILED if (column.name, depth) in failed else MISSING
        return text + (f" ({published:.2f})" if published is not None else "")

    return laid_out(results, cell)


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
