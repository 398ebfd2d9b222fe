"""What was found, in two sentences made from the records."""

from exact_ntk.records import Results
from exact_ntk.report.differing import differences
from exact_ntk.report.figures import Record, beside_kernel, unpaired_error
from exact_ntk.report.notes import SOURCES
from exact_ntk.report.paired import sureness, surest

Sentences = tuple[str, str]


def found(results: Results) -> Sentences:
    """The best cell, and the comparison that says most: with the paper, of columns, or of networks and kernels."""
    if not results.records:
        return f"No cell of {results.name} is finished.", "What each needs stands below."
    best = max(results.records, key=lambda r: r.accuracy)
    total = len(results.records) + len(results.missing)
    first = f"Of {total} cells ({len(results.missing)} without a result) " if results.missing else f"Of {total} cells "
    first += (
        f"{best.column} at depth {best.depth} classifies most of its test images right, {_accuracy(best)} of "
        f"{best.n_test}{SOURCES[best.test_from] or ' test images'}, trained on {best.n_train}."
    )
    return first, _against_paper(results) or _columns(results) or _networks(results) or _depth(results)


def in_errors(r: Record, value: float) -> float:
    """Accuracy minus a value, in the cell's standard errors."""
    return (r.accuracy - value) / r.standard_error


def _accuracy(r: Record) -> str:
    return f"{r.accuracy:.2f} ± {r.standard_error:.2f} %"


def _against_paper(results: Results) -> str | None:
    published = {(c.name, d): c.paper_value(d) for c in results.columns for d in c.depths}
    beside = [(r, value) for r in results.records if (value := published[r.column, r.depth]) is not None]
    if not beside:
        return None
    gaps = [r.accuracy - value for r, value in beside]
    if len(beside) == 1:
        return (
            f"The 1 cell with a published value differs from it by {gaps[0]:+.2f} points, "
            f"{abs(in_errors(*beside[0])):.1f} standard errors of ours."
        )
    worst, value = max(beside, key=lambda pair: abs(in_errors(*pair)))
    return (
        f"The {len(beside)} cells with a published value differ from it by {min(gaps):+.2f} to {max(gaps):+.2f} "
        f"points, at most {abs(in_errors(worst, value)):.1f} standard errors of ours "
        f"({worst.column} at depth {worst.depth})."
    )


def _columns(results: Results) -> str | None:
    if not results.paired:
        return None
    p = surest(results.paired)
    (choice, alike), *others = sorted(differences(results).items(), key=lambda item: p not in item[1])
    same = sum(q.difference * p.difference > 0 for q in alike)
    of_them = f", of which {len(alike)} are {choice}, {same} of them" * bool(others) or f", {same}"
    return (
        f"On the same images {p.column} is {_ahead(p.difference, p.standard_error)} {p.minus} by "
        f"{abs(p.difference):.2f} ± {p.standard_error:.2f} points at depth {p.depth} ({sureness(p):.1f} standard "
        f"errors), the surest of {_count(len(results.paired), 'paired comparison')}{of_them} with that sign."
    )


def _networks(results: Results) -> str | None:
    pairs = beside_kernel(results)
    if not pairs:
        return None
    net, kernel = max(pairs, key=lambda pair: abs(pair[0].accuracy - pair[1].accuracy) / unpaired_error(*pair))
    gap, error = net.accuracy - kernel.accuracy, unpaired_error(net, kernel)
    return (
        f"{net.column} at depth {net.depth} is {_ahead(gap, error)} {kernel.column}, the kernel it tends to, by "
        f"{abs(gap):.2f} ± {error:.2f} points ({abs(gap) / error:.1f} standard errors), the surest of "
        f"{_count(len(pairs), 'comparison')} of network and kernel."
    )


def _depth(results: Results) -> str:
    for column in results.columns:
        records = results.of_column(column.name)
        if len(records) > 1:
            shallow, deep = records[0], records[-1]
            gap = deep.accuracy - shallow.accuracy
            return (
                f"From depth {shallow.depth} to {deep.depth} the accuracy of {column.name} changes by {gap:+.2f} "
                f"points, from {_accuracy(shallow)} to {_accuracy(deep)}."
            )
    return "There is nothing to compare it with: no published value, no counterpart and no other depth."


def _ahead(gap: float, error: float) -> str:
    return "not surely " * (abs(gap) < 2 * error) + ("ahead of" if gap >= 0 else "behind")


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n > 1)}"
