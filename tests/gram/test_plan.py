"""The side of a store's tiles: by work and by files, and stores of several sides beside each other."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from exact_ntk.gram import store as stores
from exact_ntk.gram.plan import MOST_FILES, plan_fills, shard_of, tile_side
from exact_ntk.gram.shelf import Request, Shelf
from exact_ntk.gram.sources import Source
from exact_ntk.gram.store import GramStore
from exact_ntk.gram.tiles import Shape


@cache
def source(train: int, test: int = 0) -> Source:
    fields = {"train_images": train, "test_images": test}
    images = SimpleNamespace(fields=fields, n_train=train, n_test=test, image_index=np.arange(train + test))
    return Source("gap", False, False, "reference-cpu", "float32", images)


def requests(train: int, draws: int, n: int, test: int = 0, depths: int = 1) -> list[Request]:
    tested = np.arange(train, train + test)
    taken = [np.arange(k * n, (k + 1) * n) for k in range(draws)]
    blocks = tuple((rows, d) for d in taken for rows in (d, tested) if len(rows))
    return [Request("CNTK-GAP", (("gap", 3 + k),), (source(train, test),), blocks) for k in range(depths)]


def files(asked: list[Request], side: int) -> int:
    images = asked[0].sources[0].images
    shape = Shape(images.n_train + images.n_test, images.n_train, side)
    return sum(len(request.tiles(shape)) for request in asked)


@pytest.mark.parametrize(
    ("images", "rate", "depths", "side"),
    [
        (2000, 100.0, 5, 50),  # half a minute, and 2000 is whole tiles
        (2000, 0.1, 1, 16),  # never so small that files are what there is most of
        (2000, 1e9, 5, 500),  # never so large that a kill loses much
        (50_000, 1e9, 5, 2500),  # nor more than 256 MB
        (7, 1e9, 1, 2),
    ],
)
def test_the_side_of_a_tile(images: int, rate: float, depths: int, side: int):
    asked = requests(images, 1, images, depths=depths)
    assert tile_side(asked, asked[0].sources[0].images, rate) == side


def test_many_small_draws_make_few_files():
    """10 images x 20 draws, tested on 797: a standard protocol."""
    asked = requests(1000, 20, 10, test=797)
    side = tile_side(asked, asked[0].sources[0].images, 1e6)
    assert files(asked, side) < 100


@pytest.mark.parametrize("rate", [1.0, 100.0, 1e5])
def test_no_request_takes_more_files_than_a_quota_holds(rate: float):
    asked = requests(50_000, 1, 50_000, test=10_000, depths=5)
    side = tile_side(asked, asked[0].sources[0].images, rate)
    assert files(asked, side) <= MOST_FILES
    assert 8 * 5 * side**2 <= 256 << 20


def test_a_store_of_an_unfit_side_gets_one_of_another_beside_it_and_either_is_read(tmp_path: Path):
    shelf = Shelf(tmp_path)
    small, large = requests(1000, 20, 10, test=797), requests(1000, 1, 1000, test=797)
    shelf_of_tiny = Shelf(tmp_path / "tiny")
    (tmp_path / "tiny").mkdir()
    (fill,) = plan_fills(small, shelf, lambda *_: 1e6)
    side = fill.store.shape.side
    assert side < 200
    # The same store goes on for what it is fit for.
    (again,) = plan_fills(requests(1000, 1, 200, test=797), shelf, lambda *_: 1e6)
    assert again.store.path == fill.store.path
    (tiny,) = plan_fills(small, shelf_of_tiny, lambda *_: 1e6, side=2)
    assert tiny.store.shape.side == 2
    (beside,) = plan_fills(large, Shelf(tmp_path / "tiny"), lambda *_: 1e6)
    assert beside.store.shape.side > 100
    assert len(list((tmp_path / "tiny").glob("gram-*"))) == 2


def test_a_store_whose_tiles_are_far_too_large_is_left_alone(tmp_path: Path):
    """Ten images do not wait for tiles of a thousand."""
    shelf = Shelf(tmp_path)
    plan_fills(requests(2000, 1, 2000), shelf, lambda *_: 1e9, side=1000)
    (fill,) = plan_fills(requests(2000, 1, 20), shelf, lambda *_: 100.0)
    assert fill.store.shape.side < 20


def test_processes_that_measure_other_rates_agree_on_one_store(tmp_path: Path):
    """Both have seen no store when they begin to measure; each measures another pace."""
    asked, paces = requests(4000, 1, 4000), iter([700.0, 1100.0])
    barrier = threading.Barrier(2)

    def rate(source: Source, group: list[Request]) -> float:
        pace = next(paces)
        barrier.wait()
        return pace

    def plan(_: int) -> Path:
        (fill,) = plan_fills(asked, Shelf(tmp_path), rate)
        return fill.store.path

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(plan, range(2)))) == 1


def test_of_several_begun_stores_the_fullest_is_gone_on_with(tmp_path: Path):
    shelf, asked = Shelf(tmp_path), requests(1000, 1, 1000)
    small, _ = (shelf.store(source(1000), side) for side in (100, 160))
    small.add(("gap", 3))
    for tile in sorted(asked[0].tiles(small.shape))[:-5]:
        rows, columns = small.shape.bounds(tile)
        small.write(tile, {("gap", 3): np.ones((rows.stop - rows.start, columns.stop - columns.start))})
    (fill,) = plan_fills(asked, shelf, lambda *_: 1000.0)
    assert fill.store.path == small.path
    assert len(fill.work) == 5


def test_what_a_plan_looks_up_does_not_grow_with_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked, shelf = requests(1000, 1, 1000) * 30, Shelf(tmp_path)
    shelf.store(source(1000), 100).add(("gap", 3))
    seen: Counter[str] = Counter()

    def counted(name: str, function):
        return lambda *arguments: seen.update([name]) or function(*arguments)

    monkeypatch.setattr(stores, "sides_in", counted("folder", stores.sides_in))
    monkeypatch.setattr(GramStore, "finished", counted("array", GramStore.finished))
    (fill,) = plan_fills(asked, shelf, counted("rate", lambda *_: 1000.0))
    assert len(fill.requests) == 30
    assert seen == {"folder": 2, "array": 2, "rate": 1}  # again under the lock


def test_every_tile_has_one_shard_whatever_else_is_asked_for():
    shape = Shape(500, 400, 10)
    tiles = shape.covering(np.arange(500), np.arange(400))
    for shards in (1, 2, 3, 7):
        counts = np.bincount([shard_of(tile, shards) for tile in tiles], minlength=shards + 1)
        assert counts[0] == 0
        assert counts[1:].min() > 0.8 * len(tiles) / shards
