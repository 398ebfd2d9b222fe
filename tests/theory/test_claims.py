"""Each experiment's claims hold on data made to the theory and fail, one by one, on data made against it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from exact_ntk.theory import claims, quadrature
from exact_ntk.theory.inputs import Problem
from exact_ntk.theory.theorem_3_1 import Initialisation
from exact_ntk.theory.theorem_3_2 import TrainedWidth
from exact_ntk.theory.training import Flow, Training

WIDTHS = (64, 256, 1024, 4096)
SEEDS, N, M, TIMES = 200, 4, 5, 6


def errors(exponent: float = -0.5, seeds: int = 200) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.abs(rng.standard_normal((seeds, 6))) * w**exponent for w in WIDTHS]


def initialisation(**wrong: dict[int, list[np.ndarray]]) -> Initialisation:
    right = {1: errors(), 2: errors()}
    return Initialisation(WIDTHS, **{part: right | wrong.get(part, {}) for part in ("ntk", "forward", "backward")})


def failed(found: list) -> list[str]:
    return [claim.claim for claim in found if not claim.holds]


def test_theorem_1_fails_where_its_data_do():
    assert not failed(claims.of_initialisation(initialisation(), 0.5))
    assert len(failed(claims.of_initialisation(initialisation(), 1e-6))) == 1
    for part, words in (("ntk", "L = 2: "), ("forward", "h = 2: <g"), ("backward", "h = 2: <b")):
        bad = failed(claims.of_initialisation(initialisation(**{part: {2: errors(-0.1)}}), 0.5))
        assert bad
        assert all(words in claim for claim in bad)


def test_theorem_1_for_cnns_fails_where_its_data_do():
    assert not failed(claims.of_cnn_initialisation({"vanilla": errors(), "gap": errors()}, WIDTHS))
    bad = failed(claims.of_cnn_initialisation({"vanilla": errors(), "gap": errors(0.0)}, WIDTHS))
    assert [claim[:7] for claim in bad] == ["CNN-GAP"]


def test_quadrature_fails_beyond_its_error():
    found = quadrature.measure_quadrature()
    assert not failed(claims.of_quadrature(found))
    k = quadrature.VARIANCES.index(1.0)
    wrong = tuple(1e-9 if i == k else e for i, e in enumerate(found[0].errors))
    assert len(failed(claims.of_quadrature([replace(found[0], errors=wrong), *found[1:]]))) == 1


def run(width: int, kappa: float = 1.0) -> TrainedWidth:
    """A training whose every deviation from the flow is a random number times width^-1/2, at time 0 none."""
    generator = torch.Generator().manual_seed(width + int(1000 * kappa))

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * width**-0.5

    limit = kappa**2 * torch.eye(N, dtype=torch.float64)
    y = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    times = torch.arange(TIMES, dtype=torch.float64) * 5
    f0, f0_test = kappa * width**0.5 * noise(SEEDS, N), kappa * width**0.5 * noise(SEEDS, M)
    decay = torch.exp(-times)[:, None, None]
    flow = Flow(y + decay * (f0 - y), decay * f0_test, 0 * f0_test, torch.zeros(M, dtype=torch.float64))
    # Deviations that start at 0; on the training inputs they have died down again at the end.
    ramp = torch.linspace(0, 1, TIMES, dtype=torch.float64)[:, None, None]
    drift = noise(TIMES, SEEDS, 1, 1) * ramp[..., None] / kappa
    start = limit * (1 + noise(SEEDS, 1, 1))
    return TrainedWidth(
        width,
        kappa,
        Problem(torch.zeros(N, 1), y, torch.zeros(M, 1)),
        limit,
        Training(
            times,
            flow.train + noise(TIMES, SEEDS, N) * ramp * decay,
            flow.test + noise(TIMES, SEEDS, M) * ramp,
            start * (1 + drift),
        ),
        flow,
    )


def tampered(runs: list[TrainedWidth], part: str, change) -> list[TrainedWidth]:
    return [replace(r, training=replace(r.training, **{part: change(getattr(r.training, part), r)})) for r in runs]


def test_theorem_2_holds_on_data_made_to_it():
    runs = [run(w) for w in WIDTHS]
    assert not failed(claims.of_training("made", runs))


@pytest.mark.parametrize(
    "part,change,words",
    [
        ("train", lambda u, r: u + 0.1, ["trained to the end", "training curve"]),
        ("train", lambda u, r: torch.cat([u[:-1], u[-1:] * torch.nan]), ["trained to the end", "training curve"]),
        ("test", lambda u, r: u + torch.rand(u.shape) + 0.5, ["at the same time", "at t = infinity"]),
        ("kernels", lambda k, r: torch.cat([k[:1], 1.3 * k[1:]]), ["H(0)", "H*"]),
        ("kernels", lambda k, r: 1.5 * k, ["H*"]),
    ],
)
def test_theorem_2_fails_where_its_data_do(part, change, words):
    bad = failed(claims.of_training("made", tampered([run(w) for w in WIDTHS], part, change)))
    assert len(bad) == len(words)
    assert all(word in claim for word, claim in zip(words, bad, strict=True))


def test_kappas_effects_fail_where_their_data_do():
    runs = [run(1024, kappa) for kappa in (0.1, 0.3, 1.0, 3.0)]
    assert not failed(claims.of_kappa("made", runs))
    silent = tampered(runs, "test", lambda u, r: u / r.kappa)
    assert ["noise" in c for c in failed(claims.of_kappa("made", silent))] == [True]
    rigid = tampered(runs, "kernels", lambda k, r: k[:1] + r.kappa * (k - k[:1]))
    assert ["drift" in c for c in failed(claims.of_kappa("made", rigid))] == [True]
    unfinished = tampered(runs, "train", lambda u, r: u + 1)
    assert ["end" in c for c in failed(claims.of_kappa("made", unfinished))] == [True]
