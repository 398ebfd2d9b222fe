"""Error bars: against variances known by hand, and against simulated tables of known truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.standard_error import standard_error

TEST_IMAGES, DRAWS = 120, 4


def test_one_draw_is_the_binomial_error():
    right = np.repeat([1.0, 0.0], [80, 20])
    assert standard_error([np.arange(100)], [right]) == pytest.approx(100 * (0.8 * 0.2 / 100) ** 0.5)


def test_draws_that_always_agree_are_no_more_than_one():
    """The same images, the same answers: five draws know no more of the test images than one."""
    images, right = np.arange(50), (np.arange(50) % 5 > 0).astype(float)
    one = standard_error([images], [right])
    assert standard_error([images] * 5, [right] * 5) == pytest.approx(one)


def test_draws_on_images_of_their_own_average_out():
    right = (np.arange(50) % 5 > 0).astype(float)
    one = standard_error([np.arange(50)], [right])
    apart = [np.arange(50) + 50 * d for d in range(4)]
    assert standard_error(apart, [right] * 4) == pytest.approx(one / 2)


def test_nothing_wrong_is_not_certainty():
    q = 0.5 / 41
    expected = 100 * (q * (1 - q) / 40) ** 0.5
    for value in (1.0, 0.0):
        assert standard_error([np.arange(40)] * 3, [np.full(40, value)] * 3) == pytest.approx(expected)


@given(st.permutations(range(12)), st.permutations(range(3)), st.integers(0, 2**12 - 1))
def test_the_order_of_images_and_draws_does_not_matter(order: list[int], draws: list[int], bits: int):
    images = [np.arange(12) + d for d in range(3)]
    scores = [np.array([(bits >> ((i + 5 * d) % 12)) & 1 for i in range(12)], float) for d in range(3)]
    found = standard_error([images[d][order] for d in draws], [scores[d][order] for d in draws])
    assert found == pytest.approx(standard_error(images, scores))


def simulated(
    rng: np.random.Generator, overlapping: bool, paired: bool, draw: float, interaction: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A table's cell: right where an image's ease, a draw's luck and their interaction add up to more than 0."""
    ease, luck = rng.normal(0.7, 1, TEST_IMAGES), rng.normal(0, draw, DRAWS)
    images, scores = [], []
    for d in range(DRAWS):
        tested = np.sort(rng.choice(TEST_IMAGES, TEST_IMAGES // 2, replace=False)) if overlapping else slice(None)
        right = ease + luck[d] + rng.normal(0, interaction, TEST_IMAGES) > 0
        # The other kernel of a pair sees the same images and draws, with an interaction of its own.
        other = ease - 0.3 + luck[d] / 2 + rng.normal(0, interaction, TEST_IMAGES) > 0
        images.append(np.arange(TEST_IMAGES)[tested])
        scores.append((right.astype(float) - (other if paired else 0))[tested])
    return images, scores


@pytest.mark.parametrize("paired", [False, True], ids=["accuracy", "difference"])
@pytest.mark.parametrize("overlapping", [False, True], ids=["same images", "overlapping images"])
@pytest.mark.parametrize("draw, interaction", [(0.0, 0.6), (0.4, 0.6)])
def test_the_stated_variance_is_the_true_one(draw: float, interaction: float, overlapping: bool, paired: bool):
    """Over 1,500 simulated tables, the mean of SE^2 beside the variance of the mean score.

    Of 3,000 each, over draws of deviation 0 to 0.4 and interactions of 0 to 1.5, the ratio came out 0.97 to 1.33: it is
    above 1 where draws differ by no more than their noise, the larger of two noisy figures being taken. Its standard
    error here is 3.7 %. One draw's binomial error, which knows neither draws nor images in common, gives 0.39 to 3.9.
    """
    rng = np.random.default_rng(1)
    means, stated = [], []
    for _ in range(1500):
        images, scores = simulated(rng, overlapping, paired, draw, interaction)
        means.append(100 * np.mean(np.concatenate(scores)))
        stated.append(standard_error(images, scores) ** 2)
    assert 0.88 < np.mean(stated) / np.var(means) < 1.45
