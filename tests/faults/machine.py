"""A small table with every stage in it, and processes that compute it and that can be killed, stopped or failed.

They are forked from one that has imported everything, so that a hundred of them cost seconds.
"""

import contextlib
import ctypes
import errno
import importlib
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import yaml

from tests.conftest import digit_arrays

SETTINGS = {"exact_ntk.regression.panels.WIDTH": 8, "exact_ntk.regression.plan.FILES_FROM_SECONDS": -1.0}
SETTINGS |= {"exact_ntk.regression.plan.FILE_BYTES_PER_SECOND": float("inf")}
SETTINGS |= {"exact_ntk.networks.training.SECONDS_BETWEEN_CHECKPOINTS": 0}
# Drawing takes ten times as long as all the rest of such a table.
SETTINGS |= {f"exact_ntk.report.write.{name}": lambda found: [] for name in ("drawings", "kept_drawings")}
SETTINGS |= {"exact_ntk.gram.compute.SECONDS_TO_TELL": 0.0}
STAGES = {"_fill": "compute-gram", "_solve": "solve", "train_cnn": "train-cnn", "_report": "report"}
WRITES, CREATES, LOCKS = 1, 2, 4


def write_config(folder: Path) -> None:
    """tiny.yaml: both readouts, two draws, two training runs; panels of 8 columns, a checkpoint an epoch (SETTINGS)."""
    np.savez(folder / "digits.npz", **digit_arrays(40, 20, side=4))
    net = {"width": 4, "seeds": 2, "epochs": 6, "settle": 2, "batch_size": 10, "lr": [0.25]}
    tree = {
        "name": "tiny",
        "data": {"dataset": "npz", "path": "digits.npz"},
        "gram": {"backend": "reference", "tile": 10},
        "columns": [
            {"model": "cntk", "readout": "vanilla", "depths": [3], "train": {"n": 20, "draws": 2}},
            {"model": "cntk", "readout": "gap", "depths": [3, 4]},
            {"model": "cnn", "readout": "gap", "depths": [3], "train": {"n": 30}, **net},
        ],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))


def configure() -> None:
    """Files of every kind also from a table as small as this."""
    for name, value in SETTINGS.items():
        module, _, key = name.rpartition(".")
        assert hasattr(importlib.import_module(module), key), name
        setattr(importlib.import_module(module), key, value)


@dataclass(frozen=True)
class Fault:
    """what: WRITES, CREATES or LOCKS below the folder that fail with `number` once `after` bytes or files are through.

    seconds_back: the clock is set back so far after `clock_after` seconds.  host: locks are this host's alone.
    """

    what: int = 0
    number: int = 0
    after: int = 0
    seconds_back: int = 0
    clock_after: float = 0.0
    host: str | None = None
    environment: tuple[tuple[str, str], ...] = ()


def _command(folder: Path, words: tuple[str, ...], log: Path, fault: Fault) -> None:
    """A command as typed in `folder`, in a process of its own; what it says goes to `log`."""
    os.chdir(folder)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    configure()
    _note_stages(log.with_suffix(".stage"))
    _note_tiles(log.with_suffix(".tiles"))
    _fail(fault, folder)
    from exact_ntk.cli import main

    sys.argv = ["ntk", *words]
    main.main()


def _note_tiles(path: Path) -> None:
    """A line for each array of a tile that is computed."""
    from exact_ntk.gram.store import GramStore

    real = GramStore.write

    def noted(self, tile, values):
        with path.open("a") as file:
            file.writelines(f"{self.path.name} {array} {tile}\n" for array in values)
        real(self, tile, values)

    GramStore.write = noted


def _note_stages(path: Path) -> None:
    from exact_ntk.cli.stages import Session

    for method, stage in STAGES.items():
        real = getattr(Session, method)

        def noted(self, *arguments, real=real, stage=stage):
            path.write_text(stage)
            return real(self, *arguments)

        setattr(Session, method, noted)


def _fail(fault: Fault, folder: Path) -> None:
    from exact_ntk import locks

    if fault.host:
        platform.node = lambda: fault.host
        real = locks._lock
        locks._lock = lambda path, kind: real(path.with_name(f"{path.name}@{fault.host}"), kind)
    os.environ.update(fault.environment)
    machine = ctypes.CDLL(None)
    if fault.what:
        machine.ntk_fail(str(folder).encode(), fault.what, fault.number, ctypes.c_long(fault.after))
    if fault.seconds_back:
        import threading

        threading.Timer(fault.clock_after, machine.ntk_set_clock_back, [ctypes.c_long(fault.seconds_back)]).start()


class Machine:
    """Where the processes are forked."""

    def __init__(self, folder: Path):
        self.folder = folder
        library = folder / "failing_machine.so"
        source = Path(__file__).with_name("failing_machine.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.faults.preload"])
        with _environment(LD_PRELOAD=str(library), OMP_NUM_THREADS="1"):
            from multiprocessing import forkserver

            forkserver.ensure_running()
        self.count = 0

    def start(self, folder: Path, *words: str, fault: Fault | None = None) -> "Run":
        """Begin a command in a folder with a config."""
        self.count += 1
        log = self.folder / f"{self.count}.log"
        process = self.context.Process(target=_command, args=(folder, words, log, fault or Fault()))
        process.start()
        return Run(process, log)

    def run(self, folder: Path, *words: str, fault: Fault | None = None) -> "Run":
        """A command, to its end."""
        run = self.start(folder, *words, fault=fault)
        run.wait()
        return run


@contextlib.contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Run:
    """A process at work or ended, and what it has said."""

    process: ForkServerProcess
    log: Path

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status; minus the signal's number where one ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still at work after {seconds} s: {self.said}"
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def stage(self) -> str:
        path = self.log.with_suffix(".stage")
        return path.read_text() if path.exists() else "start"

    @property
    def tiles(self) -> list[str]:
        """Each array of a tile that it has computed."""
        path = self.log.with_suffix(".tiles")
        return path.read_text().splitlines() if path.exists() else []

    def until_stage(self, stage: str) -> None:
        """Wait until it is at a stage, or has ended without."""
        while self.stage != stage and self.process.exitcode is None:
            time.sleep(0.001)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill_after(self, seconds: float) -> bool:
        """kill -9 after a while; False where it had ended by then."""
        self.process.join(seconds)
        if self.process.exitcode is not None:
            return False
        self.signal(signal.SIGKILL)
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def until(self, folder: Path, tiles: int) -> None:
        """Wait until so many tile files are finished."""
        deadline = time.monotonic() + 60
        while len(tile_files(folder)) < tiles and self.process.exitcode is None:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.002)

    def assert_one_line(self, number: int) -> None:
        """That it ended with status 1 and one line that says what the system said."""
        lines = self.said.splitlines()
        assert self.process.exitcode == 1, self.said
        assert "Traceback" not in self.said, self.said
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.said
        assert os.strerror(number) in lines[-1] or number == errno.EROFS, lines[-1]


def tile_files(folder: Path) -> list[Path]:
    return [p for p in (folder / "runs" / "tiny").glob("gram-*/*-L*/c/*/*") if p.name.isdigit()]


def partials(folder: Path) -> list[Path]:
    """Temporary files and folders."""
    return [p for part in ("runs", "results") for p in (folder / part).rglob("*.partial")]


def finished(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every array of a tile, panel, solved draw and training run that is finished, and when it was written."""
    run = folder / "runs" / "tiny"
    records = [p for p in (*run.glob("solve/*.json"), *run.glob("cnn/*.json")) if not p.name.startswith(".")]
    found = {}
    panels = []
    for folder_of_panels in run.glob("solve/*.panels"):
        with contextlib.suppress(FileNotFoundError):  # its draw has been solved since
            panels += folder_of_panels.glob("*.panel")
    for path in (*tile_files(folder), *panels, *records):
        if not path.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # a panel whose draw has been solved since
                status = path.stat()
                found[path] = status.st_ino, status.st_mtime_ns
    return found


def repeated(before: dict[Path, tuple[int, int]], after: dict[Path, tuple[int, int]]) -> list[Path]:
    """What was finished and has been made again, or has gone although its draw is not solved."""

    def is_gone_rightly(path: Path) -> bool:
        return path.suffix == ".panel" and path.parent.with_suffix(".json") in after

    return [p for p, made in before.items() if after.get(p) != made and not (p not in after and is_gone_rightly(p))]


def contents(folder: Path) -> dict[str, bytes]:
    """Every value of a finished table: tiles, predictions, and the records without seconds."""
    run = folder / "runs" / "tiny"
    files = [*tile_files(folder), *run.glob("solve/*.npz"), folder / "results" / "tiny" / "results.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
