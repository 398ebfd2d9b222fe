"""One training run of a finite network: SGD to the stop rule, with a checkpoint from which it goes on bit for bit."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exact_ntk.draws import permutation
from exact_ntk.errors import StoreError
from exact_ntk.kept import is_whole, keep, set_aside
from exact_ntk.networks.cnn import CNN
from exact_ntk.networks.precision import Autocast, arithmetic
from exact_ntk.networks.setting import Setting

EVALUATE_AT_ONCE = 256
SECONDS_BETWEEN_CHECKPOINTS = 20.0
STEPS_BETWEEN_CHECKS = 16
# A mean loss this many times the initial one never comes back.
DIVERGED = 100.0
# Below this running accuracy (%) the whole training set cannot be fitted yet and is not measured.
NEARLY_FITTED = 98.0


@dataclass(frozen=True)
class TrainingData:
    """Images (n, C, H, W), targets (n, classes) float32 and labels (n,) for training, images and labels for testing."""

    x: Tensor
    targets: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def make_network(setting: Setting, data: TrainingData) -> CNN:
    """The run's network at initialisation, in the host's memory."""
    c, h, w = data.x.shape[1:]
    return CNN(
        (c, h, w),
        data.targets.shape[1],
        depth=setting.depth,
        width=setting.width,
        readout=setting.readout,
        train_first=setting.train_first,
        train_last=setting.train_last,
        kappa=setting.kappa,
        seed=setting.seed,
    )


def build_network(setting: Setting, data: TrainingData) -> CNN:
    """The run's network at initialisation, on the images' device."""
    return make_network(setting, data).to(data.x.device).to(memory_format=torch.channels_last)


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/2 |f - y|^2 of each image (n,), in float32: summed over outputs, to be averaged over the batch."""
    return 0.5 * (outputs.float() - targets).square().sum(1)


@torch.no_grad()
def outputs_of(net: nn.Module, x: Tensor, autocast: Autocast) -> Tensor:
    """The network's outputs (n, classes) in float32, some images at a time."""
    with autocast():
        return torch.cat([net(part).float() for part in x.split(EVALUATE_AT_ONCE)])


def _accuracy(outputs: Tensor, y: Tensor) -> float:
    return 100 * float((outputs.argmax(1) == y).double().mean())


def _batches(n: int, size: int, seed: int, epoch: int, device: torch.device) -> tuple[Tensor, ...]:
    """The epoch's order: a function of (seed, epoch) alone, so that a resumed run draws the same batches."""
    return torch.from_numpy(permutation(n, (seed, epoch))).to(device).split(size)


class TrainingRun:
    """A run in progress: network, optimiser and history, and how they go to and come from a checkpoint."""

    def __init__(self, setting: Setting, data: TrainingData, fields: dict[str, Any]):
        self.setting, self.data, self.fields = setting, data, fields
        self.net = build_network(setting, data)
        weights = [w for w in self.net.parameters() if w.requires_grad]
        self.optimiser = torch.optim.SGD(weights, lr=setting.lr, momentum=setting.momentum)
        self.history: dict[str, list[float]] = {"loss": [], "train_accuracy": [], "test_accuracy": []}
        # (epochs, n_test) of the last `settle` epochs at most: which test images were classified right.
        self.right = torch.empty((0, len(data.x_test)), dtype=torch.bool)
        self.fitted_at: int | None = None
        self.diverged: str | None = None
        self.seconds = self.train_seconds = 0.0
        self.loss_limit = float("inf")
        self.initial_train = self.initial_test = torch.zeros((), device=data.x.device)

    @property
    def epoch(self) -> int:
        """Epochs done, a diverging one not counted."""
        return len(self.history["loss"])

    @property
    def finished(self) -> bool:
        """Diverged, `settle` epochs past 100 % training accuracy, or at the limit."""
        s = self.setting
        settled = self.fitted_at is not None and self.epoch >= self.fitted_at + s.settle
        return self.diverged is not None or settled or self.epoch >= s.epochs

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "fields": self.fields,
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "right": self.right,
            "fitted_at": self.fitted_at,
            "diverged": self.diverged,
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
        }
        keep(path, lambda file: torch.save(state, file))

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises StoreError if it is damaged or another run's, naming file and field.

        A device out of memory is no fault of the file: that error is let through.
        """
        advice = f"{path}: delete it to train this run anew"
        try:
            state = torch.load(path, map_location=self.data.x.device, weights_only=True)
            found = state["fields"]
            for key in sorted({*found, *self.fields}):
                if found.get(key) != self.fields.get(key):
                    raise StoreError(f"{advice}: it is the checkpoint of a run with another {key}")
            self.net.load_state_dict(state["net"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.history, self.fitted_at = state["history"], state["fitted_at"]
            self.right = state["right"].cpu()
            self.diverged = state["diverged"]
            self.seconds, self.train_seconds = state["seconds"], state["train_seconds"]
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, LookupError, EOFError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise StoreError(f"{advice}: the checkpoint is damaged ({type(error).__name__})") from error

    def train_epoch(self, autocast: Autocast) -> None:
        """One epoch of SGD, then its line of history."""
        data, s = self.data, self.setting
        start = time.perf_counter()
        loss_sum = torch.zeros((), device=data.x.device)
        right = torch.zeros((), device=data.x.device)
        for step, batch in enumerate(_batches(len(data.x), s.batch_size, s.seed, self.epoch, data.x.device)):
            at_start = self.initial_train[batch] if s.zero_output else 0.0
            with autocast():
                outputs = self.net(data.x[batch]) - at_start
            loss = half_squared_error(outputs, data.targets[batch])
            self.optimiser.zero_grad(set_to_none=True)
            loss.mean().backward()
            self.optimiser.step()
            loss_sum += loss.detach().sum()
            right += (outputs.detach().argmax(1) == data.y[batch]).sum()
            # Losses only add up: once over the limit, the epoch's mean ends over it.
            if step % STEPS_BETWEEN_CHECKS == 0 and not float(loss_sum) <= self.loss_limit * len(data.x):
                break
        loss_mean, running = float(loss_sum) / len(data.x), 100 * float(right) / len(data.x)
        self.train_seconds += time.perf_counter() - start
        if not loss_mean <= self.loss_limit:
            self.diverged = f"the loss passed {self.loss_limit:.3g}"
        elif bool((outputs + at_start == 0).all()) and not outputs_of(self.net, data.x, autocast).any():
            self.diverged = "every output is 0: the ReLUs of a layer have all died"
        else:
            self._record(loss_mean, running, autocast)

    def _record(self, loss: float, running: float, autocast: Autocast) -> None:
        if running >= NEARLY_FITTED or self.epoch + 1 == self.setting.epochs:
            running = _accuracy(outputs_of(self.net, self.data.x, autocast) - self.initial_train, self.data.y)
            if running == 100.0 and self.fitted_at is None:
                self.fitted_at = self.epoch + 1
        outputs = outputs_of(self.net, self.data.x_test, autocast) - self.initial_test
        right = (outputs.argmax(1) == self.data.y_test).cpu()
        self.right = torch.cat([self.right, right[None]])[-self.setting.settle :]
        test = 100 * float(right.double().mean())
        for key, value in (("loss", loss), ("train_accuracy", running), ("test_accuracy", test)):
            self.history[key].append(value)

    def begin(self, autocast: Autocast) -> None:
        """What is measured at initialisation, resumed or not."""
        fresh = build_network(self.setting, self.data)
        at_start = outputs_of(fresh, self.data.x, autocast)
        if self.setting.zero_output:
            self.initial_train = at_start
            self.initial_test = outputs_of(fresh, self.data.x_test, autocast)
            at_start = at_start - self.initial_train
        zero_function, start = (
            0.5 * float((f - self.data.targets).square().sum(1).mean()) for f in (torch.zeros_like(at_start), at_start)
        )
        self.loss_limit = DIVERGED * max(zero_function, start)

    @property
    def right_share(self) -> list[float]:
        """For each test image, the share of the epochs that `result` averages in which it was classified right."""
        return [] if self.diverged is not None else self.right.double().mean(0).tolist()

    def result(self) -> dict[str, Any]:
        """Accuracy (%) over the last `settle` epochs, and what led there; accuracy is None for a diverged run.

        diverged: why, or None. The history's loss is the mean over the epoch's batches as they were trained on, and so
        is its training accuracy below 98 % and before the last epoch; else it is measured after the epoch.
        """
        last = self.history["test_accuracy"][-self.setting.settle :]
        return {
            "seed": self.setting.seed,
            "accuracy": None if self.diverged is not None else sum(last) / len(last),
            "train_accuracy": None if self.diverged is not None else self.history["train_accuracy"][-1],
            "epochs": self.epoch,
            "fitted_at": self.fitted_at,
            "diverged": self.diverged,
            "history": self.history,
        }


def train(
    setting: Setting,
    data: TrainingData,
    fields: dict[str, Any],
    checkpoint: Path,
    on_epoch: Callable[[TrainingRun], None],
) -> TrainingRun:
    """Train to the stop rule, going on from `checkpoint` where there is one.

    fields: what names the run; a checkpoint of other fields is refused (StoreError), a damaged one is set aside. Calls
    `on_epoch` after each epoch. The same setting gives the same bits on the same device and thread count, interrupted
    or not.
    """
    run = TrainingRun(setting, data, fields)
    if checkpoint.exists() and not is_whole(checkpoint):
        set_aside(checkpoint)
    if checkpoint.exists():
        run.load(checkpoint)
    with arithmetic(setting.precision, data.x.device) as autocast:
        run.begin(autocast)
        saved = time.monotonic()
        while not run.finished:
            start = time.perf_counter()
            run.train_epoch(autocast)
            run.seconds += time.perf_counter() - start
            on_epoch(run)
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                run.save(checkpoint)
                saved = time.monotonic()
    return run
