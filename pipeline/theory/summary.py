"""The summary of `ntk verify` as Markdown and JSON: pure functions of its sections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exact_ntk.theory.criteria import Claim, plain
from exact_ntk.theory.quadrature import VARIANCES, QuadratureErrors

VERDICTS = {True: "holds", False: "**FAILS**"}


@dataclass(frozen=True)
class Section:
    """An experiment: a title, what was done (Markdown), its claims and the names of its figures."""

    title: str
    text: str
    claims: list[Claim]
    figures: list[str]


def verdict(claims: Sequence[Claim]) -> str:
    """How many claims held, in words."""
    failed = sum(not c.holds for c in claims)
    return f"all {len(claims)} claims hold" if not failed else f"{failed} of {len(claims)} claims FAIL"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # A bar inside a cell would end it.
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(
        [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(r)} |" for r in lines)]
    )


def quadrature_table(found: Sequence[QuadratureErrors]) -> str:
    """Errors by activation and largest variance."""
    header = ["activation", "rule", *(f"{v:g}" for v in VARIANCES)]
    return _table(header, [[q.activation, q.rule, *(f"{e:.0e}" for e in q.errors)] for q in found])


def summary_page(sections: Sequence[Section], made: str) -> str:
    """summary.md; `made`: how, in one sentence."""
    claims = [c for s in sections for c in s.claims]
    parts = ["# The theory, measured", f"{verdict(claims).capitalize()}. {made}"]
    for section in sections:
        rows = [[c.claim, c.measured, c.criterion, VERDICTS[c.holds]] for c in section.claims]
        parts += [f"## {section.title}", section.text, _table(["claim", "measured", "criterion", "verdict"], rows)]
        parts += [f"![{section.title}]({name})" for name in section.figures]
    return "\n\n".join(parts) + "\n"


def summary_record(sections: Sequence[Section], plan: dict[str, Any]) -> dict[str, Any]:
    """summary.json: the sizes of the experiments, and every claim."""
    claims = [{"section": s.title, **plain(c)} for s in sections for c in s.claims]
    return {"all_hold": all(c["holds"] for c in claims), "plan": plan, "claims": claims}
