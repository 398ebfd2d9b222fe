"""What a table still takes: the counts that the filler then meets, nothing written, and ways out that work."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from exact_ntk import forecast as forecasts
from exact_ntk.forecast import Forecast, Part, forecast
from exact_ntk.gram.compute import TileComputer
from exact_ntk.gram.fill import Filler
from exact_ntk.gram.plan import Share, shares
from exact_ntk.memory import parse_bytes
from exact_ntk.networks.stage import runs_left
from exact_ntk.regression import panels
from exact_ntk.regression.plan import eigen_seconds
from exact_ntk.regression.stage import PROGRAM_BYTES
from exact_ntk.table import Table
from tests.conftest import digit_arrays
from tests.made_up import fill, table_of

PLENTY = 10**10
BLOCK = 4096


def filler_of(table: Table) -> Filler:
    return Filler(table.shelf, table.device, table.config.gram.tile)


def forecast_of(table: Table, memory: int = PLENTY) -> Forecast:
    return forecast(table, lambda: filler_of(table), memory)


def planned(table: Table) -> dict[str, list[Share]]:
    return shares(filler_of(table).plan(table.requests()), table.requests())


def chunks(folder: Path) -> dict[Path, int]:
    """Every tile file, and what it takes on disk."""
    return {path: -(-path.stat().st_size // BLOCK) * BLOCK for path in folder.rglob("c/*/*")}


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many image pairs have been computed: to 1, for only their number matters."""
    counted: Counter[str] = Counter()

    def count(self, rows, columns, arrays):
        n, m = rows.stop - rows.start, columns.stop - columns.start
        counted["pairs"] += n * m - (m * (m - 1) // 2 if rows.start == columns.start else 0)
        return torch.ones(len(arrays), n, m, dtype=torch.float64)

    monkeypatch.setattr(TileComputer, "block", count)
    monkeypatch.setattr(TileComputer, "pairs_per_second", lambda self, arrays: 1000.0)
    return counted


def test_columns_of_which_the_same_is_true_share_a_line(tmp_path: Path):
    parts = [Part("A", "tiles", 60.0, files=3), *(Part(name, "solve", 2.0) for name in "ABCDE"), Part("B", "more")]
    found = Forecast(tuple(parts))
    assert found.lines(tmp_path)[:3] == ["A: tiles", "A, B, C and 2 other columns, each: solve", "B: more"]
    assert found.grid()[1] == [
        ["A", "0:01:00", "3", "tiles"],
        ["A, B, C and 2 other columns, each", "0:00:10", "", "solve"],
        ["B", "", "", "more"],
    ]
    assert Forecast(tuple(parts[1:5])).lines(tmp_path)[0] == "A, B, C, D, each: solve"


def test_the_bundled_table_beyond_the_papers_is_planned(tmp_path: Path, pairs: Counter[str]):
    """On 4 x 4 images in place of its own: every array a pass of its store, Myrtle networks a pass a depth."""
    np.savez(tmp_path / "digits.npz", **digit_arrays(24, 8, side=4))
    data = f"data={{dataset: npz, path: {tmp_path / 'digits.npz'}}}"
    table = table_of("cifar10-beyond", tmp_path, data, "gram.backend=reference", "gram.tile=24")
    found = forecast_of(table)
    assert found.lacks(tmp_path) == []
    # Of two tiles: 5 readouts and 2 depths, 2 kernels, plain and mirrored, standard and whitened.
    assert found.files == 2 * 7 * 2 * 2 * 2
    whole = 24 * 25 // 2 + 8 * 24
    passes = 5 * (16 + 16**2) + 16**2 * (2 + 3 + 4 / 16 + 4 / 256)
    filler, requests = filler_of(table), table.requests()
    shared = shares(filler.plan(requests), requests).values()
    assert sum(filler.entry_layers(share) for column in shared for share in column) == whole * 4 * passes


def as_run_fills(table: Table, pairs: Counter[str]) -> dict[str, tuple[int, int, int]]:
    """Fill a table column by column: the pairs, files and bytes of each."""
    found, filler, requests = {}, filler_of(table), table.requests()
    for column in dict.fromkeys(r.column for r in requests):
        before, pairs["pairs"] = chunks(table.folder), 0
        filler.fill(requests, [r for r in requests if r.column == column])
        new = {p: size for p, size in chunks(table.folder).items() if p not in before}
        found[column] = (pairs["pairs"], len(new), sum(new.values()))
    return found


def counts(table: Table) -> dict[str, tuple[int, int, int]]:
    return {
        column: (sum(s.pairs for s in mine), sum(s.files for s in mine), sum(s.bytes for s in mine))
        for column, mine in planned(table).items()
    }


@pytest.mark.parametrize(
    "override",
    ["gram.tile=20", "gram.tile=auto", "gram.store=float32", "columns.*.train.draws=3", "columns.*.flips=true"],
)
def test_the_counts_are_what_is_then_computed(config_path: Path, tmp_path: Path, override: str, pairs: Counter[str]):
    table = table_of(config_path, tmp_path / "run", override)
    expected, whole = counts(table), forecast_of(table)
    assert chunks(table.folder) == {}
    assert as_run_fills(table, pairs) == expected
    assert sum(n for n, _, _ in expected.values()) > 0
    assert (whole.files, whole.disk) == (len(chunks(table.folder)), sum(chunks(table.folder).values()))
    after = forecast_of(table)
    assert (after.files, after.disk) == (0, 0)
    assert after.seconds > 0  # the systems are still to solve


def test_spectra_are_timed_as_the_solves_make_them(config_path: Path, tmp_path: Path, monkeypatch):
    more = ["columns.*.train.draws=3"]
    table = table_of(config_path, tmp_path / "run", *more)
    fill(table)
    found = forecast_of(table)
    assert all("; decompose " in part.words for part in found.parts)
    monkeypatch.setattr(forecasts, "MOST_IMAGES", 10)
    without = forecast_of(table)
    assert not any("decompose" in part.words for part in without.parts)
    firsts = [cell for cell in table.kernel_cells if 0 in cell.missing()]
    spectra = sum(eigen_seconds(len(cell.places[0].train), table.device) for cell in firsts)
    assert found.seconds - without.seconds == pytest.approx(spectra)


def test_the_counts_are_of_what_is_missing_where_part_is_done(config_path: Path, tmp_path: Path, pairs: Counter[str]):
    table = table_of(config_path, tmp_path / "run")
    fill(table)
    for path in sorted(chunks(table.folder))[::3]:
        path.unlink()
    expected = counts(table)
    assert sum(files for _, files, _ in expected.values()) > 0
    assert as_run_fills(table, pairs) == expected


def test_a_second_config_finds_what_the_first_has_left(config_path: Path, tmp_path: Path, pairs: Counter[str]):
    fill(table_of(config_path, tmp_path / "run"))
    more = ["columns.0.train.draws=3", "columns.1.depths=[3, 4, 5]", "columns.2.train.n=50"]
    table = table_of(config_path, tmp_path / "run", *more)
    expected = counts(table)
    alone = counts(table_of(config_path, tmp_path / "elsewhere", *more))
    assert 0 < sum(files for _, files, _ in expected.values()) < sum(files for _, files, _ in alone.values())
    assert as_run_fills(table, pairs) == expected


def test_nothing_is_written_and_a_forecast_leaves_the_filler_as_it_was(config_path: Path, tmp_path: Path, pairs):
    table = table_of(config_path, tmp_path / "run")
    (tmp_path / "run").rmdir()
    before = sorted(tmp_path.rglob("*"))
    lines = forecast_of(table).lines(table.folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert [line for line in lines if "entry-layers" in line]
    assert fill(table) == 0
    assert chunks(table.folder)


def test_the_choice_of_ridges_is_part_of_what_is_left(config_path: Path, tmp_path: Path, pairs):
    plain, chosen = (forecast_of(table_of(config_path, tmp_path, *more)) for more in ((), ("columns.0.ridge=loo",)))
    (part,) = [part for part in chosen.parts if part.words.startswith("choose the ridge of 20 images")]
    assert (part.column, part.words[-13:]) == ("CNTK-V-20", "each, 4 times")
    assert chosen.seconds > plain.seconds


def test_memory_that_is_said_to_do_does(config_path: Path, tmp_path: Path, pairs):
    table = table_of(config_path, tmp_path / "run")
    short = PROGRAM_BYTES + table.images.x.nbytes
    lacks = {part.column: part.lacks for part in forecast_of(table, short).parts if part.lacks}
    assert len(lacks) == 3
    needed = max(parse_bytes(why.split("--memory ")[1], "--memory") for (why,) in lacks.values())
    assert not any(part.lacks for part in forecast_of(table, needed).parts)


def test_lu_is_said_not_to_fit_unless_there_is_a_ridge(config_path: Path, tmp_path: Path, monkeypatch, pairs):
    monkeypatch.setattr(panels, "WIDTH", 8)
    table = table_of(config_path, tmp_path / "run")
    parts = {part.column: part for part in forecast_of(table, PLENTY).parts if "solve" in part.words}
    gap, nngp = (c for c in parts if "GAP" in c)
    cell = next(cell for cell in table.kernel_cells if cell.name == gap)
    train = cell.draws[0].train
    plan = forecasts.plan_draw(cell, cell.matrix(planned(table)[gap][0].fill.store, train, train), PLENTY)
    memory = PLENTY - plan.budget + plan.working + plan.trapezoid.bytes
    assert plan.lu_bytes == plan.working + 8 * len(train) ** 2 > plan.working + plan.trapezoid.bytes
    lacks = {part.column: part.lacks for part in forecast_of(table, memory).parts if part.lacks}
    assert list(lacks) == [gap]  # the NNGP column of as many images has a ridge
    assert "ridge: 1.0e-6" in lacks[gap][0]
    enough = parse_bytes(lacks[gap][0].split("--memory ")[1], "--memory")
    assert not any(part.lacks for part in forecast_of(table, enough).parts)
    assert nngp in parts


def test_a_disk_that_is_too_small_for_float64_is_told_of_float32(config_path: Path, tmp_path: Path, monkeypatch, pairs):
    tables = {
        stored: table_of(config_path, tmp_path / stored, "gram.tile=40", f"gram.store={stored}")
        for stored in ("float64", "float32")
    }
    need = {stored: forecast_of(table).disk for stored, table in tables.items()}
    assert need["float32"] < need["float64"]
    monkeypatch.setattr(forecasts, "free_space", lambda folder: (need["float32"], 3))
    last = {stored: forecast_of(table).lines(table.folder) for stored, table in tables.items()}
    assert any("does not fit" in line and "--set gram.store=float32" in line for line in last["float64"])
    assert not any("MB on the disk" in line for line in last["float32"])
    assert "3 inodes" in last["float32"][-1]
    # A store that is begun is gone on with, so another dtype for the rest would be no way out.
    fill(tables["float64"], tables["float64"].requests()[:1])
    monkeypatch.setattr(forecasts, "free_space", lambda folder: (0, None))
    assert "gram.store" not in forecast_of(tables["float64"]).lines(tmp_path)[-1]


@pytest.fixture
def networks(tmp_path: Path, npz: Path) -> Path:
    column = {"model": "cnn", "readout": "gap", "depths": [3, 4], "width": 8, "epochs": 2, "train": {"n": 40}}
    tree = {
        "name": "nets",
        "data": {"dataset": "npz", "path": str(npz)},
        "columns": [{**column, "lr": [0.1, 0.2], "seeds": 2, "batch_size": 16}],
    }
    path = tmp_path / "nets.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_networks_are_counted_with_the_search_for_rates(networks: Path, tmp_path: Path):
    table = table_of(networks, tmp_path / "run")
    (part,) = forecast_of(table).parts
    assert part.words.startswith("8 runs, at most ")  # of each depth two rates, and two seeds of the one chosen
    assert "to find the largest stable learning rates" in part.words
    assert part.seconds > 0
    assert not part.lacks
    assert not list((tmp_path / "run").iterdir())
    absolute = table_of(networks, tmp_path / "run", "columns.0.lr_unit=absolute")
    (part,) = forecast_of(absolute).parts
    assert "stable" not in part.words
    assert sum(runs_left(cell, forecasts.Only()) for cell in absolute.network_cells) == 8


def test_a_batch_that_is_said_to_fit_does(networks: Path, tmp_path: Path, monkeypatch):
    table = table_of(networks, tmp_path / "run")
    cells = table.network_cells
    need = forecasts.count_cost(cells[1].setting(1.0, 0), cells[1].data("all", table.device)).memory
    monkeypatch.setattr(forecasts, "installed_memory", lambda device: (need - 1) / forecasts.FITS)
    (part,) = forecast_of(table).parts
    (why,) = part.lacks
    batch = int(why.split("batch_size: ")[1].split()[0])
    assert batch < 16
    (part,) = forecast_of(table_of(networks, tmp_path / "run", f"columns.0.batch_size={batch}")).parts
    assert not part.lacks
    monkeypatch.setattr(forecasts, "installed_memory", lambda device: 1000)
    (part,) = forecast_of(table).parts
    assert part.lacks[0].endswith("no batch would fit: lower width")
