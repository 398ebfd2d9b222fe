"""The order of the images and the draws: disjoint, nested, balanced, and the same for ever."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.config import Config
from exact_ntk.data import Dataset
from exact_ntk.draws import draw, duplicates, order_images, shuffled
from exact_ntk.errors import ConfigError, DataError
from exact_ntk.settings import load_config


def dataset(n: int = 60, m: int = 20, classes: int = 3) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n + m, 3, 3, 1)).astype(np.uint8)
    y = rng.permutation(np.arange(n + m) % classes)
    return Dataset("made", x[:n], y[:n], x[n:], y[n:], tuple("abc"[:classes]))


@pytest.fixture
def config(config_path: Path) -> Config:
    return load_config(str(config_path))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(0, 10), st.booleans())
def test_an_order_is_a_permutation_and_a_balanced_one_interleaves(labels, seed, balanced):
    y = np.array(labels)
    order = shuffled(y, (seed,), balanced)
    assert sorted(order) == list(range(len(y)))
    if balanced:
        fewest = min(np.bincount(y)[np.unique(y)])
        head = y[order[: fewest * len(np.unique(y))]]
        assert set(np.bincount(head)[np.unique(y)]) == {fewest}


def test_the_order_never_changes():
    """Stores on disk are laid out by it."""
    assert shuffled(np.zeros(10, int), (0, 0), False).tolist() == PINNED


PINNED = [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


def test_draws_are_disjoint_and_smaller_ones_nested(config: Config):
    images = order_images(dataset(), config)
    twenty = config.columns[0]
    first, second = (draw(images, twenty, "c", k) for k in (0, 1))
    assert not set(first.train) & set(second.train)
    ten = twenty.model_copy(update={"train": twenty.train.model_copy(update={"n": 10})})
    assert set(draw(images, ten, "c", 0).train) < set(first.train)
    assert not first.overlaps


def test_a_draw_beyond_the_blocks_is_fresh_and_says_so(config: Config):
    images = order_images(dataset(), config)
    extra = [draw(images, config.columns[0], "c", k) for k in (3, 4)]
    assert all(d.overlaps and len(set(d.train)) == 20 for d in extra)
    assert set(extra[0].train) != set(extra[1].train)


@pytest.mark.parametrize("source, size", [("test", 20), ("undrawn", 40), ("both", 60)])
def test_no_image_is_tested_that_was_trained_on(config: Config, source: str, size: int):
    images = order_images(dataset(), config)
    column = config.columns[0]
    column = column.model_copy(update={"test": column.test.model_copy(update={"source": source})})
    d = draw(images, column, "c", 1)
    assert len(d.test) == size
    assert not set(d.test) & set(d.train)
    few = column.model_copy(update={"test": column.test.model_copy(update={"n": 9})})
    assert set(draw(images, few, "c", 1).test) < set(d.test)


def test_positions_lead_back_to_the_data(config: Config):
    data = dataset()
    images = order_images(data, config)
    n = images.n_train
    np.testing.assert_array_equal(images.y[:n], data.y_train[images.image_index[:n]])
    np.testing.assert_array_equal(images.y[n:], data.y_test[images.image_index[n:]])


def test_copies_with_one_label_are_dropped_and_recorded(config: Config):
    data = dataset()
    data.x_train[7] = data.x_train[3]
    data.y_train[7] = data.y_train[3]
    images = order_images(data, config)
    assert images.dropped == ((7, 3),)
    assert images.n_train == 59
    assert duplicates(data.x_train) == [(7, 3)]


def test_copies_with_two_labels_are_refused_without_a_ridge(config: Config):
    data = dataset()
    data.x_train[7] = data.x_train[3]
    data.y_train[7] = (data.y_train[3] + 1) % 3
    with pytest.raises(DataError, match="training images 3 and 7 are equal but labelled"):
        order_images(data, config)
    columns = tuple(c.model_copy(update={"ridge": 0.1}) for c in config.columns)
    assert order_images(data, config.model_copy(update={"columns": columns})).n_train == 60


def test_more_images_than_there_are_is_refused_by_column(config: Config):
    images = order_images(dataset(), config)
    column = config.columns[0]
    with pytest.raises(ConfigError, match=r"column c: train\.n is 61, but there are 60"):
        draw(images, column.model_copy(update={"train": column.train.model_copy(update={"n": 61})}), "c", 0)
    with pytest.raises(ConfigError, match=r"column c: test\.n is 99, but there are 60 images from 'both'"):
        draw(images, column.model_copy(update={"test": column.test.model_copy(update={"n": 99})}), "c", 0)
