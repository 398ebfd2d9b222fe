"""Flipped bytes of every kind of file: each is found, or changes no value read; only what it hit is made again."""

import contextlib
import random
from collections import Counter
from pathlib import Path

import pytest

from exact_ntk.networks.training import TrainingRun
from exact_ntk.regression import stage
from exact_ntk.regression.stage import solve_cells
from exact_ntk.report.collect import collect
from tests.cli.test_cli import ntk
from tests.faults.machine import SETTINGS, contents, finished
from tests.gram.filling import blocks, same
from tests.made_up import table_of

MORE_RIDGE, MORE_SEEDS = "columns.1.ridge=0.5", "columns.2.seeds=3"
KINDS = {
    "tile": "gram-*/*-L*/c/*/*",
    "array": "gram-*/*-L*/zarr.json",
    "store": "gram-*/zarr.json",
    "image index": "gram-*/image_index/**/*",
    "predictions and coefficients": "solve/*.npz",
    "draw": "solve/*.json",
    "training run": "cnn/*.json",
    "panel": "solve/*.panels/*",
    "checkpoint": "cnn/*.pt",
    "digest": "*/*.sha256",
}


@pytest.fixture
def everything(done: Path, monkeypatch) -> Path:
    """The finished table, with the panels of a draw and the checkpoint of a run of variants of it that were killed."""
    monkeypatch.chdir(done)
    for name, value in SETTINGS.items():
        monkeypatch.setattr(name, value)
    run = done / "runs" / "tiny"

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(stage, "multiply", killed)
        table = table_of("tiny.yaml", run, MORE_RIDGE)
        solve_cells(table.kernel_cells, table.device)
    cell = table_of("tiny.yaml", run, MORE_SEEDS).network_cells[0]
    (key,) = cell.wanted()
    begun = TrainingRun(cell.setting(0.1, key.seed), cell.data(key.part, table.device), cell.fields(key))
    begun.save(cell.path(key).with_suffix(".pt"))
    assert ntk(done, "status", "tiny.yaml", "--verify").returncode == 0
    return done


def values(folder: Path) -> tuple:
    """All that the table reads."""
    table = table_of("tiny.yaml", folder / "runs" / "tiny")
    collected = collect(table)
    arrays = {
        f"{k}/{i}/{name}": a
        for k, draws in collected.arrays.items()
        for i, d in enumerate(draws)
        for name, a in d.items()
    }
    return blocks(table), arrays, collected.results


@pytest.mark.parametrize("flips", [40, pytest.param(1000, marks=pytest.mark.faults)])
def test_every_flipped_byte_is_found_or_changes_nothing(flips: int, everything: Path):
    chance, run, expected = random.Random(flips), everything / "runs" / "tiny", values(everything)
    found, harmless = Counter(), Counter()
    for number in range(flips):
        kind = list(KINDS)[number % len(KINDS)]
        victim = chance.choice(sorted(p for p in run.glob(KINDS[kind]) if p.is_file()))
        whole = victim.read_bytes()
        spoiled = bytearray(whole)
        at, bit = chance.randrange(len(whole)), chance.randrange(8)
        spoiled[at] ^= 1 << bit
        victim.write_bytes(spoiled)
        status = ntk(everything, "status", "tiny.yaml", "--verify")
        assert status.returncode in (0, 1, 3), status
        if status.returncode:
            assert "Traceback" not in status.stderr
            found[kind] += 1
        else:
            now = values(everything)
            assert same(now[0], expected[0]), (victim, at, bit)
            assert same(now[1], expected[1]), (victim, at, bit)
            assert now[2] == expected[2], (victim, at, bit)
            harmless[kind] += 1
        victim.write_bytes(whole)
    for kind in KINDS:
        print(f"{kind}: {found[kind]} flips found, {harmless[kind]} changed no value")
    assert sum(found.values()) + sum(harmless.values()) == flips
    assert not {k for k in harmless if k not in ("array", "store", "image index", "digest", "panel")}


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.faults)])
@pytest.mark.parametrize(
    "kind", ["tile", "predictions and coefficients", "draw", "training run", "panel", "checkpoint"]
)
def test_only_what_a_flip_hit_is_made_again(kind: str, times: int, everything: Path):
    chance, run, expected = random.Random(times), everything / "runs" / "tiny", contents(everything)
    repair = {"tile": ("compute-gram", "tiny.yaml", "--repair"), "panel": ("solve", "tiny.yaml", "--set", MORE_RIDGE)}
    repair["checkpoint"] = ("train-cnn", "tiny.yaml", "--set", MORE_SEEDS)
    for _ in range(times):
        left = sorted(run.glob(KINDS[kind]))
        if not left:
            break  # panels and checkpoints go with what they were for
        victim = chance.choice([p for p in left if p.suffix != ".damaged"])
        spoiled = bytearray(victim.read_bytes())
        spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
        victim.write_bytes(spoiled)
        before = finished(everything)
        mended = ntk(everything, *repair.get(kind, ("run", "tiny.yaml")))
        assert mended.returncode == 0, mended.stderr
        assert "damaged" in mended.stderr
        after = finished(everything)
        hit = victim.with_suffix(".json") if kind == "predictions and coefficients" else victim
        remade = {p for p, made in before.items() if after.get(p) != made and p.suffix != ".panel"}
        assert remade == ({hit} if kind not in ("panel", "checkpoint") else set())
        assert contents(everything).items() >= expected.items()
