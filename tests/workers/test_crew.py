"""Handing out tasks: each done once, those of the dead given again, until they are what kills."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from exact_ntk.errors import Incomplete, NtkError
from exact_ntk.workers.crew import MOST_DEATHS, Crew, Event, Failure, Task


@dataclass(frozen=True)
class Square:
    n: int

    @property
    def name(self) -> str:
        return f"the square of {self.n}"

    def do(self, worker, tell) -> int:
        tell(1)
        return self.n**2


class Squares:
    def __init__(self, *numbers: int):
        self.open, self.at_work, self.results, self.units = deque(numbers), 0, [], 0

    def next(self) -> Task | None:
        if not self.open:
            return None
        self.at_work += 1
        return Square(self.open.popleft())

    def left(self) -> bool:
        return bool(self.open or self.at_work)

    def done(self, task: Square, result: int) -> None:
        self.at_work -= 1
        self.results.append((task.n, result))

    def told(self, units: int) -> None:
        self.units += units


class Imagined(Crew):
    """Workers that do their tasks when waited for.

    die: of each worker number, at which numbers it dies.  stillborn: worker numbers that die at their start.
    """

    def __init__(self, workers: int, die: dict[int, set[int]] | None = None, stillborn: Sequence[int] = ()):
        self.workers, self.die, self.stillborn, self.events = workers, die or {}, stillborn, deque()
        self.members: list[int] = []
        self.busy: dict[int, Task] = {}
        self.hired = 0

    def __len__(self) -> int:
        return self.workers

    def recruit(self) -> None:
        while len(self.members) < self.workers:
            self.members.append(self.hired)
            self.hired += 1

    def idle(self) -> list[int]:
        return [m for m in self.members if m not in self.busy and m not in self.stillborn]

    def give(self, worker: int, task: Task) -> None:
        assert worker not in self.busy
        self.busy[worker] = task

    def wait(self, seconds: float) -> Sequence[Event]:
        if unborn := [m for m in self.members if m in self.stillborn]:
            self.members.remove(unborn[0])
            return [Event(unborn[0], "died", "Killed")]
        assert self.busy, "waiting for nothing"
        worker, task = next(iter(self.busy.items()))
        del self.busy[worker]
        if task.n in self.die.get(worker, ()) or task.n in self.die.get(-1, ()):
            self.members.remove(worker)
            return [Event(worker, "died", "Killed")]
        events: list[Event] = []
        try:
            result = task.do(None, lambda units: events.append(Event(worker, "told", units)))
        except Exception as error:
            return [Event(worker, "failed", Failure.of(error, "here"))]
        return [*events, Event(worker, "done", result)]

    def close(self) -> None:
        self.members.clear()


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_task_is_done_once(workers: int):
    work = Squares(*range(5))
    Imagined(workers).work(work)
    assert sorted(work.results) == [(n, n**2) for n in range(5)]
    assert work.units == 5
    assert Imagined(workers).ask(Square(12)) == 144


def test_what_the_dead_were_at_is_given_to_others(caplog):
    work, crew = Squares(*range(6)), Imagined(2, die={0: {0}, 1: {1}})
    crew.work(work)
    assert sorted(work.results) == [(n, n**2) for n in range(6)]
    assert crew.hired == 4
    assert "a worker died at the square of 1 (Killed): given to another" in caplog.text


def test_a_task_at_which_workers_die_is_named():
    crew = Imagined(2, die={-1: {3}})
    with pytest.raises(NtkError, match=f"the square of 3: {MOST_DEATHS} workers died at it, the last one: Killed"):
        crew.work(Squares(*range(6)))


def test_machines_that_go_while_workers_start_there_end_nothing(caplog):
    """Three at once; one by one between tasks, as often as they like."""
    work, crew = Squares(*range(9)), Imagined(2, stillborn=(*range(1, 6), *range(7, 12)), die={0: {4}})
    crew.work(work)
    assert sorted(work.results) == [(n, n**2) for n in range(9)]
    assert caplog.text.count("a worker died at its start (Killed): starting another") == 10


def test_a_start_at_which_all_die_is_said():
    with pytest.raises(NtkError, match=f"its start: {2 * MOST_DEATHS} workers died at it, the last one: Killed"):
        Imagined(2, stillborn=range(99)).work(Squares(1))


class Root(Square):
    def do(self, worker, tell):
        raise {1: Incomplete("later"), 2: torch.OutOfMemoryError("GPU"), 3: ZeroDivisionError("ours")}[self.n]


@pytest.mark.parametrize(("n", "kind", "text"), [(1, NtkError, "^later$"), (2, torch.OutOfMemoryError, "GPU")])
def test_an_error_arrives_as_what_it_is(n: int, kind: type[Exception], text: str):
    with pytest.raises(kind, match=text) as caught:
        Imagined(1).ask(Root(n))
    assert n != 1 or caught.value.exit_status == Incomplete.exit_status


def test_a_mistake_of_ours_arrives_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"on here:\n(.|\n)*in do\n(.|\n)*ZeroDivisionError: ours"):
        Imagined(1).ask(Root(3))
