"""What a reader must know of the table's numbers: marks on cells, and notes below it."""

from exact_ntk.grids import named
from exact_ntk.records import (
    CellRecord,
    EarlyStoppedCell,
    KernelRecord,
    NetworkRecord,
    PairedDifference,
    Results,
    RidgeCurve,
    by_need,
)
from exact_ntk.report.differing import differences
from exact_ntk.report.layout import by_choice, is_wide
from exact_ntk.report.paired import sureness
from exact_ntk.report.series import Series, all_series

INDEFINITE = "†"
OVERLAP = "‡"
TEST_RULE = "§"
DIVERGED = "¶"
MISSING = "–"
FAILED = "failed"
MOST_PAIRED = 24  # of columns, that are told one by one


def marks(record: CellRecord) -> str:
    """What a reader must know about a cell, as footnote marks."""
    if isinstance(record, KernelRecord):
        return INDEFINITE * record.indefinite + OVERLAP * any(d.overlaps for d in record.by_draw)
    return TEST_RULE * (record.lr_rule == "test") + DIVERGED * (record.seeds_diverged > 0)


def spread(record: CellRecord) -> str:
    """A cell's accuracy and standard error: 41.2 ± 0.8, with its marks."""
    return f"{record.accuracy:.2f} ± {record.standard_error:.2f}{marks(record)}"


def notes(results: Results) -> list[str]:
    """What the table's numbers are, and what is marked or missing."""
    head = "Test accuracy in %, ± its standard error."
    if any(c.paper for c in results.columns):
        head += " In brackets: Arora et al. 2019, table 1."
    return [head, *described(results), *caveats(results)]


def described(results: Results) -> list[str]:
    """What each column is; of a wide table each series, and first what all of them share."""
    if not is_wide(results):
        records = [found[0] for c in results.columns if (found := results.of_column(c.name))]
        ridges = _ridges(results)
        lines = [f"{r.column}: {', '.join(_parts(r, _is_one_draw(results, r.column)))}." for r in records]
        return lines + [f"{c.name}: {ridges[c.name]}." for c in results.columns if c.name in ridges]
    rows = {series.label: _of_series(results, series) for series in all_series(results)}
    first, *others = [parts for parts in rows.values() if parts] or [[]]
    shared = [part for part in first if all(part in parts for parts in others)]
    lines = [f"All: {', '.join(shared)}."] if shared else []
    apart = {label: ", ".join(part for part in parts if part not in shared) for label, parts in rows.items()}
    ridges = {s.label: _chosen(results, [head.name for head in s.columns.values()]) for s in all_series(results)}
    across: dict[str, list[str]] = {}
    for columns in (by_choice(results) or {}).values():
        for choice, head in columns.items():
            across.setdefault(choice, []).append(head.name)
    return lines + _once(apart, across) + _once(ridges, across)


def _once(said: dict[str, str], across: dict[str, list[str]]) -> list[str]:
    """What is said of each, once for all that it is said of.

    across: columns of the table with what stands below them, which they are told by where that is all said of.
    """
    of: dict[str, list[str]] = {}
    for label, text in said.items():
        of.setdefault(text, []).append(label)
    lines = []
    for text, labels in of.items():
        whole = {name: below for name, below in across.items() if set(below) <= set(labels)}
        rest = [label for label in labels if not any(label in below for below in whole.values())]
        lines += [f"{', '.join([*whole, *rest])}: {text}."] if text else []
    return lines


def _of_series(results: Results, series: Series) -> list[str]:
    """What is said of its columns, but for the number of training images, which stands in the table; and of which
    ones, where it is not said of all."""
    found = {n: records[0] for n, head in series.columns.items() if (records := results.of_column(head.name))}
    by_part: dict[str, list[int | str]] = {}
    for n, r in found.items():
        said = _parts(r, _is_one_draw(results, r.column))
        if len(series.columns) > 1:
            said = [part.replace(f" {r.n_train} training", " training") for part in said[1:]]
        for part in said:
            by_part.setdefault(part, []).append(n)
    return [
        part if len(those) == len(found) else f"{part} (n = {', '.join(map(str, those))})"
        for part, those in by_part.items()
    ]


def caveats(results: Results) -> list[str]:
    """What is marked, missing, or in no error; and the paired differences, or where many of them are."""
    lines = []
    if any(_is_one_draw(results, r.column) for r in results.records):
        lines.append("One draw: how much draws of training images differ is in no error.")
    lines += _seen(results) + _paired(results) + _explained_marks(results) + _indefinite(results)
    for r in results.records:
        lines += _of_network(r) if isinstance(r, NetworkRecord) else _of_kernel(r, results)
    for (failed, needs), cells in by_need(results.missing).items():
        lines.append(f"{FAILED if failed else f'{MISSING} missing'} {named(cells, 'cells')}: {needs}.")
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
    if len(by_columns) > MOST_PAIRED:
        total = (
            f"{len(results.paired)} paired differences, image by image, are in results.json and drawn in report.html"
        )
        by_chance = "one in twenty is two standard errors from 0 by chance alone"
        return [f"{total}; {by_chance}.", *(_worth(title, found) for title, found in differences(results).items())]
    return [f"{a} minus {b}, image by image: {', '.join(texts)}." for (a, b), texts in by_columns.items()]


def _worth(title: str, found: list[PairedDifference]) -> str:
    """What a choice is worth, over all comparisons."""
    points = sorted(p.difference for p in found)
    ends = " to ".join(f"{d:+.2f}" for d in (points[0], points[-1])[: len(points)])
    times = f"{len(found)} comparison{'s' * (len(found) > 1)}"
    sure = [p.difference for p in found if sureness(p) >= 2]
    above, below = sum(d > 0 for d in sure), sum(d < 0 for d in sure)
    return f"{title}: {ends} points in {times}, {above} above 0 by two standard errors, {below} below."


LEFT_OUT = {"loo": "leave-one-out", "holdout": "held-out"}
UNIT = {False: "", True: "unit diagonal", "projected": "unit diagonal through one more ReLU"}
SOURCES = {"test": "", "undrawn": " training images outside the draw", "both": " images outside the draw"}


def _is_one_draw(results: Results, name: str) -> bool:
    """Whether a column stands on one draw of the training images where there could be others."""
    return any(
        c["name"] == name and c["train"]["n"] != "all" and c["train"]["draws"] == 1 for c in results.config["columns"]
    )


def _parts(r: CellRecord, one_draw: bool) -> list[str]:
    """What a column is, the number of its training images first."""
    parts = [f"{r.n_train} training images", *(["one draw"] if one_draw else [])]
    parts += [f"tested on {r.n_test}{SOURCES[r.test_from]}", *([r.preprocessed] if r.preprocessed else [])]
    if isinstance(r, NetworkRecord):
        return [*parts, f"width {r.width}", f"mean of {r.seeds} seeds" if r.seeds > 1 else "one seed"]
    curve = r.by_draw[0].ridge
    ridge = f"each draw's ridge by {LEFT_OUT[curve.select]} error" if curve else f"ridge {r.ridge:g}" * bool(r.ridge)
    more = [f"mean of {r.draws} draws" * (r.draws > 1), "with mirror images" * r.flips, UNIT[r.unit_diagonal], ridge]
    return [*parts, *filter(None, more)]


def _ridges(results: Results) -> dict[str, str]:
    """The ridges that a column's draws have chosen."""
    chosen = {column.name: _chosen(results, [column.name]) for column in results.columns}
    return {name: text for name, text in chosen.items() if text}


def _chosen(results: Results, columns: list[str]) -> str:
    """The ridges that the draws of some columns have chosen, depth by depth."""
    by_depth: dict[int, list[RidgeCurve]] = {}
    for r in (r for name in columns for r in results.of_column(name)):
        curves = [d.ridge for d in r.by_draw if d.ridge] if isinstance(r, KernelRecord) else []
        by_depth.setdefault(r.depth, []).extend(curves)
    texts = []
    for depth, curves in sorted(by_depth.items()):
        chosen = sorted({curve.ridge for curve in curves})
        if chosen:
            top = sum(c.at_the_top for c in curves)
            of = f"{top} of {len(curves)} the largest there were" if len(curves) > 1 else "the largest there was"
            said = f" ({of})" * (top > 0)
            text = " to ".join(f"{ridge:g}" for ridge in (chosen[0], chosen[-1])[: len(chosen)])
            texts.append(f"{text}{said} at depth {depth}")
    return f"ridges chosen {', '.join(texts)}" if texts else ""


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
        who = f"{len(unfitted)} of {len(r.runs)} seeds" if len(r.runs) > 1 else "its seed"
        lines.append(
            f"{at}: {who} did not reach 100 % training accuracy in "
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
