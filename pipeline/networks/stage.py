"""The train-cnn stage: learning rates x seeds for every cell of every CNN column, each run trained once."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from exact_ntk.device import describe
from exact_ntk.errors import ConfigError, NtkError
from exact_ntk.files import fingerprint
from exact_ntk.kept import keep_record, remove
from exact_ntk.locks import try_lock
from exact_ntk.networks.cell import ALL, FIT, NetworkCell, RunKey
from exact_ntk.networks.cost import largest_batch, measure_cost, measure_rate_search, training_flops
from exact_ntk.networks.setting import Setting
from exact_ntk.networks.spread import Costs, SpreadTraining
from exact_ntk.networks.training import TrainingData, TrainingRun, train
from exact_ntk.progress import duration, progress
from exact_ntk.records import LargestRate, RunRecord, TrainedRun

if TYPE_CHECKING:
    from exact_ntk.workers.crew import Crew

SECONDS_BETWEEN_LOOKS = 0.5
# The share of a device's memory that a run may take by formula: cuDNN's workspace comes on top.
FITS = 0.7

log = logging.getLogger("ntk")


@dataclass(frozen=True)
class Only:
    """Which runs to train: a column, one of its depths, a learning rate as in the config, a seed; None is all.

    shard: (k, n) takes the k-th of n shares, by what names a run alone.
    """

    column: str | None = None
    depth: int | None = None
    lr: float | None = None
    seed: int | None = None
    shard: tuple[int, int] = (1, 1)

    @classmethod
    def parse(cls, only: str | None, lr: float | None, seed: int | None, cells: Sequence[NetworkCell]) -> "Only":
        """From CNN-GAP or CNN-GAP/21. Raises ConfigError for what the cells do not hold."""
        name, _, depth = (only or "").partition("/")
        columns = {cell.name: cell.column for cell in cells if cell.name == name or not name}
        if not columns:
            known = ", ".join(dict.fromkeys(cell.name for cell in cells)) or "none"
            raise ConfigError(f"--only {only}: no such CNN column; there is {known}")
        if depth and not any(depth == str(d) for c in columns.values() for d in c.depths):
            raise ConfigError(f"--only {only}: column {name} has no depth {depth}")
        if lr is not None and not any(lr in c.lr for c in columns.values()):
            raise ConfigError(f"--lr {lr:g}: not among the column's learning rates {next(iter(columns.values())).lr}")
        if seed is not None and not any(0 <= seed < c.seeds for c in columns.values()):
            raise ConfigError(f"--seed {seed}: seeds run from 0 to {max(c.seeds for c in columns.values()) - 1}")
        return cls(name or None, int(depth) if depth else None, lr, seed)

    def of(self, cells: Sequence[NetworkCell]) -> list[NetworkCell]:
        """The cells that have such runs."""
        return [c for c in cells if self.column in (None, c.name) and self.depth in (None, c.depth)]


def train_cells(
    cells: Sequence[NetworkCell], device: torch.device, only: Only | None = None, crew: "Crew | None" = None
) -> int:
    """Train every run that is wanted and missing; returns how many were. A finished run is never trained again.

    Says first what the runs cost. crew: the workers that train, where this process does not. Any number of processes
    may share a folder on one host: a run that another one holds is left to it, and waited for at the end.
    """
    only = only or Only()
    chosen = only.of(cells)
    for cell in chosen:
        cell.set_damaged_aside()
    if crew:
        trained = _spread(chosen, only, crew)
    else:
        for line in cost_lines(chosen, only, device):
            log.info(line)
        trained = _train(chosen, only, device)
    for cell in chosen:
        trouble = cell.trouble()
        if trouble:
            log.warning(f"{cell.name} at depth {cell.depth}: {trouble}")
    return trained


def _spread(chosen: list[NetworkCell], only: Only, crew: "Crew") -> int:
    epochs = sum(runs_left(cell, only) * cell.column.epochs_at(cell.depth) for cell in chosen)
    if not epochs:
        return 0
    for line in crew.ask(Costs(only, len(crew))):
        log.info(line)
    with progress("train-cnn", epochs, "epoch") as bar:
        work = SpreadTraining(chosen, lambda cell: _missing(cell, only), bar)
        crew.work(work)
    return work.trained


def _train(chosen: list[NetworkCell], only: Only, device: torch.device) -> int:
    trained = 0
    while runs := [(cell, run) for cell in chosen for run in _missing(cell, only)]:
        outcomes = [train_run(cell, run, device) for cell, run in runs]
        trained += outcomes.count(True)
        if outcomes.count(None) == len(outcomes):
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return trained


def _missing(cell: NetworkCell, only: Only) -> list[RunKey]:
    """The runs to train next: those the cell wants, or those of its own that a filter names."""
    k, n = only.shard
    return [key for key in _named(cell, only) if int(fingerprint(cell.fields(key)), 16) % n == k - 1]


def _named(cell: NetworkCell, only: Only) -> list[RunKey]:
    if only.lr is None and only.seed is None:
        return cell.wanted()
    rates = [lr for lr in cell.column.lr if only.lr in (None, lr)]
    seeds = [seed for seed in range(cell.column.seeds) if only.seed in (None, seed)]
    return [run for lr in rates for seed in seeds if cell.trained(run := RunKey(lr, seed, ALL)) is None]


def runs_left(cell: NetworkCell, only: Only) -> int:
    """How many runs are still to train, those included that wait for their learning rate to be chosen."""
    runs = len(_missing(cell, only))
    if runs and (only.lr, only.seed) == (None, None) and cell.chosen()[1] and cell.selects_on_holdout:
        runs += cell.column.seeds
    return runs


def cost_lines(chosen: list[NetworkCell], only: Only, device: torch.device, workers: int = 1) -> Iterator[str]:
    """What each cell's missing runs cost: parameters, FLOPs, memory, and at most how long, from measured steps."""
    seconds = 0.0
    for cell in chosen:
        runs = runs_left(cell, only)
        if not runs:
            continue
        setting, data = cell.setting(1.0, 0), cell.data(ALL, device)
        with _saying_what_fits(cell, setting, data):
            cost = measure_cost(setting, data)
        with _saying_what_fits(cell, setting, data, search=True):
            search = measure_rate_search(setting, data) if cell.searches else 0.0
        at_most = search + runs * setting.epochs * cost.epoch_seconds(data)
        seconds += at_most
        yield (
            f"{cell.name}/{cell.depth}: {runs} run{'s' * (runs > 1)} of {len(data.x)} images and at most "
            f"{setting.epochs} epochs; {cost.parameters:,} parameters, {cost.flops:.2e} FLOP an image, "
            f"{1 / cost.train_seconds:.3g} images/s, memory about {cost.memory / 2**20:,.0f} MiB: "
            f"at most about {duration(at_most)}"
            + (f", {duration(search)} of them to find the largest stable learning rate" if search else "")
        )
    if seconds:
        shared = f" on {workers} workers" if workers > 1 else ""
        yield f"train-cnn: at most about {duration(seconds / workers)} in all{shared}, less where runs stop early"


@contextlib.contextmanager
def _saying_what_fits(cell: NetworkCell, setting: Setting, data: TrainingData, search: bool = False) -> Iterator[None]:
    """Raises NtkError where the device's memory is too small for training, or for the search for a learning rate."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        device = data.x.device
        memory = torch.cuda.get_device_properties(device).total_memory
        if search:
            what, advice = "the search for the largest stable learning rate does", "lower width, or give absolute rates"
        else:
            batch = largest_batch(setting, data, round(FITS * memory))
            what = f"batches of {setting.batch_size} images do"
            advice = f"{f'about {batch}' if batch else 'none'} would fit; lower batch_size or width"
        raise NtkError(
            f"{cell.name}/{cell.depth}: {what} not fit into the memory of {device}, {memory / 2**30:.3g} GiB: "
            f"{advice}, or see who else uses it"
        ) from error


def train_run(
    cell: NetworkCell, key: RunKey, device: torch.device, tell: Callable[[int], None] | None = None
) -> bool | None:
    """Train one run and write its record: True; False if it was finished meanwhile, None if another process has it.

    tell: epochs, where another process shows how far it is.
    """
    path = cell.path(key)
    lock = try_lock(path.with_suffix(".lock"))
    if lock is None:
        return None
    try:
        if path.exists():
            remove(path.with_suffix(".pt"))
            return False
        lock.clear(path, path.with_suffix(".pt"))
        _train_and_record(cell, key, path, device, tell)
    finally:
        # Once the record is written: whoever had this file open finds the record and trains nothing.
        lock.release(remove=path.exists())
    return True


def _train_and_record(
    cell: NetworkCell, key: RunKey, path: Path, device: torch.device, tell: Callable[[int], None] | None
) -> None:
    data, fields, checkpoint = cell.data(key.part, device), cell.fields(key), path.with_suffix(".pt")
    largest: LargestRate | None = None
    rate: float | None = key.lr
    if cell.column.lr_unit == "max":
        with _saying_what_fits(cell, cell.setting(0.0, 0), data, search=True):
            largest = cell.largest_lr(device)
        rate = largest.lr_max and key.lr * largest.lr_max
    label = f"{cell.name}/{cell.depth} lr {rate or key.lr:.3g} seed {key.seed}" + " (holdout)" * (key.part == FIT)
    setting = cell.setting(rate or 0.0, key.seed)
    if largest and rate is None:
        run = TrainingRun(setting, data, fields)
        run.diverged = largest.why
    else:
        with progress(label, setting.epochs, "epoch") as bar, _saying_what_fits(cell, setting, data):
            run = train(setting, data, fields, checkpoint, lambda run: tell(1) if tell else _show(bar, run))
        if tell:
            tell(setting.epochs - run.epoch)  # those that it stops short of, or that a checkpoint brought
    if run.diverged is not None:
        log.warning(f"{label}: diverged in epoch {run.epoch + 1} ({run.diverged}): it ends here, averaged into nothing")
    record = TrainedRun(
        result=RunRecord.model_validate(run.result()),
        right=run.right_share,
        lr=rate,
        lr_max=largest and largest.lr_max,
        parameters=sum(w.numel() for w in run.net.parameters()),
        fingerprint=fingerprint(fields),
        fields=fields,
        provenance=_facts(run, device),
    )
    keep_record(path, record)
    remove(checkpoint)


def _show(bar: tqdm, run: TrainingRun) -> None:
    """Bring a run's progress bar up to date, also after a resume."""
    if run.diverged is None:
        h = run.history
        bar.set_postfix_str(
            f"loss {h['loss'][-1]:.3g}, train {h['train_accuracy'][-1]:.1f} %, test {h['test_accuracy'][-1]:.1f} %, "
            f"{_pace(run):.0f} images/s",
            refresh=False,
        )
        if bar.n == 0 and run.epoch > 1:
            bar.initial = run.epoch - 1  # what a checkpoint brought is no work of this process
            bar.update(run.epoch - 1)
        bar.update(1)


def _pace(run: TrainingRun) -> float:
    """Training images a second, evaluation and checkpoints aside."""
    return len(run.data.x) * run.epoch / max(run.train_seconds, 1e-9)


def _facts(run: TrainingRun, device: torch.device) -> dict[str, Any]:
    """seconds: training with evaluation; the pace and the FLOPs are of training alone."""
    return {
        "seconds": round(run.seconds, 3),
        "train_seconds": round(run.train_seconds, 3),
        "images_per_second": round(_pace(run), 1),
        "training_flops_per_image": training_flops(run.net, *run.data.x.shape[2:]),
        "flops_per_second": round(training_flops(run.net, *run.data.x.shape[2:]) * _pace(run)),
        "precision": run.setting.precision,
        **describe(device),
    }
