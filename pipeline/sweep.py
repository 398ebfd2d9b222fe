"""The train-cnn stage: learning rates x seeds for every cell of every CNN column, from images to cell records.

With several learning rates, the one to report is chosen either by one run each, seed 0, on a share of the training
images, scored on the rest (select: holdout), or by the mean test accuracy over all seeds, the paper's rule (select:
test). The reported runs always train on all of the draw's images.
"""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipeline.config import CnnColumn, Config
from pipeline.cost import measure, training_flops
from pipeline.device import describe
from pipeline.draws import OrderedImages, draw
from pipeline.errors import ConfigError, NtkError
from pipeline.files import digest, fingerprint, read_json, remove_partials, write_json
from pipeline.lr import MOST_STEPS, DeadNetwork, largest_stable_lr
from pipeline.progress import progress
from pipeline.regression import targets
from pipeline.standard_error import standard_error
from pipeline.train import LOSS, Images, Run, Setting, build, train

# Bump by hand when the same setting trains another way: earlier runs are not reused.
SWEEP_VERSION = 4
ALL, FIT = "all", "fit"
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Only:
    """Which runs to train: a column, one of its depths, a learning rate as in the config, a seed; None is all."""

    column: str | None = None
    depth: int | None = None
    lr: float | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, only: str | None, lr: float | None, seed: int | None, config: Config) -> "Only":
        """From CNN-GAP or CNN-GAP/21. Raises ConfigError for what the config does not hold."""
        name, _, depth = (only or "").partition("/")
        columns = {n: c for n, c in cnn_columns(config) if n == name or not name}
        if not columns:
            known = ", ".join(n for n, _ in cnn_columns(config)) or "none"
            raise ConfigError(f"--only {only}: no such CNN column; there is {known}")
        if depth and not any(depth == str(d) for c in columns.values() for d in c.depths):
            raise ConfigError(f"--only {only}: column {name} has no depth {depth}")
        if lr is not None and not any(lr in c.lr for c in columns.values()):
            raise ConfigError(f"--lr {lr:g}: not among the column's learning rates {next(iter(columns.values())).lr}")
        if seed is not None and not any(0 <= seed < c.seeds for c in columns.values()):
            raise ConfigError(f"--seed {seed}: seeds run from 0 to {max(c.seeds for c in columns.values()) - 1}")
        return cls(name or None, int(depth) if depth else None, lr, seed)


def cnn_columns(config: Config) -> list[tuple[str, CnnColumn]]:
    """The CNN columns with their names."""
    return [(n, c) for n, c in zip(config.column_names, config.columns, strict=True) if isinstance(c, CnnColumn)]


class Cell:
    """One CNN cell: its images, learning rates and runs, and where they lie."""

    def __init__(self, name: str, column: CnnColumn, depth: int, images: OrderedImages, folder: Path):
        self.name, self.column, self.depth, self.images = name, column, depth, images
        self.folder = folder / "cnn"
        self.draw = draw(images, column, name, 0)
        held_out = round(len(self.draw.train) * column.holdout)
        # Draw positions are in a seeded, usually class-balanced order: a prefix is a fair sample.
        self.fit, self.held_out = self.draw.train[held_out:], self.draw.train[:held_out]
        if self.selects_on_holdout and not (held_out and len(self.fit)):
            raise ConfigError(f"column {name}: holdout {column.holdout} leaves no images to train on or to choose by")

    @property
    def selects_on_holdout(self) -> bool:
        """Whether learning rates are chosen by runs of their own."""
        return len(self.column.lr) > 1 and self.column.select == "holdout"

    @property
    def rule(self) -> str:
        """How the learning rate is chosen: single, holdout or test."""
        return self.column.select if len(self.column.lr) > 1 else "single"

    def data(self, part: str, device: torch.device) -> Images:
        """The images a run trains and is scored on: all of the draw and the test images, or the held-out split."""
        train_at, test_at = (self.draw.train, self.draw.test) if part == ALL else (self.fit, self.held_out)
        x, y = self.images.x, self.images.y

        def pixels(at: np.ndarray) -> torch.Tensor:
            return x[at].to(device, memory_format=torch.channels_last)

        return Images(
            pixels(train_at),
            targets(y[train_at], len(self.images.classes)).float().to(device),
            torch.from_numpy(y[train_at]).to(device),
            pixels(test_at),
            torch.from_numpy(y[test_at]).to(device),
        )

    def setting(self, lr: float, seed: int) -> Setting:
        """A run's setting; lr is the learning rate itself."""
        c = self.column
        return Setting(
            readout=c.readout,
            depth=self.depth,
            width=c.width,
            kappa=c.kappa,
            train_first=c.trains_first,
            train_last=c.trains_last,
            seed=seed,
            lr=lr,
            momentum=c.momentum,
            batch_size=c.batch_size,
            epochs=c.epochs,
            settle=c.settle,
            zero_output=c.zero_output,
            precision=c.precision,
        )

    def fields(self, lr: float, seed: int, part: str) -> dict[str, Any]:
        """Exactly what a run's result depends on; lr as the config gives it."""
        setting = asdict(self.setting(lr, seed))
        return {
            **setting,
            **self.images.fields,
            "labels": digest(self.images.y),
            "lr_unit": self.column.lr_unit,
            "part": part if part == ALL else f"{part} {self.column.holdout}",
            "train_images_drawn": digest(self.draw.train),
            "test_images_drawn": digest(self.draw.test) if part == ALL else None,
            "version": SWEEP_VERSION,
        }

    def path(self, lr: float, seed: int, part: str) -> Path:
        """A finished run's record; its checkpoint is beside it as .pt while it trains."""
        label = f"{self.name}-L{self.depth}-lr{lr:g}-{part}-s{seed}"
        return self.folder / f"{label}-{fingerprint(self.fields(lr, seed, part))}.json"

    def found(self, lr: float, seed: int, part: str) -> dict[str, Any] | None:
        """A finished run's record, or None."""
        path = self.path(lr, seed, part)
        return read_json(path) if path.exists() else None

    def chosen(self) -> tuple[float | None, list[tuple[float, int, str]]]:
        """The learning rate to report, in the config's unit, and the runs still missing to choose it.

        None with nothing missing: every learning rate diverged.
        """
        c = self.column
        if self.rule == "single":
            return c.lr[0], []
        part, seeds = (FIT, range(1)) if self.selects_on_holdout else (ALL, range(c.seeds))
        wanted = [(lr, seed, part) for lr in c.lr for seed in seeds]
        runs = {key: self.found(*key) for key in wanted}
        missing = [key for key, run in runs.items() if run is None]
        if missing:
            return None, missing
        scores = {}
        for lr in c.lr:
            accuracies = [run["result"]["accuracy"] for key, run in runs.items() if run and key[0] == lr]
            if None not in accuracies:
                scores[lr] = float(np.mean(accuracies))
        return (max(scores, key=lambda lr: scores[lr]) if scores else None), []

    def wanted(self) -> list[tuple[float, int, str]]:
        """The runs still missing, as far as they are known: first those that choose, then those that are reported."""
        lr, missing = self.chosen()
        if missing or lr is None:
            return missing
        return [(lr, s, ALL) for s in range(self.column.seeds) if self.found(lr, s, ALL) is None]

    def largest_lr(self, device: torch.device) -> tuple[float | None, str | None]:
        """The largest stable learning rate of the seed-0 network, computed once and kept, or None and why not."""
        setting, images = self.setting(1.0, 0), self.data(ALL, device)
        fields = {**self.fields(0.0, 0, ALL), "kind": "largest stable learning rate"}
        path = self.folder / f"{self.name}-L{self.depth}-lr_max-{fingerprint(fields)}.json"
        if not path.exists():
            with progress(f"{self.name}/{self.depth} largest stable lr", MOST_STEPS, "step") as bar:
                lr_max, why = None, None
                try:
                    lr_max = largest_stable_lr(build(setting, images), images.x, bar.update)
                except DeadNetwork as error:
                    why = str(error)
            write_json(path, {"lr_max": lr_max, "why": why, "fields": fields})
        found = read_json(path)
        return found["lr_max"], found["why"]

    def record(self) -> dict[str, Any] | None:
        """The cell's record and provenance, or None while runs are missing or every learning rate diverged."""
        lr, missing = self.chosen()
        if missing or lr is None:
            return None
        runs = [self.found(lr, seed, ALL) for seed in range(self.column.seeds)]
        done = [r for r in runs if r is not None]
        good = [r for r in done if r["result"]["diverged"] is None]
        if len(done) < len(runs) or not good:
            return None
        results = [r["result"] for r in good]
        values = [r["accuracy"] for r in results]
        mean, n_test = float(np.mean(values)), len(self.draw.test)
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        scores = [np.array(r["right"]) for r in good]
        chosen: dict[str, Any] = {"runs": [r["fingerprint"] for r in done], "rule": self.rule}
        if self.rule != "single":
            chosen |= {"rates": self.column.lr, "holdout": self.column.holdout if self.selects_on_holdout else None}
        record = {
            "model": "cnn",
            "column": self.name,
            "readout": self.column.readout,
            "depth": self.depth,
            "accuracy": mean,
            "standard_error": standard_error([self.draw.test] * len(scores), scores),
            "std": std,
            "n_train": len(self.draw.train),
            "n_test": n_test,
            "test_from": self.column.test.source,
            "seeds": len(values),
            "seeds_diverged": len(done) - len(values),
            "lr": good[0]["lr"],
            "lr_share": _share(good[0]),
            "lr_unit": self.column.lr_unit,
            "lr_rule": self.rule,
            "loss": LOSS,
            "batch_size": self.column.batch_size,
            "momentum": self.column.momentum,
            "train_accuracy": float(np.mean([r["train_accuracy"] for r in results])),
            "epochs": float(np.mean([r["epochs"] for r in results])),
            "diverged": self._diverged(),
            "width": self.column.width,
            "kappa": self.column.kappa,
            "parameters": good[0]["parameters"],
            "fingerprint": fingerprint(chosen),
            "runs": [r["result"] for r in done],
        }
        return {"record": record, "provenance": {"runs": [r["provenance"] for r in done]}}

    def _diverged(self) -> list[dict[str, Any]]:
        tried = [(lr, s, part) for lr in self.column.lr for s in range(self.column.seeds) for part in (FIT, ALL)]
        runs = [(part, self.found(lr, s, part)) for lr, s, part in tried]
        return [
            {
                "lr": run["lr"],
                "lr_share": _share(run),
                "seed": run["result"]["seed"],
                "part": part,
                "why": run["result"]["diverged"],
            }
            for part, run in runs
            if run is not None and run["result"]["diverged"] is not None
        ]

    def trouble(self) -> str | None:
        """Why a cell whose runs are all done has no record, or None."""
        lr, missing = self.chosen()
        if missing or self.wanted() or self.record():
            return None
        first = self._diverged()[0]
        if first["lr"] is None:
            return str(first["why"])
        rates = "every run at the chosen learning rate" if lr else "at every learning rate a run"
        return f"{rates} diverged: lower lr (now {list(self.column.lr)}, unit {self.column.lr_unit})"


def _share(run: dict[str, Any]) -> float | None:
    """A run's learning rate as a share of the largest stable one."""
    return run["lr"] / run["lr_max"] if run["lr"] and run["lr_max"] else None


def cells(config: Config, images: OrderedImages, folder: Path) -> list[Cell]:
    """Every CNN cell of the table."""
    return [
        Cell(name, column, depth, images, folder) for name, column in cnn_columns(config) for depth in column.depths
    ]


def train_all(
    config: Config,
    images: OrderedImages,
    folder: Path,
    device: torch.device,
    only: Only | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Train every run that is wanted and missing; returns how many were. A finished run is never trained again.

    Says first what the runs cost. Any number of processes may share a folder on one host: a run that another one holds
    is left to it, and waited for at the end.
    """
    only = only or Only()
    chosen = [
        cell
        for cell in cells(config, images, folder)
        if only.column in (None, cell.name) and only.depth in (None, cell.depth)
    ]
    announce(chosen, only, device, say)
    trained = 0
    while runs := [(cell, run) for cell in chosen for run in _asked(cell, only) if cell.found(*run) is None]:
        outcomes = [_train_run(cell, *run, device, say) for cell, run in runs]
        trained += outcomes.count(True)
        if outcomes.count(None) == len(outcomes):
            time.sleep(SECONDS_BETWEEN_LOOKS)
    for cell in chosen:
        trouble = cell.trouble()
        if trouble:
            say(f"{cell.name} at depth {cell.depth}: {trouble}")
    return trained


def announce(chosen: list[Cell], only: Only, device: torch.device, say: Callable[[str], None]) -> None:
    """Say what each cell's missing runs cost: parameters, FLOPs, memory, and at most how long, from measured steps."""
    seconds = 0.0
    for cell in chosen:
        missing = [run for run in _asked(cell, only) if cell.found(*run) is None]
        runs = len(missing)
        if runs and (only.lr, only.seed) == (None, None) and cell.chosen()[1] and cell.selects_on_holdout:
            runs += cell.column.seeds
        if not runs:
            continue
        setting, data = cell.setting(1.0, 0), cell.data(ALL, device)
        cost = measure(setting, data)
        at_most = runs * setting.epochs * cost.epoch_seconds(data)
        seconds += at_most
        say(
            f"{cell.name}/{cell.depth}: {runs} run{'s' * (runs > 1)} of {len(data.x)} images and at most "
            f"{setting.epochs} epochs; {cost.parameters:,} parameters, {cost.flops:.2e} FLOP an image, "
            f"{1 / cost.train_seconds:.3g} images/s, memory about {cost.memory / 2**20:,.0f} MiB: "
            f"at most about {_duration(at_most)}"
        )
    if seconds:
        say(f"train-cnn: at most about {_duration(seconds)} in all, less where runs stop early")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(1, round(seconds))))


def _asked(cell: Cell, only: Only) -> list[tuple[float, int, str]]:
    """The runs to train next: those the cell wants, or those of its own that a filter names."""
    if only.lr is None and only.seed is None:
        return cell.wanted()
    rates = [lr for lr in cell.column.lr if only.lr in (None, lr)]
    seeds = [seed for seed in range(cell.column.seeds) if only.seed in (None, seed)]
    return [(lr, seed, ALL) for lr in rates for seed in seeds]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Try to hold a run's lock on this host: False where another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise NtkError(f"cannot write {path.parent}: {error.strerror or error}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        # Only after its record is written: whoever had this file open finds the record and trains nothing.
        path.unlink(missing_ok=True)


def _train_run(
    cell: Cell, lr: float, seed: int, part: str, device: torch.device, say: Callable[[str], None]
) -> bool | None:
    """Train one run and write its record: True; False if it was finished meanwhile, None if another process has it."""
    path = cell.path(lr, seed, part)
    with _alone(path.with_suffix(".lock")) as alone:
        if not alone:
            return None
        if path.exists():
            return False
        remove_partials(path)
        lr_max, dead = cell.largest_lr(device)
        rate = lr if cell.column.lr_unit == "absolute" else lr * lr_max if lr_max else None
        images = cell.data(part, device)
        fields = cell.fields(lr, seed, part)
        label = f"{cell.name}/{cell.depth} lr {lr if rate is None else rate:.3g} seed {seed}"
        label += " (holdout)" if part == FIT else ""
        setting = cell.setting(rate or 0.0, seed)
        if rate is None:
            run = Run(setting, images, fields)
            run.diverged = dead
        else:
            with progress(label, setting.epochs, "epoch") as bar:
                run = train(setting, images, fields, path.with_suffix(".pt"), lambda run: _show(bar, run))
        if run.diverged is not None:
            say(f"{label}: diverged in epoch {run.epoch + 1} ({run.diverged}): it ends here, averaged into nothing")
        record = {
            "result": run.result(),
            "right": run.right_share,
            "lr": rate,
            "lr_max": lr_max,
            "parameters": sum(w.numel() for w in run.net.parameters()),
            "fingerprint": fingerprint(fields),
            "fields": fields,
            "provenance": _provenance(run, device),
        }
        write_json(path, record)
        path.with_suffix(".pt").unlink(missing_ok=True)
    return True


def _show(bar: tqdm, run: Run) -> None:
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


def _pace(run: Run) -> float:
    """Training images a second, evaluation and checkpoints aside."""
    return len(run.images.x) * run.epoch / max(run.train_seconds, 1e-9)


def _provenance(run: Run, device: torch.device) -> dict[str, Any]:
    """seconds: training with evaluation; the pace and the FLOPs are of training alone."""
    return {
        "seconds": round(run.seconds, 3),
        "train_seconds": round(run.train_seconds, 3),
        "images_per_second": round(_pace(run), 1),
        "training_flops_per_image": training_flops(run.net, *run.images.x.shape[2:]),
        "flops_per_second": round(training_flops(run.net, *run.images.x.shape[2:]) * _pace(run)),
        "precision": run.setting.precision,
        **describe(device),
    }
