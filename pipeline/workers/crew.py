"""Handing out tasks to workers that may die, join and leave: each has one at a time, and a lost one is given again."""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from exact_ntk.errors import NtkError
from exact_ntk.workers.worker import Worker

SECONDS_BETWEEN_LOOKS = 0.5
# A task at which so many workers have died is what kills them; so is their start, at so many for each that there is to
# be, with nothing done in between: machines of a cluster may go all at once.
MOST_DEATHS = 3
START = "its start"

log = logging.getLogger("ntk")


class Task(Protocol):
    """Something small that travels to a worker, which does it with images and kernels of its own."""

    @property
    def name(self) -> str:
        """What the user knows it by."""
        ...

    def do(self, worker: Worker, tell: Callable[[int], None]) -> Any:
        """The result, small too; tell: units of progress, as they are done."""
        ...


class Work(Protocol):
    """What a crew is to do, as tasks that come to be known while others are at work."""

    def next(self) -> Task | None:
        """A task for an idle worker, or None while all that is left is at work here or elsewhere."""
        ...

    def left(self) -> bool:
        """Whether there is anything that is not done."""
        ...

    def done(self, task: Any, result: Any) -> None: ...

    def told(self, units: int) -> None: ...


@dataclass(frozen=True)
class Event:
    """What has become of a worker. value: of its task's result, the units told, a Failure, or why it died."""

    worker: int
    kind: Literal["done", "told", "failed", "died"]
    value: Any


@dataclass(frozen=True)
class Failure:
    """An error on its way from a worker: what it is, in words, and the exit status that it asks for."""

    kind: str
    text: str
    exit_status: int

    @classmethod
    def of(cls, error: BaseException, where: str) -> "Failure":
        if isinstance(error, NtkError):
            return cls("ntk", str(error), error.exit_status)
        if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
            return cls(type(error).__name__, str(error), 1)
        import traceback

        return cls("other", f"on {where}:\n" + "".join(traceback.format_exception(error)), 1)

    def error(self) -> Exception:
        if self.kind == "OutOfMemoryError":
            return torch.OutOfMemoryError(self.text)
        if self.kind == "MemoryError":
            return MemoryError(self.text)
        if self.kind == "other":
            return RuntimeError(self.text)
        error = NtkError(self.text)
        error.exit_status = self.exit_status
        return error


class Crew(ABC):
    """Workers, started when there is something to do, until `close`."""

    @abstractmethod
    def __len__(self) -> int:
        """How many workers there are or are to be."""

    @abstractmethod
    def recruit(self) -> None:
        """Start workers for devices that have none."""

    @abstractmethod
    def idle(self) -> list[int]:
        """Workers that are ready for a task."""

    @abstractmethod
    def give(self, worker: int, task: Task) -> None:
        """Have an idle worker begin a task."""

    @abstractmethod
    def wait(self, seconds: float) -> Sequence[Event]:
        """What happens next, or nothing within so many seconds."""

    @abstractmethod
    def close(self) -> None:
        """Every worker ends, whatever it is at: what is finished is on disk."""

    def ask(self, task: Task) -> Any:
        """The result of one task."""
        answer = _Question(task)
        self.work(answer)
        return answer.result

    def work(self, work: Work) -> None:
        """Do all of it. Raises the first error of a task, and NtkError for one at which workers die."""
        at_work: dict[int, Task] = {}
        again: list[Task] = []
        deaths: Counter[str] = Counter()
        while work.left():
            self.recruit()
            for worker in self.idle():
                if task := again.pop() if again else work.next():
                    at_work[worker] = task
                    self.give(worker, task)
            for event in self.wait(SECONDS_BETWEEN_LOOKS):
                if event.kind == "told":
                    work.told(event.value)
                elif event.kind == "failed":
                    raise event.value.error()
                elif event.kind == "done":
                    deaths[START] = 0
                    work.done(at_work.pop(event.worker), event.value)
                else:
                    lost = at_work.pop(event.worker, None)
                    name = lost.name if lost else START
                    deaths[name] += 1
                    if deaths[name] >= MOST_DEATHS * (1 if lost else len(self)):
                        raise NtkError(f"{name}: {deaths[name]} workers died at it, the last one: {event.value}")
                    log.warning(
                        f"a worker died at {name} ({event.value}): {'given to another' if lost else 'starting another'}"
                    )
                    again += [lost] if lost else []


class _Question:
    """One task as Work."""

    def __init__(self, task: Task):
        self.task, self.result = task, None
        self._given = self._answered = False

    def next(self) -> Task | None:
        given, self._given = self._given, True
        return None if given else self.task

    def left(self) -> bool:
        return not self._answered

    def done(self, task: Task, result: Any) -> None:
        self.result, self._answered = result, True

    def told(self, units: int) -> None:
        pass
