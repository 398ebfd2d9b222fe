"""kill -9 at random moments of every stage: the same bits in the end, and nothing finished is repeated."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.machine import STAGES, Machine, contents, finished, repeated

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
        # The config and the report are written without a lock: nobody knows who may still be at it.
        assert not [p for p in (folder / "runs" / "tiny").rglob("*.partial") if p.parent.name != "configs"]
        tables += 1
        shutil.rmtree(folder / "runs")
        shutil.rmtree(folder / "results")
    print(
        f"{stages.total()} kills in {tables} tables, by stage {dict(stages)}: all bits equal, nothing finished repeated"
    )
    assert kills < 50 or set(stages) >= set(STAGES.values())
