"""How the report's line figures look: one colour-blind-safe style, each line named at its end, one panel an SVG."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from exact_ntk.canvas import subplots, to_svg

# Okabe and Ito's colours that show on white and on near black, told apart by people of every colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
WIDTH, HEIGHT = 4.6, 3.3  # inches: at 9 points readable also where the panel fills a phone
NAME_HEIGHT = 0.17
CHARACTERS = 36  # side by side below a panel
# Of a figure that has one for each column: more are not looked at, and a hundred take a minute to draw.
MOST_PANELS = 12
MOST_LINES = 12  # of a panel: the names of more stand far from their ends
LEADER = {"arrowstyle": "-", "linestyle": ":", "linewidth": 1, "relpos": (0, 0.5), "shrinkA": 1}


@dataclass(frozen=True)
class Line:
    """x, y: one curve or several of one colour (seeds).  error: standard errors.  published: the paper's points."""

    label: str
    x: Sequence[Sequence[float]]
    y: Sequence[Sequence[float]]
    error: Sequence[float] | None = None
    published: Sequence[tuple[float, float]] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """name: of its file.  words: what it shows, for whoever cannot see it."""

    name: str
    svg: str
    words: str


@dataclass(frozen=True)
class Drawing:
    """caption: what to see.  rows: the values, a header first.  panels: `MOST_PANELS` at most.

    total: how many panels there would be, where there may be more.
    """

    name: str
    title: str
    caption: str
    panels: list[Panel] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    total: int = 0

    @property
    def csv(self) -> str:
        """The rows as text."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(self.rows)
        return out.getvalue()


def panel(
    name: str,
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    ticks: Sequence[float] = (),
    log_y: bool = False,
    zero: bool = False,
) -> Panel:
    """One panel.  ticks: the x values there are, on a logarithmic axis.  zero: a dashed line at y = 0.

    `ntk run` reports several times: what has not changed since is not drawn again.
    """
    return _drawn(name, title, tuple(map(_frozen, lines)), x_label, y_label, tuple(ticks), log_y, zero)


def _frozen(line: Line) -> Line:
    """The same in tuples, which have a hash."""
    x, y = (tuple(map(tuple, curves)) for curves in (line.x, line.y))
    error = None if line.error is None else tuple(line.error)
    return replace(line, x=x, y=y, error=error, published=tuple(line.published))


@lru_cache(maxsize=256)
def _drawn(
    name: str,
    title: str,
    lines: tuple[Line, ...],
    x_label: str,
    y_label: str,
    ticks: tuple[float, ...],
    log_y: bool,
    zero: bool,
) -> Panel:
    height = max(HEIGHT, NAME_HEIGHT * len(lines) + 0.9)
    figure, axis = subplots(1, 1, (WIDTH, height))
    for k, line in enumerate(lines):
        _draw(axis, line, COLOURS[k % len(COLOURS)], MARKERS[(k + k // len(COLOURS)) % len(MARKERS)])
    if zero:
        axis.axhline(0, linestyle="--", color="#888", linewidth=1)
    if ticks:
        axis.set_xscale("log")
        axis.set_xticks(spaced(ticks), [f"{tick:g}" for tick in spaced(ticks)])
        axis.minorticks_off()
    if log_y:
        axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    _name_lines(axis, lines, height)
    return Panel(name, to_svg(figure, name), f"{title}, {y_label} against {x_label}. {_in_words(lines)}")


def spaced(ticks: Sequence[float]) -> list[float]:
    """Those whose numbers do not run into each other on a logarithmic axis, the ends among them; ticks increase."""
    gap = (max(len(f"{tick:g}") for tick in ticks) + 1) / CHARACTERS * math.log(ticks[-1] / ticks[0])
    kept = [ticks[0]]
    for tick in ticks[1:-1]:
        if min(math.log(tick / kept[-1]), math.log(ticks[-1] / tick)) >= gap:
            kept.append(tick)
    return kept + list(ticks[1:][-1:])


@dataclass(frozen=True)
class Dot:
    """One value of a panel of `dots`, with its standard error."""

    label: str
    value: float
    error: float


@lru_cache(maxsize=256)
def dots(name: str, title: str, values: tuple[Dot, ...], label: str, zero: bool = False) -> Panel:
    """One panel of values in rows, from the top down, where there is nothing to draw a line along.

    zero: a dashed line there.
    """
    height = max(1.5, NAME_HEIGHT * len(values) + 0.9)
    figure, axis = subplots(1, 1, (WIDTH, height))
    places = range(len(values))
    x, error = ([getattr(dot, of) for dot in values] for of in ("value", "error"))
    axis.errorbar(x, places, xerr=error, linestyle="", marker="o", color=COLOURS[0], capsize=2, markersize=4)
    if zero:
        axis.axvline(0, linestyle="--", color="#888", linewidth=1)
    axis.set_yticks(places, [dot.label for dot in values], fontsize=9)
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    words = "; ".join(f"{dot.label} {dot.value:.4g}, error {dot.error:.2g}" for dot in values)
    return Panel(name, to_svg(figure, name), f"{title}, {label}. {words}.")


def _draw(axis: Any, line: Line, colour: str, marker: str) -> None:
    style = "--" if line.dashed else "-"
    if line.error is None:
        for x, y in zip(line.x, line.y, strict=True):
            axis.plot(x, y, style, color=colour, linewidth=1, alpha=0.85)
        return
    (x,), (y,) = line.x, line.y
    axis.errorbar(x, y, yerr=line.error, linestyle=style, marker=marker, color=colour, capsize=2.5, markersize=5)
    if line.published:
        axis.plot(*zip(*line.published, strict=True), marker, mfc="none", color=colour, markersize=9)


def _name_lines(axis: Any, lines: Sequence[Line], height: float) -> None:
    """Each line's name beside its end, moved apart where ends are close."""
    named = [line for line in lines if line.x and len(line.x[0])]
    if not named:
        return
    axis.get_ylim()  # sets the limits that are still to follow the data
    ends = [max((x[-1], y[-1]) for x, y in zip(line.x, line.y, strict=True)) for line in named]
    inverse = axis.transAxes.inverted()
    at = [float(inverse.transform(axis.transData.transform(end))[1]) for end in ends]
    at = apart(at, NAME_HEIGHT / (height - 0.9))
    for k, line in enumerate(named):
        axis.annotate(
            line.label,
            ends[k],
            xytext=(1.06, at[k]),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={**LEADER, "color": COLOURS[lines.index(line) % len(COLOURS)]},
        )


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The places moved, their order kept, so that neighbours are `gap` apart and, where there is room, none above 1."""
    at = list(places)
    order = sorted(range(len(at)), key=at.__getitem__)
    for below, above in pairwise(order):
        at[above] = max(at[above], at[below] + gap)
    at[order[-1]] = min(at[order[-1]], 1.0)
    for above, below in pairwise(reversed(order)):
        at[below] = min(at[below], at[above] - gap)
    return at


def _in_words(lines: Sequence[Line]) -> str:
    said = [
        f"{line.label} from {line.y[0][0]:.4g} at {line.x[0][0]:g} to {line.y[0][-1]:.4g} at {line.x[0][-1]:g}"
        for line in lines
        if line.x and len(line.x[0])
    ]
    return "; ".join(said) + "."


SCHEMES = "<style>svg{color:#1b1f24}@media(prefers-color-scheme:dark){svg{color:#e6e9ec}}</style>"


def standalone(svg: str) -> str:
    """A panel as a file of its own, its ink by the colour scheme of whoever looks."""
    end = svg.index(">") + 1
    return svg[:end] + SCHEMES + svg[end:] + "\n"
