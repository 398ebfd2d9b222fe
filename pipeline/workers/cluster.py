"""Workers on a Ray cluster: an actor a GPU, or a share of a machine's cores. Nothing but tasks and counts travels.

Every actor loads images and kernels itself and writes tiles and records itself, in a folder that all machines see.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exact_ntk.config import Config
from exact_ntk.errors import ConfigError, NtkError
from exact_ntk.workers.crew import Crew, Event, Failure, Task
from exact_ntk.workers.worker import Worker

SECONDS_BETWEEN_CENSUSES = 5.0
SECONDS_WITHOUT_WORKERS = 60.0
# Results are counts: no actor's memory goes to Ray's object store.
Outcome = tuple[str, Any, int, list[tuple[int, str]]]

log = logging.getLogger("ntk")


class RayCrew(Crew):
    """Workers wherever the cluster has room, more as machines join, without those that have left.

    address: as `ray.init` takes it, or "auto".  cores: of a CPU worker.  device: auto, cpu or cuda.
    Raises ConfigError where Ray is not installed or none answers.
    """

    def __init__(self, config: Config, folder: Path, address: str, cores: int, device: str):
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {device}: on a cluster auto, cpu or cuda; an actor takes one GPU, or cores")
        self.ray = _connect(address)
        gpus = self.ray.cluster_resources().get("GPU", 0)
        self.kind = device if device != "auto" else "cuda" if gpus else "cpu"
        if self.kind == "cuda" and not gpus:
            raise ConfigError("--device cuda: the cluster has no GPU; `ray status` shows what it has")
        self.config, self.folder, self.cores = config, folder.absolute(), cores
        self._token = folder / f".cluster-{uuid.uuid4().hex}"
        self._actors: dict[int, Any] = {}
        self.places: dict[int, tuple[str, int]] = {}  # host and process of each worker that is ready
        self._pending: dict[Any, int] = {}  # what an actor is at -> its number
        self._idle: set[int] = set()
        self._started = 0
        self._counted = -SECONDS_BETWEEN_CENSUSES
        self._since = time.monotonic()
        self._shared = False

    def __len__(self) -> int:
        """As many as fit on the cluster now, one at least."""
        have = self.ray.cluster_resources()
        return max(1, int(have.get("GPU", 0)) if self.kind == "cuda" else int(have.get("CPU", 0)) // self.cores)

    def recruit(self) -> None:
        now = time.monotonic()
        if not self._actors and now - self._since > SECONDS_WITHOUT_WORKERS:
            log.warning("no worker is there: waiting for machines to join the cluster (`ray status` shows them)")
            self._since = now
        if now - self._counted < SECONDS_BETWEEN_CENSUSES:
            return
        self._counted = now
        if not self._token.exists():
            self._token.parent.mkdir(parents=True, exist_ok=True)
            self._token.write_text(self._token.name)
        share = {"num_gpus": 1} if self.kind == "cuda" else {"num_cpus": self.cores}
        make = self.ray.remote(**share)(_Actor)
        for _ in range(len(self) - len(self._actors)):
            number, self._started = self._started, self._started + 1
            self._actors[number] = actor = make.remote(self.config, self.folder, Path.cwd(), self.kind, self.cores)
            self._pending[actor.begin.remote(self._token.absolute())] = number

    def idle(self) -> list[int]:
        return sorted(self._idle)

    def give(self, worker: int, task: Task) -> None:
        self._idle.discard(worker)
        self._pending[self._actors[worker].do.remote(task)] = worker

    def wait(self, seconds: float) -> Sequence[Event]:
        if not self._pending:
            time.sleep(seconds)
            return []
        ready, _ = self.ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        return [event for reference in ready for event in self._events(reference)]

    def _events(self, reference: Any) -> Sequence[Event]:
        number = self._pending.pop(reference)
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            where = "process {1} on {0}: ".format(*self.places[number]) if number in self.places else ""
            self._dismiss(number)
            return [Event(number, "died", f"{where}{type(error).__name__}")]
        kind, value, told, said = outcome
        for level, text in said:
            log.log(level, text)
        if kind == "elsewhere":
            self._dismiss(number)
            if not self._shared:
                raise NtkError(
                    f"{value} does not see {self.folder}: a cluster needs --runs on a file system that all its "
                    "machines share, under one path"
                )
            log.warning(f"{value} does not see {self.folder}: left out")
            return []
        self._shared = True
        if kind == "failed":
            return [Event(number, "failed", value)]
        self._idle.add(number)
        if kind == "ready":
            self.places[number] = value
        return [Event(number, "told", told)] + [Event(number, "done", value)] * (kind == "done")

    def _dismiss(self, number: int) -> None:
        actor = self._actors.pop(number)
        self._idle.discard(number)
        self.places.pop(number, None)
        self.ray.kill(actor)

    def close(self) -> None:
        for number in list(self._actors):
            self._dismiss(number)
        self._pending.clear()
        self._counted = -SECONDS_BETWEEN_CENSUSES
        self._token.unlink(missing_ok=True)


def _connect(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--cluster needs Ray: pip install 'exact-ntk[cluster]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"--cluster {address}: no Ray cluster answers ({line}): start one with `ray start --head`, and on "
                "every other machine `ray start --address=...`; one that asks for a token answers where "
                "RAY_AUTH_MODE=token is set and ~/.ray/auth_token is that of its head"
            ) from error
    return ray


class _Said(logging.Handler):
    """What the pipeline has to say, on its way to the process that the user started."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines


class _Actor:
    """A worker as Ray runs it."""

    def __init__(self, config: Config, folder: Path, start: Path, kind: str, cores: int):
        self.config, self.folder, self.start = config, folder, start
        self.device, self.cores = torch.device(kind), cores
        self.said = _Said()
        logger = logging.getLogger("ntk")
        logger.setLevel(logging.INFO)
        logger.addHandler(self.said)

    def begin(self, token: Path) -> Outcome:
        """Load what it computes with, once it is sure to see the user's folder."""
        try:
            seen = token.read_text() == token.name
        except OSError:
            seen = False
        if not seen:
            return "elsewhere", socket.gethostname(), 0, []
        try:
            os.chdir(self.start)  # what a config names by a relative path
            self.worker = Worker(self.config, self.folder, self.device, self.cores)
        except BaseException as error:
            return "failed", Failure.of(error, socket.gethostname()), 0, self.said.take()
        return "ready", (socket.gethostname(), os.getpid()), 0, self.said.take()

    def do(self, task: Task) -> Outcome:
        told = 0

        def tell(units: int) -> None:
            nonlocal told
            told += units

        try:
            return "done", task.do(self.worker, tell), told, self.said.take()
        except BaseException as error:
            return "failed", Failure.of(error, socket.gethostname()), told, self.said.take()
