"""kill -9 at random moments of every stage: the same bits in the end, and nothing finished is repeated."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from exact_ntk.files import temporary_beside
from tests.faults.conftest import Whole
from tests.faults.machine import STAGES, Machine, contents, finished, partials, repeated

KILLS_A_TABLE = 5
MOMENTS = ("start", *STAGES.values())


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.faults)])
def test_killed_at_any_moment(kills: int, machine: Machine, whole: Whole, folder: Path):
    """A random time after each stage has begun, the stages by turns; every fifth command is left to its end."""
    expected, chance = contents(whole.folder), random.Random(kills)
    stages, tables = Counter(), 0
    while stages.total() < kills:
        before = {}
        for target in chance.sample(MOMENTS, KILLS_A_TABLE):
            run = machine.start(folder, "run", "tiny.yaml")
            run.until_stage(target)
            killed = run.kill_after(chance.uniform(0, 0.2 * whole.seconds))
            stages[run.stage or target] += killed
            after = finished(folder)
            assert repeated(before, after) == []
            before = after
        run = machine.run(folder, "run", "tiny.yaml")
        assert run.process.exitcode == 0, run.said
        assert repeated(before, finished(folder)) == []
        assert contents(folder) == expected
        assert partials(folder) == []
        tables += 1
        shutil.rmtree(folder / "runs")
        shutil.rmtree(folder / "results")
    print(
        f"{stages.total()} kills in {tables} tables, by stage {dict(stages)}: all bits equal, nothing finished repeated"
    )
    assert kills < 50 or set(stages) >= set(STAGES.values())


def test_what_a_kill_leaves_of_any_file_is_cleared_away(machine: Machine, done: Path):
    """Of a finished table every file as it is in the middle of its write, and those that a finished one has no more."""
    expected, run = contents(done), done / "runs" / "tiny"
    files = [p for part in ("runs", "results") for p in (done / part).rglob("*") if p.is_file() and p.stat().st_size]
    stores, arrays = sorted(run.glob("gram-*-10")), sorted(run.glob("gram-*-10/*-L*"))
    passing = [p.with_suffix(".pt") for p in run.glob("cnn/*-lr0.25-*.json")]
    for record in run.glob("solve/*.json"):
        passing += [record.with_suffix(".ridge"), record.with_suffix(".panels") / "00000.panel"]
    assert (len(stores), len(arrays), len(passing)) == (2, 3, 10)
    for path in (*stores[:1], *(array for array in arrays if array.parent != stores[0])):
        path.rename(temporary_beside(path))
    for path in files:
        if not any(store in path.parents for store in stores):
            path.rename(temporary_beside(path))
    for path in passing:
        for whole in (path, path.with_name(f"{path.name}.sha256")):
            whole.parent.mkdir(exist_ok=True)
            temporary_beside(whole).touch()
    assert len(partials(done)) > 40
    again = machine.run(done, "run", "tiny.yaml")
    assert again.process.exitcode == 0, again.said
    assert partials(done) == []
    assert contents(done) == expected
    for path in (run / "provenance").glob("*.json"):
        temporary_beside(path).touch()
    again = machine.run(done, "report", "tiny.yaml")
    assert (again.process.exitcode, partials(done)) == (0, [])
