"""Cholesky in a budget: the same bits whatever is in memory, wherever it was interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk.errors import NtkError, StoreError
from exact_ntk.regression import lu
from exact_ntk.regression.matrix import Held
from exact_ntk.regression.panels import WIDTH, PanelFiles, Trapezoid
from exact_ntk.regression.plan import DoesNotFit, SolvePlan, plan_solve
from exact_ntk.regression.solve import Solution, kernel_regression

N = 2 * WIDTH + 100  # three panels, the last one narrow


@pytest.fixture(scope="module")
def k() -> torch.Tensor:
    features = torch.randn((N, 700), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return features @ features.T / 700 + 0.01 * torch.eye(N, dtype=torch.float64)


@pytest.fixture(scope="module")
def y() -> torch.Tensor:
    return torch.randn((N, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def held(k: torch.Tensor, y: torch.Tensor) -> Solution:
    """Solved with the whole factor in memory."""
    return kernel_regression(k, y)


def plan_of(panels: int) -> SolvePlan:
    """A plan that holds at most so many of the three panels together."""
    return SolvePlan(N, tuple(Trapezoid(N).groups(8 * Trapezoid(N).size(*range(3 - panels, 3)))), 0, 0)


def files_in(folder: Path, name: str = "factor") -> PanelFiles:
    return PanelFiles(folder / "panels", name, Trapezoid(N))


def same(a: Solution, b: Solution) -> bool:
    rest = (a.residual, a.one_norm, a.inverse_one_norm, a.indefinite)
    return torch.equal(a.alpha, b.alpha) and rest == (b.residual, b.one_norm, b.inverse_one_norm, b.indefinite)


def test_it_is_the_solution(k, y, held):
    torch.testing.assert_close(held.alpha, torch.linalg.solve(k, y), rtol=1e-9, atol=1e-9)
    assert held.residual < 1e-12
    assert held.one_norm == pytest.approx(float(torch.linalg.matrix_norm(k, 1)))


@pytest.mark.parametrize(("panels", "groups"), [(1, 3), (2, 2)])
def test_the_budget_decides_no_bit(k, y, held, tmp_path: Path, panels: int, groups: int):
    plan = plan_of(panels)
    assert len(plan.groups) == groups
    assert plan.keeps_files(torch.device("cpu"))
    assert same(kernel_regression(k, y, plan=plan, files=files_in(tmp_path)), held)


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_a_kill_at_a_panel_goes_on_there(k, y, held, tmp_path: Path, monkeypatch, panels: int):
    plan, files = plan_of(panels), files_in(tmp_path)
    write, written = PanelFiles.write, []

    def killed(self, number, flat):
        if len(written) == 2:
            raise KeyboardInterrupt
        write(self, number, flat)
        written.append(number)

    monkeypatch.setattr(PanelFiles, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        kernel_regression(k, y, plan=plan, files=files)
    again: list[int] = []
    monkeypatch.setattr(
        PanelFiles, "write", lambda self, number, flat: again.append(number) or write(self, number, flat)
    )
    assert same(kernel_regression(k, y, plan=plan, files=files), held)
    assert again == [2]


@pytest.mark.parametrize("damage", ["bit", "cut", "longer", "not JSON", "another factor's"])
def test_a_damaged_panel_and_those_after_it_are_made_anew(k, y, held, tmp_path: Path, caplog, damage: str):
    plan, files = plan_solve(N, 3, 0, 1 << 40), files_in(tmp_path)
    kernel_regression(k, y, plan=plan, files=files)
    victim = files.path(1)
    whole = victim.read_bytes()
    damaged = {
        "bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "cut": whole[:-8],
        "longer": whole + b"\0",
        "not JSON": b"\xff" + whole,
        "another factor's": whole.replace(b'"factor"', b'"fuctor"', 1),
    }
    victim.write_bytes(damaged[damage])
    with pytest.raises(StoreError, match=r"00001\.panel"):
        files.read(1, torch.empty(Trapezoid(N).size(1), dtype=torch.float64))
    assert same(kernel_regression(k, y, plan=plan, files=files), held)
    assert "00001.panel is damaged or another factor's: it is made anew" in caplog.text
    assert victim.read_bytes() == whole


def test_an_indefinite_matrix_names_its_minor_in_any_panel_and_its_factor_goes(k, y, tmp_path: Path):
    bad = k.clone()
    bad[WIDTH + 3, WIDTH + 3] = -1.0
    plan, files = plan_solve(N, 3, 0, 1 << 40), files_in(tmp_path)
    found = kernel_regression(bad, y, plan=plan, files=files)
    assert found.indefinite == WIDTH + 4
    torch.testing.assert_close(found.alpha, torch.linalg.solve(bad, y), rtol=1e-8, atol=1e-8)
    assert not files.folder.exists()
    with pytest.raises(DoesNotFit, match=rf"leading minor {WIDTH + 4} .* ridge: LU takes .* MB .* are left") as error:
        kernel_regression(bad, y, plan=SolvePlan(N, plan.groups, plan.lu_bytes - 5, plan.working), files=files)
    assert error.value.missing == 5
    with pytest.raises(NtkError, match=rf"leading minor {WIDTH + 4} is not positive"):
        kernel_regression(bad, y, on_indefinite="stop")


def test_lu_is_in_place(k, monkeypatch):
    real, given = torch.linalg.lu_factor_ex, []

    def watched(a, out):
        given.append(a.data_ptr())
        return real(a, out=out)

    monkeypatch.setattr(torch.linalg, "lu_factor_ex", watched)
    made = lu.LU(Held(k), 0.0, k.device)
    assert given == [made._factors.data_ptr()]
    x = made.solve(k)
    torch.testing.assert_close(x, torch.eye(N, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_file_that_cannot_be_written_is_named(k, y, tmp_path: Path):
    (tmp_path / "panels").write_text("in the way")
    with pytest.raises(NtkError, match=r"cannot write .*00000.panel"):
        kernel_regression(k, y, plan=plan_solve(N, 3, 0, 1 << 40), files=files_in(tmp_path))


def test_groups_cover_every_panel_and_fit():
    trapezoid = Trapezoid(5000)
    for budget in np.linspace(8 * trapezoid.size(0), trapezoid.bytes, 7):
        groups = trapezoid.groups(int(budget))
        assert [k for group in groups for k in group] == list(range(len(trapezoid)))
        assert all(8 * trapezoid.size(*group) <= budget for group in groups)
    assert trapezoid.groups(1) == [range(k, k + 1) for k in range(len(trapezoid))]


def test_a_plan_states_what_it_takes_and_what_would_do():
    whole = plan_solve(50_000, 10, 0, 1 << 40)
    assert 10e9 < whole.trapezoid.bytes < 10.2e9
    assert whole.flops == pytest.approx(50_000**3 / 3, rel=0.02)
    assert plan_solve(50_000, 10, 0, whole.bytes).in_memory
    by_turns = plan_solve(50_000, 10, 0, whole.bytes - 1)
    assert len(by_turns.groups) == 2
    for budget in (1 << 30, 3 << 30, 7 << 30):
        assert plan_solve(50_000, 10, 0, budget).bytes <= budget
    with pytest.raises(DoesNotFit, match=r"50,000 images takes .* are left for it") as error:
        plan_solve(50_000, 10, 0, 500_000_000)
    plan_solve(50_000, 10, 0, 500_000_000 + error.value.missing)
    assert not plan_solve(2000, 10, 0, 1 << 40).keeps_files(torch.device("cpu"))
