"""report.html: what was found, the table, the figures and where they came from, in one file that needs no other."""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from exact_ntk.canvas import heat_png
from exact_ntk.grids import named
from exact_ntk.records import ColumnHead, Results
from exact_ntk.report.classes import MOST_CLASSES, ByClass, by_class
from exact_ntk.report.collect import Collected
from exact_ntk.report.drawing import MOST_PANELS, Drawing
from exact_ntk.report.found import found, in_errors
from exact_ntk.report.layout import is_wide, laid_out
from exact_ntk.report.notes import FAILED, MISSING, caveats, described, spread
from exact_ntk.report.pictures import Apart
from exact_ntk.report.series import leading
from exact_ntk.report.spectra import without_spectrum
from exact_ntk.report.tables import csv_table

# Characters: values of a figure or provenance of more lie beside the page, which would else be too large to send.
MOST_EMBEDDED = 100_000
LONGEST_HEAD = 4  # characters of a class's name over a confusion matrix: with a longer one they stand upright
MOST_LOOSE = 7  # columns of a table that has room between them

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff; --shade: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3adb8; --line: #3a424b; --paper: #14171a;
  --shade: #20252a; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #333; --line: #bbb; --paper: #fff;
  --shade: #f3f5f7; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { margin-bottom: 0; } .sub, figcaption, .small { color: var(--soft); } .sub { margin-top: .2rem; }
.found { font-size: 1.2rem; } a { color: inherit; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; overflow-wrap: normal; }
.dense { font-size: .85rem; } .dense :is(th, td) { padding: .3rem .5rem; } tbody th { position: sticky; left: 0;
  background: var(--paper); }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { border-bottom: 2px solid var(--soft); } .small { display: block; font-size: .8rem; }
.wide { overflow-x: auto; } .panels { display: flex; flex-wrap: wrap; gap: 1rem; }
.panels > * { flex: 1 1 19rem; max-width: 30rem; min-width: 0; }
.drawn { display: grid; grid-template-columns:
  repeat(auto-fill, minmax(min(100%, max(19rem, (100% - 2rem) / var(--across))), 1fr)); } figure { margin: 1.5rem 0; }
svg { width: 100%; height: auto; color: var(--ink); stroke-linejoin: round; }
.maps > * { flex: 0 1 9rem; margin: 0; } .pictures > * { flex: 0 1 5.5rem; margin: 0; }
.maps img, .pictures img { width: 100%; image-rendering: pixelated; display: block; }
.matrices > * { flex-basis: 25rem; } .confusion { font-size: .75rem; print-color-adjust: exact; }
.confusion th, .confusion td { padding: .2rem .35rem; } .confusion th { vertical-align: bottom; }
.upright { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 8rem; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
pre { background: var(--shade); padding: 1rem; overflow-x: auto; font-size: .8rem; } summary { cursor: pointer; }
@media (max-width: 40rem) { tbody th { white-space: normal; min-width: 4.5rem; } }
@media print { figure, table, h3 + div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .links, details { display: none; } .wide { overflow: visible; } table { font-size: .75rem; }
  th, td { padding: .2rem .35rem; white-space: normal; } pre { white-space: pre-wrap; } .maps > * { flex-basis: 7rem; }
  .matrices > * { flex-basis: 19rem; } }
"""


def page(collected: Collected, drawings: Sequence[Drawing], config_yaml: str) -> str:
    """The report; drawings: of the same records."""
    results, classes = collected.results, by_class(leading(collected.results), collected, MOST_PANELS)
    title = _text(results.name)
    body = [
        f"<h1>{title}</h1>",
        '<p class="sub">Convolutional neural tangent kernels beside the finite networks they are the limit of</p>',
        f'<p class="found">{_text(" ".join(found(results)))}</p>',
        "<h2>Test accuracy</h2>",
        _accuracies(results),
        f'<p class="links">{_link("table.csv", csv_table(results))}</p>',
        _described(results),
        _items(caveats(results)),
        *map(_figure, drawings),
        _items(without_spectrum(collected)),
        _classes(classes, collected.classes, len(results.columns)),
        _pictures(collected.apart),
        _heat_maps(collected),
        _cost(results, collected.provenance),
        _provenance(collected, config_yaml),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: accuracy table</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body><main>
{chr(10).join(filter(None, body))}
</main></body></html>
"""


def _text(value: object) -> str:
    return html.escape(str(value))


def _link(name: str, content: str, kind: str = "text/csv") -> str:
    data = base64.b64encode(content.encode()).decode()
    return f'<a download="{_text(name)}" href="data:{kind};charset=utf-8;base64,{data}">{_text(name)}</a>'


def _items(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """header, rows: HTML; a row begins with its own header.  label: what the table is, for whoever cannot see it."""
    head = "".join(f'<th scope="col">{h}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{_text(label)}" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _described(results: Results) -> str:
    """What the columns are; where they are many, behind a click."""
    lines = described(results)
    if not is_wide(results):
        return _items(lines)
    return f"<details><summary>What each of them is</summary>{_items(lines)}</details>"


def _accuracies(results: Results) -> str:
    header, rows = laid_out(results, lambda column, depth: _accuracy(results, column, depth))
    said = "In %, ± its standard error."
    if any(c.paper for c in results.columns):
        said += " Paper: Arora et al. 2019, table 1; beside it ours minus theirs in standard errors (SE) of ours."
    return _laid_out(header, rows, "Test accuracy by depth and column") + f'<p class="small">{said}</p>'


def _laid_out(header: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table of `laid_out`, whose cells are HTML already and whose names are not."""
    dense = "dense" if len(header) > MOST_LOOSE else ""
    return _table([*map(_text, header)], [[_text(first), *rest] for first, *rest in rows], label, dense)


def _accuracy(results: Results, column: ColumnHead, depth: int) -> str:
    record, published = results.cell(column.name, depth), column.paper_value(depth)
    failed = any(m.failed and (m.column, m.depth) == (column.name, depth) for m in results.missing)
    ours = spread(record) if record else FAILED if failed else MISSING
    if published is None:
        return _text(ours)
    gap = f", {in_errors(record, published):+.1f} SE" if record else ""
    return f'{_text(ours)}<span class="small">paper {published:.2f}{gap}</span>'


def _figure(drawing: Drawing) -> str:
    panels = "".join(
        f'<div>{p.svg.replace("<svg ", f"""<svg role="img" aria-label="{_text(p.words)}" """, 1)}</div>'
        for p in drawing.panels
    )
    across = 2 if len(drawing.panels) in (1, 2, 4) else 3
    name, text = f"{drawing.name}.csv", drawing.csv
    link = _link(name, text) if len(text) <= MOST_EMBEDDED else f"Its values: figures/{name}, beside this page."
    some = f" Of {drawing.total} panels {len(drawing.panels)} are drawn."
    caption = drawing.caption + some * (len(drawing.panels) < drawing.total)
    return (
        f'<h2>{_text(drawing.title)}</h2><figure><div class="panels drawn" style="--across: {across}">{panels}</div>'
        f'<figcaption>{_text(caption)} <span class="links">{link}</span></figcaption></figure>'
    )


def beside(drawings: Iterable[Drawing]) -> dict[str, str]:
    """By their names, the files of values that are too large for the page."""
    return {f"{d.name}.csv": d.csv for d in drawings if len(d.csv) > MOST_EMBEDDED}


def _classes(columns: list[ByClass], names: tuple[str, ...], of: int) -> str:
    if not columns:
        return ""
    header = ["class", *(f"{_text(c.column)}/{c.depth}" for c in columns)]
    rows = [[_text(n), *(_percent(c.accuracy[k]) for c in columns)] for k, n in enumerate(names)]
    text = "<h2>Class by class</h2><p>Each column at its best depth: which classes it gets right, in %."
    text += f" Of {of} columns {len(columns)} are shown.</p>" if of > MOST_PANELS else "</p>"
    text += _table(header, rows, "Accuracy by class and column")
    if len(names) > MOST_CLASSES:
        return text + f"<p>Confusion matrices are shown up to {MOST_CLASSES} classes; here are {len(names)}.</p>"
    matrices = "".join(_confusion(c, c.confusion, names) for c in columns if c.confusion is not None)
    return f'{text}<div class="panels matrices">{matrices}</div>'


def _percent(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:.1f}"


def _confusion(column: ByClass, counts: np.ndarray, names: tuple[str, ...]) -> str:
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def cell(i: int, j: int) -> str:
        colour = "0, 114, 178" if i == j else "213, 94, 0"
        return f'<td style="background: rgba({colour}, {0.6 * share[i, j] ** 0.5:.2f})">{counts[i, j] or ""}</td>'

    upright = any(len(n) > LONGEST_HEAD for n in names)
    heads = [f'<span class="upright">{_text(n)}</span>' if upright else _text(n) for n in names]
    rows = [[_text(n), *(cell(i, j) for j in range(len(names)))] for i, n in enumerate(names)]
    title = f"{column.column} at depth {column.depth}"
    return (
        f"<figure>{_table(['', *heads], rows, f'Confusion matrix of {title}', 'confusion')}<figcaption>{_text(title)}: "
        "images of the class on the left taken for the class on top, over all draws. Orange: mistakes.</figcaption>"
        "</figure>"
    )


def _pictures(both_ways: Sequence[Apart]) -> str:
    if not both_ways:
        return ""
    first = both_ways[0]
    one, other = (f"{column} at depth {depth}" for column, depth in (first.right, first.wrong))
    text = (
        f"<h2>Images that tell two columns apart</h2><p>{_text(one)} and {_text(other)} on the {first.tested} images "
        "that both were tested on, where one is right and the other wrong: each image with its class. Of a kernel's "
        "draws it is the first; a network's runs and last epochs decide by majority.</p>"
    )
    return text + "".join(map(_one_way, both_ways))


def _one_way(apart: Apart) -> str:
    right, wrong = (f"{column}/{depth}" for column, depth in (apart.right, apart.wrong))
    images = "".join(
        f'<figure><img alt="{_text(f"{p.place}, class {p.words}")}" src="data:image/png;base64,'
        f'{base64.b64encode(p.png).decode()}"><figcaption>{_text(p.words)}</figcaption></figure>'
        for p in apart.pictures
    )
    some = f", {len(apart.pictures)} of them" if len(apart.pictures) < apart.total else ""
    said = f"Right by {right}, wrong by {wrong}: {apart.total}{some}."
    return f'<figure><figcaption>{_text(said)}</figcaption><div class="panels pictures">{images}</div></figure>'


def _heat_maps(collected: Collected) -> str:
    found: dict[str, dict[int, np.ndarray]] = {column.name: {} for column in leading(collected.results)}
    for (name, depth), draws in collected.arrays.items():
        if draws and "heat_map" in draws[0]:
            found[name][depth] = draws[0]["heat_map"]
    having = [(name, maps) for name, maps in found.items() if maps]
    rows = [
        f'<h3>{_text(name)}</h3><div class="panels maps">{"".join(_heat_map(name, *k) for k in maps.items())}</div>'
        for name, maps in having[:MOST_PANELS]
    ]
    if not rows:
        return ""
    some = f" Of {len(having)} columns {len(rows)} are shown." if len(rows) < len(having) else ""
    return (
        "<h2>Gram matrices by depth</h2><p>K(x, x') / √(K(x, x) K(x', x')) of the first training images, at most 64, "
        "sorted by class: bright squares along the diagonal are classes that the kernel sees as alike. Dark to bright "
        f"is each map's own range, from its 1st to its 99.5th percentile off the diagonal.{some}</p>" + "".join(rows)
    )


def _heat_map(name: str, depth: int, k: np.ndarray) -> str:
    off_diagonal = k[~np.eye(len(k), dtype=bool)]
    low, high = np.percentile(off_diagonal, [1, 99.5]) if len(k) > 1 else (0.0, 1.0)
    png = base64.b64encode(heat_png(k, low, high)).decode()
    words = f"depth {depth}: {low:.3f} to {high:.3f}"
    return (
        f'<figure><img alt="Gram matrix of {_text(name)}, {words}" src="data:image/png;base64,{png}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _cost(results: Results, provenance: dict[str, Any]) -> str:
    """Seconds of each cell and of each stage, as far as they are known."""
    cells = {
        key: sum(part.get("seconds", 0.0) for part in (*made.get("draws", ()), *made.get("runs", ())))
        for key, made in provenance.get("cells", {}).items()
    }
    header, rows = laid_out(results, lambda column, depth: _seconds(cells.get(f"{column.name}/{depth}")))
    stages = provenance.get("stages", {})
    text = "<h2>Cost</h2><p>Seconds of a cell: solving its draws, or training its runs. The Gram matrices, which give "
    text += "every depth in one pass, are in the second table.</p>" + _laid_out(
        header, rows, "Seconds by depth and column"
    )
    if stages:
        text += _table(["stage", "columns", "seconds", "device"], _stage_rows(stages), "Seconds by stage")
    return text


def _stage_rows(stages: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Columns, seconds and device of each stage; the stores that draws of the same columns have share a row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for stage, facts in stages.items():
        columns = tuple(sorted(facts.get("columns", ()))) or (stage,)
        alike.setdefault((facts.get("device", MISSING), *columns), []).append(stage)
    rows = []
    for (device, *_), names in alike.items():
        known = [s for name in names if (s := stages[name].get("seconds")) is not None]
        of = named(stages[names[0]].get("columns", ())) or "all"
        what = names[0] if len(names) == 1 else f"{len(names)} Gram stores"
        rows.append([_text(what), _text(of), _seconds(sum(known) if known else None), _text(device)])
    return rows


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f}"


def _provenance(collected: Collected, config_yaml: str) -> str:
    made = collected.provenance["report"]
    versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items())
    data = collected.results.config["data"]
    beside = f", and {data['path']} where it says" if "path" in data else ""
    facts = json.dumps(collected.provenance, indent=1)
    stages = "<p>Stages and cells: provenance.json, beside this page.</p>"
    if len(facts) <= MOST_EMBEDDED:
        stages = f'<details><summary>Stages and cells</summary><pre tabindex="0">{_text(facts)}</pre></details>'
    return f"""<h2>Provenance</h2>
<p>{_text(made["device"])}, {_text(made["threads"])} threads; {_text(versions)}.</p>
<p>To reproduce it, with {_link("config.yaml", config_yaml, "application/yaml")} in the folder{_text(beside)}:</p>
<pre>ntk run config.yaml</pre>
<details><summary>Resolved config</summary><pre tabindex="0">{_text(config_yaml)}</pre></details>
{stages}"""
