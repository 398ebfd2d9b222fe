"""What each command does: open the workspace, call the pipeline's stage, say what came of it."""

import os
import re
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline import bench as speed
from pipeline import gram, sweep
from pipeline import report as tables
from pipeline import results as records
from pipeline import solve as solving
from pipeline.config import KernelColumn
from pipeline.data import download as fetch
from pipeline.device import resolve_device
from pipeline.draws import OrderedImages, draw, load_images
from pipeline.errors import Incomplete
from pipeline.figures import accuracy_figure, curves_figure, gram_figure, width_figure
from pipeline.files import require_writable, write_atomic, write_json, write_text
from pipeline.html import page
from pipeline.workspace import Workspace, open_workspace

HEAT_MAP_IMAGES = 400
NICENESS = 10


def say(text: str) -> None:
    """One line of news; stdout is kept for the table."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Session:
    """A workspace on a device; images are loaded when first asked for."""

    workspace: Workspace
    device: torch.device

    @cached_property
    def images(self) -> OrderedImages:
        return load_images(self.workspace.config)


def begin(
    config: str, overrides: list[str] | None, runs: Path, results: Path, device: str, quiet: bool = False
) -> Session:
    """Check the config and the device; print the resolved config."""
    workspace = open_workspace(config, overrides or [], runs, results)
    chosen = resolve_device(device)
    if chosen.type == "cpu":
        # Every core, but only what nobody else asks of it: a laptop stays usable for the hours of a Gram matrix.
        os.nice(NICENESS)
    if not quiet:
        say(f"# {config}, resolved, on {chosen}\n{workspace.yaml}")
    return Session(workspace, chosen)


def run(session: Session) -> None:
    """Every stage in order. Raises Incomplete, after the report, where a cell is still missing."""
    download(session)
    compute_gram(session)
    solve(session)
    train_cnn(session)
    missing = report(session)
    if missing:
        raise Incomplete(f"{missing} cells of {session.workspace.config.name} are missing: see the notes above")


def download(session: Session) -> None:
    """The data set."""
    say(fetch(session.workspace.config.data))


def compute_gram(session: Session, shard: tuple[int, int] = (1, 1), repair: bool = False) -> None:
    """The Gram stores."""
    work = session.workspace
    images = session.images
    if images.dropped:
        say(f"{len(images.dropped)} exact duplicates among the training images were dropped")
    work.save_config()

    def record(store: str, facts: dict[str, Any]) -> None:
        records.add_provenance(work.run, store, session.device, facts)

    gram.compute(work.config, images, work.run, session.device, shard, repair, say, record)
    left = [gram.missing_tiles(job, work.run)[0] for job in gram.plan(work.config, images, session.device)]
    if any(left):
        say(f"shard {shard[0]}/{shard[1]} is done; {sum(left)} tiles are left to the others")


def solve(session: Session) -> None:
    """The kernel columns' cells."""
    work = session.workspace
    start = time.perf_counter()
    work.save_config()
    solved = solving.solve_all(work.config, session.images, work.run, session.device, say)
    if solved:
        facts = {"cells": solved, "seconds": round(time.perf_counter() - start, 2)}
        records.add_provenance(work.run, "solve", session.device, facts)
    say(f"solve: {solved} cells solved, the others were done")


def train_cnn(session: Session, only: str | None = None, lr: float | None = None, seed: int | None = None) -> None:
    """The CNN columns' runs."""
    work = session.workspace
    chosen = sweep.Only.parse(only, lr, seed, work.config) if (only, lr, seed) != (None, None, None) else sweep.Only()
    work.save_config()
    start = time.perf_counter()
    trained = sweep.train_all(work.config, session.images, work.run, session.device, chosen, say)
    if trained:
        facts = {"runs": trained, "seconds": round(time.perf_counter() - start, 2)}
        records.add_provenance(work.run, "train-cnn", session.device, facts)
    say(f"train-cnn: {trained} runs trained, the others were done")


def report(session: Session) -> int:
    """The table and everything around it; returns how many cells are missing."""
    work = session.workspace
    collected = records.collect(work.config, session.images, work.run, session.device)
    found = collected["results"]
    figures = {"Test accuracy against depth": ("accuracy.png", accuracy_figure(found))}
    for caption, name, png in (
        ("Networks against width, beside the kernel they tend to", "width.png", width_figure(found)),
        ("Training curves of the networks, a line a seed", "curves.png", curves_figure(found)),
    ):
        if png:
            figures[caption] = (name, png)
    heat_map = _heat_map(session)
    if heat_map:
        figures[heat_map[0]] = ("gram.png", heat_map[1])
    records.write_results(collected, work.results)
    write_text(work.results / "config.yaml", work.yaml)
    write_text(work.results / "table.md", tables.markdown(found))
    write_text(work.results / "table.csv", tables.csv_table(found))
    for name, png in figures.values():
        write_atomic(work.results / name, lambda file, png=png: file.write(png))  # type: ignore[misc]
    pictures = {caption: png for caption, (_, png) in figures.items()}
    write_text(work.results / "report.html", page(found, collected["provenance"], pictures))
    print(tables.text(found))
    say(f"wrote {work.results}/: results.json, provenance.json, table.md, table.csv, report.html and figures")
    return len(found["missing"])


def _heat_map(session: Session) -> tuple[str, bytes] | None:
    """Caption and picture of the last kernel column's deepest Gram matrix, or None where it is not computed."""
    work, images = session.workspace, session.images
    named = zip(work.config.column_names, work.config.columns, strict=True)
    columns = {name: c for name, c in named if isinstance(c, KernelColumn)}
    for job in reversed(gram.stored(work.config, images, work.run, session.device)):
        name = job.columns[0]
        column = columns[name]
        store = gram.open_store(job, work.run)
        try:
            rows = draw(images, column, name, 0).train[:HEAT_MAP_IMAGES]
            if store and len(rows) > 1:
                k = store.read(column.kernel, column.depths[-1], rows, rows)
                title = f"{name}, depth {column.depths[-1]}"
                caption = f"Gram matrix of {title}, {len(rows)} training images sorted by class"
                return caption, gram_figure(k, images.y[rows], images.classes, title)
        except Incomplete:
            continue
    return None


def status(session: Session, verify: bool) -> None:
    """Stores and cells, done and missing."""
    work, images = session.workspace, session.images
    missing = damaged = 0
    for job in gram.stored(work.config, images, work.run, session.device):
        label = f"Gram {job.job.family} ({', '.join(job.columns)})"
        store = gram.open_store(job, work.run)
        if store is None:
            print(f"{label}: nothing computed yet")
            missing += 1
            continue
        needed = job.tiles(store.shape)
        left = store.missing(needed)
        bad = store.damaged(needed - set(left)) if verify else []
        missing, damaged = missing + len(left), damaged + len(bad)
        pace = records.time_left(work.run, store.path.name, len(left))
        print(
            f"{label}: {len(needed) - len(left)} of {len(needed)} tiles done"
            + (f", {len(bad)} damaged (mend with `ntk compute-gram --repair`): {bad[:5]}" if bad else "")
            + (f", about {pace} left" if left and pace else "")
        )
    found = records.collect(work.config, images, work.run, session.device)["results"]
    print(f"cells: {len(found['records'])} done, {len(found['missing'])} missing")
    for cell in found["missing"]:
        print(f"  {cell['column']} at depth {cell['depth']}: {cell['needs']}")
    if missing or damaged or found["missing"]:
        raise Incomplete(f"{work.config.name} is not finished: `ntk run {work.config.name}` goes on where it stopped")


def bench(results: Path, device: str, seconds: float) -> None:
    """The speed of every backend on a device."""
    chosen = resolve_device(device)
    require_writable(results / "bench")
    found = speed.run_bench(chosen, seconds, say)
    print(speed.format_bench(found))
    name = re.sub(r"[^a-z0-9]+", "-", found["machine"]["device"].lower()).strip("-")
    path = results / "bench" / f"{name}.json"
    write_json(path, found)
    say(f"wrote {path}")
