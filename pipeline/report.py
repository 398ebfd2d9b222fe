"""The accuracy table as Markdown, CSV and text: pure functions of results.json."""

import csv
import io
from typing import Any

INDEFINITE = "†"
OVERLAP = "‡"
TEST_RULE = "§"
DIVERGED = "¶"
MISSING = "–"
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
    "backend",
    "dtype",
    "fingerprint",
)


def _by_cell(results: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(r["column"], r["depth"]): r for r in results["records"]}


def depths(results: dict[str, Any]) -> list[int]:
    """Every depth of the table, in order."""
    return sorted({d for c in results["columns"] for d in c["depths"]})


def paper_value(column: dict[str, Any], depth: int) -> float | None:
    """The published accuracy of a cell, where the config names one."""
    return dict(zip(column["depths"], column["paper"], strict=False)).get(depth)


def marks(record: dict[str, Any]) -> str:
    """What a reader must know about a cell, as footnote marks."""
    out = INDEFINITE if record.get("indefinite") else ""
    out += OVERLAP if any(d["overlaps"] for d in record.get("by_draw", [])) else ""
    out += TEST_RULE if record.get("lr_rule") == "test" else ""
    return out + (DIVERGED if record.get("seeds_diverged") else "")


def spread(record: dict[str, Any]) -> str:
    """A cell's accuracy and standard error: 41.2 ± 0.8, with its marks."""
    return f"{record['accuracy']:.2f} ± {record['standard_error']:.2f}{marks(record)}"


def grid(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a row a depth, a cell "accuracy ± error (paper's value)"."""
    cells = _by_cell(results)
    header = ["depth", *(c["name"] for c in results["columns"])]
    rows = []
    for depth in depths(results):
        row = [str(depth)]
        for column in results["columns"]:
            record = cells.get((column["name"], depth))
            text = spread(record) if record else MISSING if depth in column["depths"] else ""
            published = paper_value(column, depth)
            row.append(text + (f" ({published:.2f})" if published is not None else ""))
        rows.append(row)
    return header, rows


def notes(results: dict[str, Any]) -> list[str]:
    """What the table's numbers are, and what is marked or missing."""
    lines = ["Test accuracy in %, ± its standard error."]
    if any(c["paper"] for c in results["columns"]):
        lines[0] += " In brackets: Arora et al. 2019, table 1."
    for column in results["columns"]:
        found = [r for r in results["records"] if r["column"] == column["name"]]
        if found:
            lines.append(f"{column['name']}: {_describe(found[0])}.")
    lines += _paired(results)
    everything = "".join(marks(r) for r in results["records"])
    if INDEFINITE in everything:
        lines.append(f"{INDEFINITE} the Gram matrix was not positive definite; solved by LU.")
    if OVERLAP in everything:
        lines.append(f"{OVERLAP} some draws share training images.")
    if TEST_RULE in everything:
        lines.append(f"{TEST_RULE} the learning rate was chosen on the test images, as in the paper.")
    if DIVERGED in everything:
        lines.append(f"{DIVERGED} some seeds diverged at the reported learning rate: the mean is of the others.")
    lines += [
        f"{r['column']} at depth {r['depth']}: diverged, and left out, at lr {d['lr']:.3g} ({d['lr_share']:.2f} of the "
        f"largest stable one), seed {d['seed']}{' (holdout)' if d['part'] == 'fit' else ''}: {d['why']}."
        for r in results["records"]
        for d in r.get("diverged", [])
    ]
    lines += [
        f"{r['column']} at depth {r['depth']}: {_early(r['early_stopping'])}."
        for r in results["records"]
        if "early_stopping" in r
    ]
    for r in results["records"]:
        unfitted = [run for run in r.get("runs", []) if run["fitted_at"] is None and run["diverged"] is None]
        if unfitted:
            lines.append(
                f"{r['column']} at depth {r['depth']}: {len(unfitted)} of {len(r['runs'])} seeds did not reach 100 % "
                f"training accuracy in {max(run['epochs'] for run in unfitted)} epochs; mean training accuracy "
                f"{r['train_accuracy']:.1f} %."
            )
    by_need: dict[str, list[str]] = {}
    for cell in results["missing"]:
        by_need.setdefault(cell["needs"], []).append(f"{cell['column']}/{cell['depth']}")
    lines += [f"{MISSING} missing {', '.join(cells)}: {need}." for need, cells in by_need.items()]
    return lines


def _paired(results: dict[str, Any]) -> list[str]:
    by_columns: dict[tuple[str, str], list[str]] = {}
    for p in results["paired"]:
        text = f"{p['difference']:+.2f} ± {p['standard_error']:.2f} at depth {p['depth']}"
        by_columns.setdefault((p["column"], p["minus"]), []).append(text)
    return [f"{a} minus {b}, image by image: {', '.join(texts)}." for (a, b), texts in by_columns.items()]


def _describe(r: dict[str, Any]) -> str:
    images = f"{r['n_train']} training images, tested on {r['n_test']}"
    if r["model"] == "cnn":
        return f"{images}, width {r['width']}, mean of {r['seeds']} seeds"
    source = {"test": "", "undrawn": " training images outside the draw", "both": " images outside the draw"}
    images += source[r["test_from"]]
    ridge = f", ridge {r['ridge']:g}" if r["ridge"] else ""
    return images + (f", mean of {r['draws']} draws" if r["draws"] > 1 else "") + ridge


def _early(e: dict[str, Any]) -> str:
    time = "at t = infinity" if e["time"] is None else f"at t = {e['time']:.3g} / lambda_max"
    return (
        f"accuracy on {e['n_held_out']} held-out training images peaks {time}, {e['held_out']:.2f} there and "
        f"{e['held_out_at_infinity']:.2f} at infinity; trained without them, test accuracy is {e['test']:.2f} there "
        f"and {e['test_at_infinity']:.2f} at infinity"
    )


def markdown(results: dict[str, Any]) -> str:
    """table.md."""
    header, rows = grid(results)
    lines = [f"# {results['name']}", "", f"| {' | '.join(header)} |", f"|{'---:|' * len(header)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(results))]) + "\n"


def text(results: dict[str, Any]) -> str:
    """The table for a terminal."""
    header, rows = grid(results)
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]

    def line(row: list[str]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows), "", *notes(results)])


def csv_table(results: dict[str, Any]) -> str:
    """table.csv: a line a cell."""
    published = {(c["name"], d): paper_value(c, d) for c in results["columns"] for d in c["depths"]}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_KEYS, "paper"])
    for r in results["records"]:
        writer.writerow([*(r.get(key) for key in CSV_KEYS), published.get((r["column"], r["depth"]))])
    return out.getvalue()
