"""Training runs by many workers: each run once, those that choose a learning rate before those that need it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from exact_ntk.networks.cell import NetworkCell, RunKey

if TYPE_CHECKING:
    from exact_ntk.networks.stage import Only
    from exact_ntk.workers.worker import Worker

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Costs:
    """What the missing runs cost on a worker, a line a cell."""

    only: "Only"
    workers: int
    name = "measuring its pace"

    def do(self, worker: "Worker", tell: Callable[[int], None]) -> list[str]:
        from exact_ntk.networks.stage import cost_lines

        return list(cost_lines(self.only.of(worker.table.network_cells), self.only, worker.device, self.workers))


@dataclass(frozen=True)
class TrainTask:
    """One run of a cell."""

    column: str
    depth: int
    key: RunKey

    @property
    def name(self) -> str:
        return f"{self.column}/{self.depth} lr {self.key.lr:g} seed {self.key.seed}"

    def do(self, worker: "Worker", tell: Callable[[int], None]) -> bool | None:
        """As `stage.train_run`."""
        from exact_ntk.networks.stage import train_run

        cells = worker.table.network_cells
        cell = next(c for c in cells if (c.name, c.depth) == (self.column, self.depth))
        return train_run(cell, self.key, worker.device, tell)


class SpreadTraining:
    """The missing runs of cells as work for a crew. missing: of a cell, now.  trained: how many were."""

    def __init__(self, cells: list[NetworkCell], missing: Callable[[NetworkCell], list[RunKey]], bar: tqdm):
        self.cells, self.missing, self.bar = cells, missing, bar
        self.trained = 0
        self.at_work: set[TrainTask] = set()
        self.held: dict[TrainTask, float] = {}

    def _open(self) -> list[TrainTask]:
        return [TrainTask(cell.name, cell.depth, key) for cell in self.cells for key in self.missing(cell)]

    def next(self) -> TrainTask | None:
        now = time.monotonic()
        for task in self._open():
            if task not in self.at_work and now - self.held.get(task, -SECONDS_BETWEEN_LOOKS) >= SECONDS_BETWEEN_LOOKS:
                self.at_work.add(task)
                return task
        return None

    def left(self) -> bool:
        return bool(self.at_work or self._open())

    def done(self, task: TrainTask, result: bool | None) -> None:
        """result: None where another process has the run."""
        self.at_work.discard(task)
        self.trained += result is True
        if result is None:
            self.held[task] = time.monotonic()

    def told(self, units: int) -> None:
        self.bar.update(units)
