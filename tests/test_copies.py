"""Images that no kernel tells apart: found up to rounding, and only they; their matrices are singular."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.copies import ZERO, Alike, find_alike
from exact_ntk.kernels import cntk

READOUTS = ("vanilla", "gap", "vanilla-nngp", "gap-nngp")


def found(x: np.ndarray) -> Alike:
    return find_alike(lambda at: x[at], len(x))


def noise(n: int, pixels: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, pixels)).astype(np.float32)


def test_different_images_are_different():
    x = noise(500)
    alike = found(x)
    assert alike.direction.tolist() == alike.copy.tolist() == list(range(500))
    np.testing.assert_allclose(alike.norm, np.linalg.norm(x, axis=1), rtol=1e-6)


def test_copies_up_to_rounding_and_the_sign_of_zero_are_copies():
    x = noise(300)
    x[5, :4] = 0.0
    x[7], x[7, :4] = x[5], -0.0
    x[9] = np.nextafter(x[8], np.float32(9))
    x[11] = x[5]
    alike = found(x)
    assert alike.copy[[7, 9, 11]].tolist() == [5, 8, 5]
    assert (alike.copy != np.arange(300)).sum() == 3


def test_one_grey_level_of_one_pixel_is_a_difference():
    """Of a large image: 224 x 224 x 3, in units of the deviation, about 1/64 of it."""
    x = np.repeat(noise(1, 224 * 224 * 3), 2, axis=0)
    x[1, 1000] += 1 / 64
    assert found(x).direction.tolist() == [0, 1]


def test_multiples_share_a_direction_and_no_number():
    x = noise(40)
    x[20], x[30], x[31] = 0.25 * x[3], 3 * x[3], -x[3]
    alike = found(x)
    assert alike.direction[[3, 20, 30, 31]].tolist() == [3, 3, 3, 31]
    assert alike.copy[[3, 20, 30]].tolist() == [3, 20, 30]


def test_zero_images_are_zero_up_to_rounding():
    x = noise(40)
    x[4], x[17] = 0, 1e-9
    assert found(x).direction[[4, 17]].tolist() == [ZERO, ZERO]
    assert found(x).copy[[4, 17]].tolist() == [4, 4]
    assert (found(x).direction == ZERO).sum() == 2
    nothing = found(np.zeros((3, 5), np.float32))
    assert nothing.direction.tolist() == [ZERO] * 3


def test_a_set_of_nothing_but_multiples_is_one_direction():
    x = np.arange(1, 3001, dtype=np.float32)[:, None] * noise(1)
    alike = found(x)
    assert set(alike.direction) == {0}
    assert len(set(alike.copy)) == 3000


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 6))
def test_planted_twins_are_all_found(seed, n, pixels):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, pixels)).astype(np.float32)
    of, factor = rng.integers(0, n, n), rng.choice([1.0, 0.5, 2.0], n)
    x = np.concatenate([base, base[of] * factor[:, None].astype(np.float32)])
    alike = found(x)
    assert (alike.direction[n:] == alike.direction[of]).all()
    same = factor == 1
    assert (alike.copy[n:][same] == alike.copy[of][same]).all()
    assert (alike.direction <= np.arange(2 * n)).all()


@pytest.mark.parametrize("kind", ["zero", "multiple", "opposite"])
def test_what_makes_a_kernel_singular_is_what_is_found(kind: str):
    """Every readout, trained ends and depth: smallest eigenvalue 0 for zero images and multiples, not for opposites."""
    x = torch.from_numpy(noise(5, 2 * 4 * 4)).reshape(5, 2, 4, 4).double()
    x[4] = {"zero": 0.0, "multiple": 2.0, "opposite": -1.0}[kind] * x[1]
    alike = found(x.flatten(1).numpy())
    singular = (alike.direction == ZERO).any() or len(set(alike.direction)) < 5
    assert singular == (kind != "opposite")
    for ends in [(None, None), (True, False), (False, True)]:
        options = dict(depths=(3, 6), backend="reference", dtype=torch.float64)
        k = cntk(x, readouts=READOUTS, train_first=ends[0], train_last=ends[1], **options)
        eigenvalues = torch.linalg.eigvalsh(k)
        smallest = (eigenvalues[..., 0] / eigenvalues[..., -1]).abs()
        assert bool((smallest < 1e-12).all()) if singular else bool((smallest > 1e-6).all())
