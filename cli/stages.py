"""What each command does: open the workspace, call the pipeline's stage, say what came of it."""

import logging
import os
import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from exact_ntk.data import fetch
from exact_ntk.device import resolve_device
from exact_ntk.draws import OrderedImages, load_images
from exact_ntk.errors import Incomplete
from exact_ntk.files import require_writable, write_json
from exact_ntk.workspace import Workspace, open_workspace

NICENESS = 10

log = logging.getLogger("ntk")


def begin(
    config: str, overrides: list[str] | None, runs: Path, results: Path, device: str, quiet: bool = False
) -> "Session":
    """Check the config and the device; print the resolved config."""
    workspace = open_workspace(config, overrides or [], runs, results)
    chosen = resolve_device(device)
    if chosen.type == "cpu":
        # Every core, but only what nobody else asks of it: a laptop stays usable for the hours of a Gram matrix.
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    if not quiet:
        log.info(f"# {config}, resolved, on {chosen}\n{workspace.yaml}")
    return Session(workspace, chosen)


@dataclass(frozen=True)
class Session:
    """A workspace on a device, and the stages a command can ask of it; images are loaded when first asked for."""

    workspace: Workspace
    device: torch.device

    @cached_property
    def images(self) -> OrderedImages:
        return load_images(self.workspace.config)

    def run(self) -> None:
        """Every stage in order. Raises Incomplete, after the report, where a cell is still missing."""
        self.download()
        self.compute_gram()
        self.solve()
        self.train_cnn()
        missing = self.report()
        if missing:
            raise Incomplete(f"{missing} cells of {self.workspace.config.name} are missing: see the notes above")

    def download(self) -> None:
        """The data set."""
        log.info(fetch(self.workspace.config.data))

    def compute_gram(self, shard: tuple[int, int] = (1, 1), repair: bool = False) -> None:
        """The Gram stores."""
        from exact_ntk.gram.fill import fill_stores
        from exact_ntk.gram.plan import gram_jobs

        work, images = self.workspace, self.images
        if images.dropped:
            log.info(f"{len(images.dropped)} exact duplicates among the training images were dropped")
        work.save_config()
        fill_stores(work.config, images, work.run, self.device, shard, repair)
        left = [job.missing(work.run)[0] for job in gram_jobs(work.config, images, self.device)]
        if any(left):
            log.info(f"shard {shard[0]}/{shard[1]} is done; {sum(left)} tiles are left to the others")

    def solve(self) -> None:
        """The kernel columns' cells."""
        from exact_ntk.provenance import add_provenance
        from exact_ntk.regression.stage import solve_cells

        work, start = self.workspace, time.perf_counter()
        work.save_config()
        solved = solve_cells(work.config, self.images, work.run, self.device)
        if solved:
            seconds = round(time.perf_counter() - start, 2)
            add_provenance(work.run, "solve", self.device, cells=solved, seconds=seconds)
        log.info(f"solve: {solved} cells solved, the others were done")

    def train_cnn(self, only: str | None = None, lr: float | None = None, seed: int | None = None) -> None:
        """The CNN columns' runs."""
        from exact_ntk.networks.stage import Only, train_cells
        from exact_ntk.provenance import add_provenance

        work, start = self.workspace, time.perf_counter()
        everything = (only, lr, seed) == (None, None, None)
        chosen = Only() if everything else Only.parse(only, lr, seed, work.config)
        work.save_config()
        trained = train_cells(work.config, self.images, work.run, self.device, chosen)
        if trained:
            seconds = round(time.perf_counter() - start, 2)
            add_provenance(work.run, "train-cnn", self.device, runs=trained, seconds=seconds)
        log.info(f"train-cnn: {trained} runs trained, the others were done")

    def report(self) -> int:
        """The table and everything around it; returns how many cells are missing."""
        from exact_ntk.report.collect import collect, heat_map
        from exact_ntk.report.tables import text_table
        from exact_ntk.report.write import write_report

        work = self.workspace
        on_disk = work.config, self.images, work.run, self.device
        collected = collect(*on_disk)
        write_report(collected, heat_map(*on_disk), work.yaml, work.results)
        print(text_table(collected.results))
        log.info(f"wrote {work.results}/: results.json, provenance.json, table.md, table.csv, report.html and figures")
        return len(collected.results.missing)

    def status(self, verify: bool) -> None:
        """Stores and cells, done and missing. Raises Incomplete where something is."""
        from exact_ntk.gram.plan import stored_jobs
        from exact_ntk.provenance import time_left
        from exact_ntk.report.collect import collect

        work, images = self.workspace, self.images
        missing = damaged = 0
        for job in stored_jobs(work.config, images, work.run, self.device):
            label = f"Gram {job.job.family} ({', '.join(job.columns)})"
            store = job.open(work.run)
            if store is None:
                print(f"{label}: nothing computed yet")
                missing += 1
                continue
            needed = job.tiles(store.shape)
            left = store.missing(needed)
            bad = store.damaged(needed - set(left)) if verify else []
            missing, damaged = missing + len(left), damaged + len(bad)
            pace = time_left(work.run, store.path.name, len(left))
            print(
                f"{label}: {len(needed) - len(left)} of {len(needed)} tiles done"
                + (f", {len(bad)} damaged (mend with `ntk compute-gram --repair`): {bad[:5]}" if bad else "")
                + (f", about {pace} left" if left and pace else "")
            )
        found = collect(work.config, images, work.run, self.device).results
        print(f"cells: {len(found.records)} done, {len(found.missing)} missing")
        for cell in found.missing:
            print(f"  {cell.column} at depth {cell.depth}: {cell.needs}")
        if missing or damaged or found.missing:
            name = work.config.name
            raise Incomplete(f"{name} is not finished: `ntk run {name}` goes on where it stopped")


def measure_speed(results: Path, device: str, seconds: float) -> None:
    """The speed of every backend on a device."""
    from exact_ntk.bench import format_bench, run_bench

    chosen = resolve_device(device)
    require_writable(results / "bench")
    found = run_bench(chosen, seconds)
    print(format_bench(found))
    name = re.sub(r"[^a-z0-9]+", "-", found["machine"]["device"].lower()).strip("-")
    path = results / "bench" / f"{name}.json"
    write_json(path, found)
    log.info(f"wrote {path}")
