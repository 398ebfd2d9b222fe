"""The order of the images and the draws: disjoint, nested, balanced, and the same for ever."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.config import CnnColumn, Config
from exact_ntk.data import Dataset
from exact_ntk.draws import copies_tested, draw, load_images, order_images, shuffled
from exact_ntk.errors import ConfigError, DataError
from exact_ntk.notices import warn_once
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
    data.x_train[7], data.y_train[7] = data.x_train[3], data.y_train[3]
    data.x_train[9], data.y_train[9] = data.x_train[3], data.y_train[3]
    images = order_images(data, config)
    assert images.dropped == ((7, 3), (9, 3))
    assert images.n_train == 58
    assert not {7, 9} & set(images.image_index[:58])


def test_of_copies_with_two_labels_the_first_of_each_is_kept(config: Config):
    data = dataset()
    data.x_train[[7, 9]] = data.x_train[3]
    data.y_train[[3, 7, 9]] = [0, 1, 1]
    assert order_images(data, config).dropped == ((9, 7),)


def test_copies_are_what_is_equal_to_the_kernels(config: Config):
    """Divided in float32 and in float64, a minus before a zero: the bytes differ, the normalised images do not."""
    data = dataset()
    x = data.x_train / 255
    x[5], x[6], x[7] = x[1] * (1 + 1e-12), x[2].astype(np.float32), np.where(x[3] == 0, -0.0, x[3])
    y = data.y_train.copy()
    y[[5, 6, 7]] = y[[1, 2, 3]]
    floats = Dataset("made", x, y, data.x_test / 255, data.y_test, data.classes)
    assert order_images(floats, config).dropped == ((5, 1), (6, 2), (7, 3))


@pytest.fixture
def greys(config: Config, tmp_path: Path) -> Config:
    """Each image of its own; 5 and 8 are constant, 11 zero once preprocessed, 20 copies 21 under another label."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (60, 4, 4)).astype(np.float64)
    y = np.arange(60) % 3
    x[5], x[8] = 200, 250
    x[20] = x[21]
    # The mean of all is what makes 11 zero, so it is brought to exactly 128.
    x[11] = 128
    rest = np.setdiff1d(np.arange(60), [5, 8, 11, 20, 21])
    x[rest] += (128 * 60 - x.mean((1, 2)).sum()) / len(rest)
    x = (x + 100) / 512
    np.savez(tmp_path / "greys.npz", x_train=x, y_train=y, x_test=x[:3] * 0.5, y_test=y[:3])
    data = config.data.model_copy(update={"path": tmp_path / "greys.npz"})
    return config.model_copy(update={"data": data})


def with_columns(config: Config, **changes) -> Config:
    columns = tuple(c.model_copy(update=changes) for c in config.columns)
    return config.model_copy(update={"columns": columns})


def train_all(config: Config, **changes) -> Config:
    train = config.columns[0].train.model_copy(update={"n": "all", "draws": 1})
    test = config.columns[0].test.model_copy(update={"source": "test"})
    return with_columns(config, train=train, test=test, ridge=0.0, **changes)


def without(config: Config, *images: int) -> Config:
    arrays = dict(np.load(config.data.path))
    # Where the zero image goes the mean of the rest stays what it was.
    kept = np.setdiff1d(np.arange(60), images)
    np.savez(config.data.path, **{**arrays, "x_train": arrays["x_train"][kept], "y_train": arrays["y_train"][kept]})
    return config


SINGULAR = [
    (
        (),
        "training image 11 is zero once preprocessed, so the Gram matrix is singular: give .* ridge: 1.0e-6, or",
    ),
    (
        (11,),
        r"training images 5 and 8 are proportional once preprocessed \(8 is 1\.[67]\d times 5\) \(and 1 more such\)",
    ),
    ((11, 5), "column CNTK-V: training images 18 and 19 are equal but labelled 2 and 0, so"),
]


@pytest.mark.parametrize("gone, words", SINGULAR)
def test_what_makes_a_gram_matrix_singular_is_named_before_any_tile(greys: Config, gone, words: str):
    with pytest.raises(DataError, match=words) as caught:
        load_images(train_all(without(greys, *gone)))
    assert "\n" not in str(caught.value)


def test_a_ridge_a_network_or_a_draw_without_them_needs_no_word(greys: Config):
    ridge = with_columns(train_all(greys), ridge=1e-6)
    assert load_images(ridge).n_train == 60
    networks = train_all(greys)
    assert load_images(networks.model_copy(update={"columns": (network_of(networks),)})).n_train == 60
    images = load_images(without(ridge, 11))
    position = np.argsort(images.image_index[:59])
    # The first block that holds both images of a pair.
    first = min(max(position[[5, 8]]), max(position[[19, 20]])) + 1

    def block(n: int) -> Config:
        return with_columns(train_all(greys), train=greys.columns[0].train.model_copy(update={"n": n, "draws": 1}))

    assert load_images(block(int(first) - 1)).n_train == 59
    with pytest.raises(DataError, match="the Gram matrix is singular"):
        load_images(block(int(first)))


def network_of(config: Config) -> CnnColumn:
    column = config.columns[0]
    return CnnColumn(model="cnn", readout="gap", depths=(3,), train=column.train, test=column.test)


def test_tested_images_that_were_trained_on_are_counted(config: Config):
    data = dataset()
    data.x_test[[2, 5]] = data.x_train[[3, 4]]
    images = order_images(data, config)
    everything = train_all(config).columns[0]
    assert copies_tested(images, draw(images, everything, "c", 0)) == 2
    some = everything.model_copy(update={"train": everything.train.model_copy(update={"n": 20, "draws": 3})})
    draws = [draw(images, some, "c", k) for k in range(3)]
    assert sum(copies_tested(images, d) for d in draws) == 2
    assert copies_tested(order_images(dataset(), config), draws[0]) == 0


def test_images_standardised_by_hand_and_taken_as_they_are_are_the_same(config: Config):
    data = dataset()
    mean, std = data.x_train.mean(), data.x_train.std()
    by_hand = [(x - mean) / std for x in (data.x_train, data.x_test)]
    none = config.model_copy(update={"data": config.data.model_copy(update={"preprocess": "none"})})
    images = order_images(Dataset("made", by_hand[0], data.y_train, by_hand[1], data.y_test, data.classes), none)
    np.testing.assert_allclose(images.x, order_images(data, config).x, rtol=1e-6)


def test_images_as_they_are_have_another_fingerprint_and_are_not_touched(config: Config):
    none = config.model_copy(update={"data": config.data.model_copy(update={"preprocess": "none"})})
    data = dataset()
    floats = Dataset("made", data.x_train * 3.0 - 200, data.y_train, data.x_test * 3.0 - 200, data.y_test, data.classes)
    images, standard = order_images(floats, none), order_images(floats, config)
    assert images.fields["normalisation"] == {"mean": [0.0], "std": [1.0]}
    assert {k for k, v in images.fields.items() if v != standard.fields[k]} == {"normalisation"}
    first = floats.x_train[images.image_index[0]].astype(np.float32)
    np.testing.assert_array_equal(images.x[0], first.transpose(2, 0, 1))


def test_more_images_than_there_are_is_refused_by_column(config: Config):
    images = order_images(dataset(), config)
    column = config.columns[0]
    with pytest.raises(ConfigError, match=r"column c: train\.n is 61, but there are 60"):
        draw(images, column.model_copy(update={"train": column.train.model_copy(update={"n": 61})}), "c", 0)
    with pytest.raises(ConfigError, match=r"column c: test\.n is 99, but there are 60 images from 'both'"):
        draw(images, column.model_copy(update={"test": column.test.model_copy(update={"n": 99})}), "c", 0)


@pytest.mark.parametrize(
    "balanced, draws, said",
    [
        (True, 2, []),
        (True, 3, [r"^CNTK-V-20: some draws train on no image of a class, such as c, .* order: \{balanced: false\}"]),
        (False, 3, []),
    ],
)
def test_draws_without_a_class_are_told(config: Config, tmp_path: Path, caplog, balanced: bool, draws: int, said):
    """Of 30, 20 and 10 images the balanced order has none of the smallest class after the thirtieth."""
    y = np.repeat(["a", "b", "c"], [30, 20, 10])
    path = tmp_path / "unbalanced.npz"
    np.savez(path, x_train=dataset().x_train, y_train=y, x_test=dataset().x_test, y_test=y[:20])
    data = config.data.model_copy(update={"path": path})
    column = config.columns[0]
    column = column.model_copy(update={"train": column.train.model_copy(update={"n": 20, "draws": draws})})
    order = config.order.model_copy(update={"balanced": balanced})
    warn_once.cache_clear()
    load_images(config.model_copy(update={"data": data, "columns": (column,), "order": order}))
    assert len(caplog.messages) == len(said)
    assert all(map(re.search, said, caplog.messages))


def test_a_draw_with_less_room_than_classes_needs_no_word(config: Config, caplog):
    column = config.columns[0]
    column = column.model_copy(update={"train": column.train.model_copy(update={"n": 2, "draws": 2})})
    load_images(config.model_copy(update={"columns": (column,)}))
    assert caplog.messages == []
