"""A network column at a depth: its images, its training runs, which of them are missing, and its record."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from exact_ntk.config import CnnColumn
from exact_ntk.draws import Draw, copies_tested, count_held_out
from exact_ntk.files import digest, fingerprint
from exact_ntk.images import OrderedImages
from exact_ntk.kept import keep_record, read_kept, set_damaged_aside
from exact_ntk.locks import locked
from exact_ntk.networks.setting import LOSS, Setting
from exact_ntk.progress import progress
from exact_ntk.records import Divergence, LargestRate, MissingCell, NetworkRecord, TrainedRun
from exact_ntk.standard_error import standard_error

if TYPE_CHECKING:
    import torch

    from exact_ntk.networks.training import TrainingData

# Bump by hand when the same setting trains another way, here in some precisions only: earlier runs are not reused.
TRAIN_VERSIONS = {"float32": 4, "tf32": 4, "bf16": 5}
# A run trains on all of a draw and is scored on the test images, or on what is not held out of it and on the rest.
ALL, FIT = "all", "fit"


class RunKey(NamedTuple):
    """One run of a cell: its learning rate as the config gives it, its seed, and ALL or FIT."""

    lr: float
    seed: int
    part: str


class NetworkCell:
    """A network column at a depth.

    With several learning rates, the one to report is chosen either by one run each, seed 0, on a share of the training
    images, scored on the rest (select: holdout), or by the mean test accuracy over all seeds, the paper's rule (select:
    test). The reported runs always train on all of the draw's images.
    """

    def __init__(self, name: str, column: CnnColumn, depth: int, images: OrderedImages, draw: Draw, folder: Path):
        self.name, self.column, self.depth, self.images, self.draw = name, column, depth, images, draw
        self.folder = folder / "cnn"
        held = count_held_out(len(draw.train), column.holdout, f"column {name}") if self.selects_on_holdout else 0
        self.fit, self.held_out = draw.train[held:], draw.train[:held]

    @property
    def selects_on_holdout(self) -> bool:
        """Whether learning rates are chosen by runs of their own."""
        return self.rule == "holdout"

    @property
    def rule(self) -> Any:
        """How the learning rate is chosen: single, holdout or test."""
        return self.column.select if len(self.column.lr) > 1 else "single"

    def data(self, part: str, device: "torch.device") -> "TrainingData":
        """The images a run trains and is scored on: all of the draw and the test images, or the held-out split."""
        import torch

        from exact_ntk.networks.training import TrainingData
        from exact_ntk.regression.solve import targets

        train_at, test_at = (self.draw.train, self.draw.test) if part == ALL else (self.fit, self.held_out)
        x, y = self.images.x, self.images.y

        def pixels(at: np.ndarray) -> torch.Tensor:
            return x[at].to(device, memory_format=torch.channels_last)

        return TrainingData(
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
            epochs=c.epochs_at(self.depth),
            settle=c.settle,
            zero_output=c.zero_output,
            precision=c.precision,
        )

    def fields(self, run: RunKey) -> dict[str, Any]:
        """Exactly what a run's result depends on; lr as the config gives it."""
        return {
            **asdict(self.setting(run.lr, run.seed)),
            **self.images.fields,
            "labels": digest(self.images.y),
            "lr_unit": self.column.lr_unit,
            "part": ALL if run.part == ALL else f"{run.part} {self.column.holdout}",
            "train_images_drawn": digest(self.draw.train),
            "test_images_drawn": digest(self.draw.test) if run.part == ALL else None,
            "version": TRAIN_VERSIONS[self.column.precision],
        }

    def path(self, run: RunKey) -> Path:
        """A finished run's record, whatever the column is called; its checkpoint is beside it, as .pt."""
        c = self.column
        label = f"{c.readout}-L{self.depth}-w{c.width}-lr{run.lr:g}-{run.part}-s{run.seed}"
        return self.folder / f"{label}-{fingerprint(self.fields(run))}.json"

    def set_damaged_aside(self) -> None:
        """Have damaged runs count as missing."""
        keys = [RunKey(lr, s, part) for lr in self.column.lr for s in range(self.column.seeds) for part in (FIT, ALL)]
        for path in (*map(self.path, keys), self.largest_lr_path):
            set_damaged_aside(path)

    def trained(self, run: RunKey) -> TrainedRun | None:
        """A finished run, or None."""
        path = self.path(run)
        return read_kept(path, TrainedRun) if path.exists() else None

    def chosen(self) -> tuple[float | None, list[RunKey]]:
        """The learning rate to report, in the config's unit, and the runs still missing to choose it.

        None with nothing missing: every learning rate diverged.
        """
        c = self.column
        if self.rule == "single":
            return c.lr[0], []
        part, seeds = (FIT, range(1)) if self.selects_on_holdout else (ALL, range(c.seeds))
        runs = {key: self.trained(key) for key in (RunKey(lr, seed, part) for lr in c.lr for seed in seeds)}
        missing = [key for key, run in runs.items() if run is None]
        if missing:
            return None, missing
        scores = {}
        for lr in c.lr:
            accuracies = [run.result.accuracy for key, run in runs.items() if run and key.lr == lr]
            if None not in accuracies:
                scores[lr] = float(np.mean(accuracies))  # type: ignore[arg-type]
        return (max(scores, key=lambda lr: scores[lr]) if scores else None), []

    def wanted(self) -> list[RunKey]:
        """The runs still missing, as far as they are known: first those that choose, then those that are reported."""
        lr, missing = self.chosen()
        if missing or lr is None:
            return missing
        return [key for key in self.reported(lr) if self.trained(key) is None]

    def reported(self, lr: float) -> list[RunKey]:
        """The runs whose mean is the cell's accuracy."""
        return [RunKey(lr, seed, ALL) for seed in range(self.column.seeds)]

    def _largest_lr_fields(self) -> dict[str, Any]:
        return {**self.fields(RunKey(0.0, 0, ALL)), "kind": "largest stable learning rate"}

    @property
    def largest_lr_path(self) -> Path:
        """Where the largest stable learning rate is kept once it is known."""
        label = f"{self.column.readout}-L{self.depth}-w{self.column.width}-lr_max"
        return self.folder / f"{label}-{fingerprint(self._largest_lr_fields())}.json"

    @property
    def searches(self) -> bool:
        """Whether its largest stable learning rate is needed and not known yet."""
        return self.column.lr_unit == "max" and not self.largest_lr_path.exists()

    def largest_lr(self, device: "torch.device") -> LargestRate:
        """The largest stable learning rate of the seed-0 network, computed once and kept, or why there is none."""
        path = self.largest_lr_path
        with locked(path.with_suffix(".lock"), remove=True) as lock:  # other runs of the cell wait for it
            lock.clear(path)
            if not path.exists():
                self._find_largest_lr(path, device)
        return read_kept(path, LargestRate)

    def _find_largest_lr(self, path: Path, device: "torch.device") -> None:
        from exact_ntk.networks.lr import MOST_STEPS, DeadNetwork, largest_stable_lr
        from exact_ntk.networks.training import build_network

        setting, data = self.setting(1.0, 0), self.data(ALL, device)
        lr_max, why = None, None
        with progress(f"{self.name}/{self.depth} largest stable lr", MOST_STEPS, "step") as bar:
            try:
                lr_max = largest_stable_lr(build_network(setting, data), data.x, bar.update)
            except DeadNetwork as error:
                why = str(error)
        keep_record(path, LargestRate(lr_max=lr_max, why=why, fields=self._largest_lr_fields()))

    def _finished_runs(self) -> list[TrainedRun] | None:
        """The reported runs, or None while some are missing or where every one diverged."""
        lr, missing = self.chosen()
        if missing or lr is None:
            return None
        done = [run for key in self.reported(lr) if (run := self.trained(key))]
        good = any(run.result.accuracy is not None for run in done)
        return done if good and len(done) == self.column.seeds else None

    def record(self) -> tuple[NetworkRecord, dict[str, Any]] | None:
        """The cell's record and provenance, or None while runs are missing or every learning rate diverged."""
        done = self._finished_runs()
        if done is None:
            return None
        good = [run for run in done if run.result.accuracy is not None]
        values = [float(run.result.accuracy or 0.0) for run in good]
        record = NetworkRecord(
            model="cnn",
            column=self.name,
            readout=self.column.readout,
            depth=self.depth,
            accuracy=float(np.mean(values)),
            standard_error=standard_error([self.draw.test] * len(good), [np.array(run.right) for run in good]),
            std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
            n_train=len(self.draw.train),
            n_test=len(self.draw.test),
            test_from=self.column.test.source,
            copies_tested=copies_tested(self.images, self.draw),
            preprocessed=self.images.words,
            seeds=len(good),
            seeds_diverged=len(done) - len(good),
            lr=good[0].lr or 0.0,
            lr_share=good[0].lr_share,
            lr_unit=self.column.lr_unit,
            lr_rule=self.rule,
            loss=LOSS,
            batch_size=self.column.batch_size,
            momentum=self.column.momentum,
            train_accuracy=float(np.mean([run.result.train_accuracy or 0.0 for run in good])),
            epochs=float(np.mean([run.result.epochs for run in good])),
            diverged=self.divergences(),
            width=self.column.width,
            kappa=self.column.kappa,
            parameters=good[0].parameters,
            fingerprint=fingerprint({"runs": [run.fingerprint for run in done], **self._choice()}),
            runs=[run.result for run in done],
        )
        return record, {"runs": [run.provenance for run in done]}

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """Of each reported run that did not diverge: `right` (n_test,), shares of epochs, and the `label` beside it."""
        lr, _ = self.chosen()
        runs = [run for key in self.reported(lr) if (run := self.trained(key)) and run.right] if lr else []
        return [{"right": np.array(run.right), "label": self.images.y[self.draw.test]} for run in runs]

    def _choice(self) -> dict[str, Any]:
        """What chose the learning rate: of two rules that agree on it, only one may have seen the test images."""
        if self.rule == "single":
            return {"rule": self.rule}
        share = self.column.holdout if self.selects_on_holdout else None
        return {"rule": self.rule, "rates": list(self.column.lr), "holdout": share}

    def divergences(self) -> list[Divergence]:
        """Every run so far that diverged, those of other learning rates included."""
        keys = [RunKey(lr, s, part) for lr in self.column.lr for s in range(self.column.seeds) for part in (FIT, ALL)]
        return [
            Divergence(lr=run.lr, lr_share=run.lr_share, seed=key.seed, part=key.part, why=run.result.diverged)
            for key in keys
            if (run := self.trained(key)) and run.result.diverged is not None
        ]

    def lacks(self) -> MissingCell | None:
        """What it needs to be finished, or why its runs, all done, give no record. Raises StoreError for a damaged
        file."""
        lr, missing = self.chosen()
        runs = [] if lr is None else [self.trained(key) for key in self.reported(lr)]
        if missing or None in runs:
            return MissingCell(column=self.name, depth=self.depth, needs="run `ntk train-cnn`")
        if any(run and run.result.accuracy is not None for run in runs):
            return None
        return MissingCell(column=self.name, depth=self.depth, needs=self._why_none(lr), failed=True)

    def _why_none(self, lr: float | None) -> str:
        first = self.divergences()[0]
        if first.lr is None:
            return first.why
        rates = "every run at the chosen learning rate" if lr else "at every learning rate a run"
        return f"{rates} diverged: lower lr (now {list(self.column.lr)}, unit {self.column.lr_unit})"

    def trouble(self) -> str | None:
        """Why a cell whose runs are all done has no record, or None."""
        lacking = self.lacks()
        return lacking.needs if lacking and lacking.failed else None
