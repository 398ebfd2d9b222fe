"""A process a device on this machine, each at the other end of a pipe."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from exact_ntk.config import Config
from exact_ntk.workers.crew import Crew, Event, Failure, Task
from exact_ntk.workers.worker import Worker

SECONDS_TO_END = 5.0

log = logging.getLogger("ntk")


class ProcessCrew(Crew):
    """A worker for each of the devices; one that dies is started anew."""

    def __init__(self, config: Config, folder: Path, devices: Sequence[torch.device]):
        self.config, self.folder, self.devices = config, folder.absolute(), list(devices)
        self._members: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._idle: set[int] = set()

    def __len__(self) -> int:
        return len(self.devices)

    def recruit(self) -> None:
        context = get_context("spawn")
        threads = max(1, torch.get_num_threads() // len(self))
        for number, device in enumerate(self.devices):
            if number not in self._members:
                ours, theirs = context.Pipe()
                words = (theirs, self.config, self.folder, str(device), threads)
                process = context.Process(target=_serve, args=words, daemon=True)
                process.start()
                theirs.close()
                self._members[number] = process, ours

    def idle(self) -> list[int]:
        return sorted(self._idle)

    def give(self, worker: int, task: Task) -> None:
        self._idle.discard(worker)
        with contextlib.suppress(OSError):  # it has died, which `wait` will say
            self._members[worker][1].send(task)

    def wait(self, seconds: float) -> Sequence[Event]:
        events: list[Event] = []
        pipes = {number: pipe for number, (_, pipe) in self._members.items()}
        speaking = connection.wait(list(pipes.values()), seconds)
        for number, pipe in pipes.items():
            if pipe not in speaking:
                continue
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                events.append(Event(number, "died", self._bury(number)))
                continue
            if kind == "said":
                level, text = value
                log.log(level, text)
                continue
            if kind in ("ready", "done"):
                self._idle.add(number)
            if kind != "ready":
                events.append(Event(number, kind, value))
        return events

    def _bury(self, number: int) -> str:
        """How it ended."""
        process, pipe = self._members.pop(number)
        self._idle.discard(number)
        pipe.close()
        process.join()
        status = process.exitcode or 0
        return f"on {self.devices[number]}, " + (signal.strsignal(-status) or "" if status < 0 else f"status {status}")

    def close(self) -> None:
        for process, _ in self._members.values():
            process.terminate()
        for process, pipe in self._members.values():
            process.join(SECONDS_TO_END)
            if process.exitcode is None:
                process.kill()
                process.join()
            pipe.close()
        self._members.clear()
        self._idle.clear()


class _Pipe(logging.Handler):
    """What the pipeline has to say, said by the process that the user started."""

    def __init__(self, pipe: Connection):
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self.pipe.send(("said", (record.levelno, record.getMessage())))


def _serve(pipe: Connection, config: Config, folder: Path, device: str, threads: int) -> None:
    """Do what comes through the pipe, for as long as the other end lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the user started, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and would outlive this one where it is ended
    logger = logging.getLogger("ntk")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Pipe(pipe))

    def tell(units: int) -> None:
        pipe.send(("told", units))

    try:
        worker = Worker(config, folder, torch.device(device), threads)
        pipe.send(("ready", None))
        while True:
            task: Any = pipe.recv()
            pipe.send(("done", task.do(worker, tell)))
    except EOFError:
        return
    except BaseException as error:
        pipe.send(("failed", Failure.of(error, device)))


def _end_with_parent() -> None:
    """However the parent ends, kill -9 included."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
