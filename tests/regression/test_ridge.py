"""The ridge by leave-one-out and held-out error, against leaving out; in any memory, through interruptions."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exact_ntk.config import RidgeChoice
from exact_ntk.errors import NtkError
from exact_ntk.regression import ridge as ridges
from exact_ntk.regression.cholesky import Cholesky
from exact_ntk.regression.matrix import Held, ridge_unit
from exact_ntk.regression.panels import WIDTH, PanelFiles, Trapezoid
from exact_ntk.regression.plan import DoesNotFit, SolvePlan
from exact_ntk.regression.ridge import ChoicePlan, ErrorCurve, Errors, choose_ridge, leave_one_out, plan_choice

N = WIDTH + 60  # two panels


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(n: int, rank: int) -> torch.Tensor:
    x = normal(n, rank)
    return x @ x.T


def left_out(k: torch.Tensor, y: torch.Tensor, shift: float, out: list[int]) -> torch.Tensor:
    """Residuals of images that are left out, by solving for the others."""
    rest = [j for j in range(len(k)) if j not in out]
    a = k[rest][:, rest] + shift * torch.eye(len(rest), dtype=torch.float64)
    return y[out] - k[out][:, rest] @ torch.linalg.solve(a, y[rest])


def test_errors_are_those_of_leaving_each_one_out():
    k, y = matrix(9, 12), normal(9, 2, seed=1)
    grid = (1e-3, 0.1, 10.0)
    found = leave_one_out(k, y, grid)
    for ridge, error in zip(grid, found.errors, strict=True):
        shift = ridge * k.diagonal().mean()
        residuals = torch.cat([left_out(k, y, shift, [i]) for i in range(9)])
        assert float(error) == pytest.approx(float(residuals.square().mean()), rel=1e-9)
    assert found.ridge == grid[int(found.errors.argmin())]


def test_ridges_too_small_for_a_singular_matrix_do_not_count():
    found = leave_one_out(matrix(9, 3), torch.ones(9, 1, dtype=torch.float64), (0.0, 1e-20, 0.1))
    assert found.errors.isinf().tolist() == [True, True, False]
    zero = leave_one_out(torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    with pytest.raises(NtkError, match="are all images zero"):
        _ = zero.ridge


def test_of_equal_errors_the_larger_ridge_is_taken():
    assert ErrorCurve(torch.tensor([1e-3, 1e-2, 1e-1]), torch.tensor([0.5, 0.5, 0.7])).ridge == pytest.approx(1e-2)


def test_errors_that_differ_by_rounding_are_equal():
    """Of one image that is left out nothing is left: every ridge has the error of predicting 0."""
    grid, y = [10.0 ** (exponent / 2) for exponent in range(-12, -2)], torch.tensor([[2 / 3, -1 / 3, -1 / 3]]).double()
    curves = [leave_one_out(torch.tensor([[k]]).double(), y, grid) for k in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert any(curve.errors.unique().numel() > 1 for curve in curves)
    assert [curve.ridge for curve in curves] == 5 * grid[-1:]


def choice(select: str, **more) -> RidgeChoice:
    return RidgeChoice(**{"select": select, "from": 1e-4, "to": 1e-1, **more})


def test_the_grid_is_of_half_decades_as_printed():
    assert choice("loo").grid == (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1)
    assert choice("loo", to=2e-3).grid == (1e-4, 3.16e-4, 1e-3)
    assert choice("loo", to=1e-4).grid == (1e-4,)
    assert len(RidgeChoice(select="loo").grid) == 15


@pytest.fixture(scope="module")
def k() -> torch.Tensor:
    return matrix(N, 700) / 700 + 0.01 * torch.eye(N, dtype=torch.float64)


@pytest.fixture(scope="module")
def y() -> torch.Tensor:
    return normal(N, 3, seed=1)


def by_factor(select: str, groups: int = 1) -> ChoicePlan:
    """A plan whose budget has no room for an eigendecomposition; so many groups of panels."""
    n = plan_choice(choice(select), N, 3, 0, 10**12).factor.n
    every = Trapezoid(n).groups(8 * Trapezoid(n).size(0)) if groups == 2 else [range(len(Trapezoid(n)))]
    assert len(every) == groups
    return ChoicePlan(choice(select), N, 1, SolvePlan(n, tuple(every), 0, 0))


def files_in(folder: Path, n: int):
    return lambda name: PanelFiles(folder / name, name, Trapezoid(n))


def test_one_held_out_share_is_left_out(k, y):
    found = choose_ridge(Held(k), y, plan_choice(choice("holdout"), N, 3, 0, 10**12), ridge_unit(Held(k)))
    out, mean = list(range(round(0.1 * N))), float(k.diagonal().mean())
    for ridge, error in zip(found.ridges, found.errors, strict=True):
        assert error == pytest.approx(float(left_out(k, y, ridge * mean, out).square().mean()), rel=1e-9)
    assert found.errors[found.ridges.index(found.ridge)] == min(found.errors)


@pytest.mark.parametrize("select", ["loo", "holdout"])
def test_factors_give_what_an_eigendecomposition_does(k, y, select: str, tmp_path: Path):
    one = choose_ridge(Held(k), y, plan_choice(choice(select), N, 3, 0, 10**12), ridge_unit(Held(k)))
    other = choose_ridge(Held(k), y, by_factor(select), ridge_unit(Held(k)))
    assert other.ridge == one.ridge
    assert other.errors == pytest.approx(one.errors, rel=1e-9)
    plan = by_factor(select, groups=2)
    assert (
        choose_ridge(Held(k), y, plan, ridge_unit(Held(k)), files_in(tmp_path, plan.factor.n)) == other
    )  # the same bits
    assert not list(tmp_path.rglob("*.panel"))


def test_an_interrupted_choice_goes_on_where_it_stopped(k, y, tmp_path: Path, monkeypatch):
    plan, kept = by_factor("loo", groups=2), tmp_path / "draw.ridge"
    whole, files = choose_ridge(Held(k), y, by_factor("loo"), ridge_unit(Held(k))), files_in(tmp_path, N)
    real, calls = Cholesky.inverse_diagonal, []

    def cut(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Cholesky, "inverse_diagonal", cut)
        choose_ridge(Held(k), y, plan, ridge_unit(Held(k)), files, Errors.read(kept))
    assert len(list(tmp_path.rglob("*.panel"))) == 2  # of the third ridge, to go on from
    with monkeypatch.context() as patch:
        patch.setattr(PanelFiles, "write", lambda *_: calls.append(0))
        patch.setattr(ridges, "leave_one_out", None)
        with pytest.raises(Exception, match=r"another factor's|No such file"):  # of the fourth, nothing is there
            choose_ridge(Held(k), y, plan, ridge_unit(Held(k)), files, Errors.read(kept))
    assert choose_ridge(Held(k), y, plan, ridge_unit(Held(k)), files, Errors.read(kept)) == whole
    kept.write_text("{")
    assert Errors.read(kept).found == {}


def test_an_indefinite_matrix_has_no_error(y):
    bad = torch.diag(torch.linspace(-0.05, 1, N, dtype=torch.float64))
    enough = choice("loo", to=1.0)
    for plan in (plan_choice(enough, N, 3, 0, 10**12), replace(by_factor("loo"), choice=enough)):
        found = choose_ridge(Held(bad), y, plan, ridge_unit(Held(bad)))
        assert found.errors[:7] == [None] * 7
        assert None not in found.errors[7:]
        assert found.ridge in found.ridges[7:]
    with pytest.raises(NtkError, match=r"no ridge up to 0\.1 makes the Gram matrix positive definite: give larger"):
        choose_ridge(Held(bad), y, by_factor("loo"), ridge_unit(Held(bad)))


def test_the_cost_is_said_with_what_would_not_fit():
    device = torch.device("cpu")
    plan = plan_choice(choice("loo"), 20_000, 10, 0, 10**12)
    assert plan.by_eigen
    assert "20,000 images out of 7 from 0.0001 to 0.1 by leave-one-out error: an eigendecomposition in 12.8 GB" in (
        plan.words(device)
    )
    few = plan_choice(choice("loo"), 20_000, 10, 0, 4 * 10**9)
    assert not few.by_eigen
    assert "7 factorisations, each with the diagonal of its inverse, about" in few.words(device)
    assert few.words(device).endswith("since an eigendecomposition takes 12.8 GB and 4.0 GB are left for it")
    assert few.seconds(device) == pytest.approx(14 * few.factor.seconds(device))
    with pytest.raises(DoesNotFit):
        plan_choice(choice("loo"), 20_000, 10, 0, 10**7)
    with pytest.raises(NtkError, match=r"^ridge: holdout 0.1 of 4 images leaves none"):
        plan_choice(choice("holdout"), 4, 10, 0, 10**9)
