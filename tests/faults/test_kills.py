"""kill -9 at random moments of every stage: the same bits in the end, and nothing finished is repeated."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.machine import Machine, contents, finished, repeated


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.faults)])
def test_killed_at_any_moment(kills: int, machine: Machine, whole: Whole, folder: Path, tmp_path: Path):
    expected, chance = contents(whole.folder), random.Random(kills)
    stages, tables = Counter(), 0
    while sum(stages.values()) < kills:
        before, ended = {}, False
        while not ended:
            run = machine.start(folder, "run", "tiny.yaml")
            killed = sum(stages.values()) < kills and run.kill_after(chance.uniform(0, 0.7 * whole.seconds))
            stages[run.stage] += killed
            ended = not killed
            after = finished(folder)
            assert repeated(before, after) == []
            before = after
        assert run.wait() == 0, run.said
        assert contents(folder) == expected
        # The config and the report are written without a lock: nobody knows who may still be at it.
        assert not [p for p in (folder / "runs" / "tiny").rglob("*.partial") if p.parent.name != "configs"]
        tables += 1
        shutil.rmtree(folder / "runs")
        shutil.rmtree(folder / "results")
    print(f"{kills} kills in {tables} tables, by stage {dict(stages)}: all bits equal, nothing finished repeated")
