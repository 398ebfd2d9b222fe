"""What each command does: open the workspace, call the pipeline's stage, say what came of it."""

import contextlib
import logging
import os
import re
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from exact_ntk.cli.console import remember
from exact_ntk.cli.show import show
from exact_ntk.data import fetch
from exact_ntk.device import keep_to_cores, resolve_device, resolve_devices
from exact_ntk.draws import load_images
from exact_ntk.errors import Incomplete, NtkError
from exact_ntk.files import require_writable, write_json
from exact_ntk.memory import default_memory, parse_bytes
from exact_ntk.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_ntk.forecast import Forecast
    from exact_ntk.gram.fill import Filler
    from exact_ntk.records import Results
    from exact_ntk.table import Table
    from exact_ntk.workers.crew import Crew

NICENESS = 10
WORK_A_REPORT = 9  # of `run`: so many times as long on columns as the last report took, before the next

log = logging.getLogger("ntk")


def begin(
    config: str,
    overrides: list[str] | None,
    runs: Path,
    results: Path,
    device: str,
    quiet: bool = False,
    memory: str | None = None,
    cluster: tuple[str, int] | None = None,
    pictures: bool = False,
) -> "Session":
    """Check the config and the options; print the resolved config. cluster: its address, and cores of a CPU worker."""
    workspace = open_workspace(config, overrides or [], runs, results)
    remember(config, overrides or [], runs, results, device, memory, pictures)
    # A cluster's devices are not this machine's.
    devices = [torch.device("cpu")] if cluster else resolve_devices(device)
    chosen = devices[0]
    keep_to_cores()
    budget = default_memory(chosen) if memory is None else parse_bytes(memory, "--memory")
    if chosen.type == "cpu":
        # Every core, but only what nobody else asks of it: a laptop stays usable for the hours of a Gram matrix.
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    if not quiet:
        where = f"Ray at {cluster[0]}" if cluster else ", ".join(map(str, devices))
        log.info(f"# {config}, resolved, on {where}\n{workspace.yaml}")
    return Session(workspace, chosen, budget, tuple(devices), (*cluster, device) if cluster else None, pictures)


@dataclass(frozen=True)
class Session:
    """A workspace on a device, and the stages a command can ask of it; its table is made when first asked for.

    memory: bytes that a solve may take.  devices: those to spread work over, the first of which is `device`.
    cluster: a Ray cluster's address in their stead, cores of a CPU worker, and the kind of device.
    pictures: whether reports show some images of the data set, as of the digits always.
    """

    workspace: Workspace
    device: torch.device
    memory: int
    devices: tuple[torch.device, ...]
    cluster: tuple[str, int, str] | None = None
    pictures: bool = False

    @cached_property
    def crew(self) -> "Crew | None":
        """The workers, where this process does not compute itself."""
        work = self.workspace
        if self.cluster:
            from exact_ntk.workers.cluster import RayCrew

            return RayCrew(work.config, work.run, *self.cluster)
        if len(self.devices) == 1:
            return None
        from exact_ntk.workers.processes import ProcessCrew

        return ProcessCrew(work.config, work.run, self.devices)

    @contextlib.contextmanager
    def _with_crew(self, last: bool = True) -> "Iterator[Crew | None]":
        """The workers, who end with the last stage that needs them, or before one that needs a GPU's whole memory."""
        try:
            yield self.crew
        finally:
            if self.crew and (last or self.device.type == "cuda"):
                self.crew.close()

    @cached_property
    def table(self) -> "Table":
        from exact_ntk.table import Table

        work = self.workspace
        return Table(work.config, load_images(work.config), self.device, work.run, self.crew if self.cluster else None)

    @cached_property
    def filler(self) -> "Filler":
        from exact_ntk.gram.fill import Filler

        table = self.table
        log.debug(f"computing with {table.backends}")  # raises where nothing can
        if table.images.dropped:
            log.info(f"{len(table.images.dropped)} copies among the training images were dropped")
        return Filler(table.shelf, self.device, self.workspace.config.gram.tile, self.crew)

    def run(self) -> None:
        """Every stage in order. Raises Incomplete, after the report, where a cell is still missing.

        Kernel columns are computed, solved and reported one after another, small ones first; of many that take no time
        a report tells of several.
        """
        for folder in (self.workspace.run, self.workspace.results):
            require_writable(folder)
        self.download()
        self.workspace.save_config()
        for cell in self.table.cells:
            cell.set_damaged_aside()
        for line in self._forecast().lines(self.workspace.run):
            log.info(line)
        failed: NtkError | None = None
        next_report = 0.0
        for name in dict.fromkeys(cell.name for cell in self.table.kernel_cells):
            self._fill(name)
            # A table that is not fuller than the one there waits until it is; what stays missing is said at the end.
            try:
                self._solve(name)
                start = time.monotonic()
                if start >= next_report:
                    self._report()
                    end = time.monotonic()
                    next_report = end + (end - start) * WORK_A_REPORT
            except Incomplete:
                continue
            except NtkError as error:
                failed = failed or error
        self.train_cnn()
        try:
            self.report()
        except NtkError as error:
            failed = failed or error
        if failed:
            raise failed

    def plan(self, as_json: bool = False) -> None:
        """What is still to compute and what that takes here; writes nothing."""
        with self._with_crew():
            found, folder = self._forecast(), self.workspace.run
            show("\n".join(found.lines(folder)), [found.grid()], found.totals(folder), found.value(folder), as_json)

    def _forecast(self) -> "Forecast":
        from exact_ntk.forecast import forecast

        return forecast(self.table, lambda: self.filler, self.memory)

    def download(self) -> None:
        """The data set."""
        config = self.workspace.config
        log.info(fetch(config.data, config.tested))

    def _fill(self, column: str) -> None:
        requests = self.table.requests()
        mine = [request for request in requests if request.column == column]
        # Columns that compute from one source share a store: its tiles are computed once, for all of them.
        sources = {request.sources[0] for request in mine}
        with self._with_crew(last=False):
            if mine:
                self.filler.fill([request for request in requests if request.sources[0] in sources], mine)

    def compute_gram(self, shard: tuple[int, int] = (1, 1), repair: bool = False, every: bool = False) -> None:
        """The Gram stores, small columns first. every: also what only solved draws read."""
        self.workspace.save_config()
        requests, check = self.table.requests(every), self.table.requests(every=True) if repair else None
        with self._with_crew():
            left = self.filler.fill(requests, shard=shard, repair=check) if requests or check else 0
        if not requests:
            log.info("every kernel cell is solved: no Gram matrix is needed (`ntk compute-gram --all` fills them)")
        elif left:
            log.info(f"shard {shard[0]}/{shard[1]} is done; {left} tile files are left to the others")

    def solve(self) -> None:
        """The kernel columns' cells, as far as their Gram matrices are there. Raises Incomplete where some are not."""
        self.workspace.save_config()
        log.info(f"solve: {self._solve()} systems solved, the others were done")

    def _solve(self, column: str | None = None) -> int:
        from exact_ntk.provenance import add_provenance
        from exact_ntk.regression.stage import solve_cells

        table, start = self.table, time.perf_counter()
        cells = [cell for cell in table.kernel_cells if column in (None, cell.name)]
        solved = solve_cells(cells, self.device, self.memory)
        if solved:
            seconds = round(time.perf_counter() - start, 2)
            add_provenance(self.workspace.run, "solve", self.device, systems=solved, seconds=seconds)
        return solved

    def train_cnn(
        self,
        only: str | None = None,
        lr: float | None = None,
        seed: int | None = None,
        shard: tuple[int, int] = (1, 1),
    ) -> None:
        """The CNN columns' runs."""
        from exact_ntk.networks.stage import Only, runs_left, train_cells
        from exact_ntk.provenance import add_provenance

        work, start, cells = self.workspace, time.perf_counter(), self.table.network_cells
        everything = (only, lr, seed) == (None, None, None)
        chosen = Only() if everything else Only.parse(only, lr, seed, cells)
        chosen = replace(chosen, shard=shard)
        work.save_config()
        with self._with_crew() as crew:
            trained = train_cells(cells, self.device, chosen, crew)
        if trained:
            seconds = round(time.perf_counter() - start, 2)
            add_provenance(work.run, "train-cnn", self.device, runs=trained, seconds=seconds)
        left = sum(runs_left(cell, Only()) for cell in cells) if shard[1] > 1 else 0
        log.info(
            f"train-cnn: {trained} runs trained, "
            + (f"{left} are left to the others" if left else "the others were done")
        )

    def report(self, as_json: bool = False) -> None:
        """The table and everything around it. Raises NtkError where cells failed, Incomplete where some are missing."""
        from exact_ntk.report.notes import notes
        from exact_ntk.report.tables import grid, text_table

        results = self._report()
        show(text_table(results), [grid(results)], notes(results), results.json_value(), as_json)
        files = "results.json, provenance.json, table.md, table.csv, table.tex, report.html and figures"
        log.info(f"wrote {self.workspace.results}/: {files}")
        name, failed = self.workspace.config.name, sum(cell.failed for cell in results.missing)
        if failed:
            raise NtkError(f"{failed} cells of {name} failed: see the notes above")
        if results.missing:
            raise Incomplete(f"{len(results.missing)} cells of {name} are missing: see the notes above")

    def _report(self) -> "Results":
        from exact_ntk.config import Digits
        from exact_ntk.provenance import clear_leftovers
        from exact_ntk.report.collect import collect
        from exact_ntk.report.write import write_report

        work = self.workspace
        clear_leftovers(work.run)
        collected = collect(self.table, self.pictures or isinstance(work.config.data, Digits))
        write_report(collected, work.yaml, work.results)
        return collected.results

    def predict(self, column: str, depth: int, draw: int | None, path: Path) -> None:
        """Labels and outputs of new images, as CSV."""
        from exact_ntk.config import Npz
        from exact_ntk.data.npz import read_new_images
        from exact_ntk.regression import apply

        config, table = self.workspace.config, self.table
        cell = apply.find_cell(table, column, depth)
        draws = apply.chosen_draws(cell, draw)
        layout = config.data.layout if isinstance(config.data, Npz) else None
        x = read_new_images(path, layout, config.data.preprocess == "none")
        apply.require_alike(cell.images, x, str(path))
        found = apply.mean_outputs(cell, draws, x, config.gram.backend, config.gram.dtype, self.device)
        print(apply.predictions_csv(found, table.images.classes), end="")

    def export(self, column: str, depth: int, draw: int, what: str, folder: Path) -> None:
        """Arrays of a draw as .npy files."""
        from exact_ntk.regression import apply

        cell = apply.find_cell(self.table, column, depth)
        (k,) = apply.chosen_draws(cell, draw)
        for path in apply.write_arrays(cell, k, what, folder, self.memory):
            log.info(f"wrote {path}")


def measure_speed(results: Path, device: str, seconds: float, as_json: bool = False) -> None:
    """The speed of every backend on a device."""
    from exact_ntk.bench import about, format_bench, rates_grid, run_bench

    chosen = resolve_device(device)
    keep_to_cores()
    require_writable(results / "bench")
    found = run_bench(chosen, seconds)
    show(format_bench(found), [rates_grid(found)], about(found), found, as_json)
    name = re.sub(r"[^a-z0-9]+", "-", found["machine"]["device"].lower()).strip("-")
    path = results / "bench" / f"{name}.json"
    write_json(path, found)
    log.info(f"wrote {path}")
