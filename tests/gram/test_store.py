"""The Gram store: what is written reads back, what is damaged or foreign is refused by name, nothing good is lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.errors import Incomplete, NtkError, StoreError
from exact_ntk.gram import store as stores
from exact_ntk.gram.store import Shape

ROWS, COLUMNS = 13, 9
FIELDS = {"images": "abc", "readouts": ["gap", "gap-nngp"], "depths": [3, 5], "train_images": 9, "test_images": 4}


def truth() -> np.ndarray:
    """(readouts, depths, rows, columns), symmetric in the first nine rows."""
    k = np.random.default_rng(0).normal(size=(2, 2, ROWS, COLUMNS))
    k[..., :COLUMNS, :] += k[..., :COLUMNS, :].swapaxes(-1, -2)
    return k


def filled(folder: Path, tile: int, leave_out: tuple = ()) -> stores.GramStore:
    path = stores.store_path(folder, FIELDS)
    store = stores.create(path, FIELDS, tile, np.arange(ROWS))
    for t in sorted(store.shape.covering(np.arange(ROWS), np.arange(COLUMNS))):
        if t not in leave_out:
            store.write(t, truth()[(..., *store.shape.bounds(t))])
    return store


def chunk(store: stores.GramStore, readout: str, tile: tuple[int, int]) -> Path:
    return store.path / readout / "c" / "0" / str(tile[0]) / str(tile[1])


def flip_byte(path: Path, at: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@given(
    st.integers(1, 15),
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, COLUMNS - 1), min_size=1, max_size=8),
)
def test_any_selection_reads_back_for_any_tile_size(tmp_path_factory, tile, rows, columns):
    store = filled(tmp_path_factory.mktemp("store"), tile)
    for slot, readout in enumerate(FIELDS["readouts"]):
        k = stores.open(store.path).read(readout, 5, np.array(rows), np.array(columns))
        np.testing.assert_array_equal(k, truth()[slot, 1][np.ix_(rows, columns)])


def test_no_tile_above_the_diagonal_is_needed():
    shape = Shape(("gap",), (3,), ROWS, COLUMNS, 4)
    assert all(i >= j for i, j in shape.covering(np.arange(ROWS), np.arange(COLUMNS)))
    assert shape.covering(np.array([0]), np.array([8])) == {(2, 0)}


def test_a_missing_tile_is_never_read_as_a_value(tmp_path: Path):
    store = filled(tmp_path, 4, leave_out=((2, 1),))
    everything = np.arange(ROWS), np.arange(COLUMNS)
    assert store.missing(store.shape.covering(*everything)) == [(2, 1)]
    with pytest.raises(Incomplete, match="1 tiles are missing"):
        store.read("gap", 3, *everything)
    assert np.isfinite(store.read("gap", 3, np.arange(4), np.arange(4))).all()


def test_a_tile_with_only_one_readout_is_not_finished(tmp_path: Path):
    store = filled(tmp_path, 4)
    chunk(store, "gap-nngp", (1, 0)).unlink()
    assert store.missing([(1, 0), (1, 1)]) == [(1, 0)]
    assert not store.has((1, 0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_before_the_write(tmp_path: Path, value: float):
    store = filled(tmp_path, 4, leave_out=((0, 0),))
    bad = truth()[..., :4, :4].copy()
    bad[1, 0, 2, 3] = value
    with pytest.raises(StoreError, match=r"tile \(0, 0\) .* gap-nngp at depth 3, images 2 and 3"):
        store.write((0, 0), bad)
    assert not store.has((0, 0))


def test_a_flipped_byte_is_found_named_and_mended(tmp_path: Path):
    store = filled(tmp_path, 4)
    flip_byte(chunk(store, "gap", (2, 1)))
    with pytest.raises(StoreError, match=r"tile \(2, 1\) of gap is damaged .* --repair"):
        store.read("gap", 3, np.arange(ROWS), np.arange(COLUMNS))
    assert store.damaged([(2, 1), (1, 1)]) == [(2, 1)]
    store.discard((2, 1))
    assert store.missing([(2, 1), (1, 1)]) == [(2, 1)]
    store.write((2, 1), truth()[(..., *store.shape.bounds((2, 1)))])
    np.testing.assert_array_equal(store.read("gap", 3, np.arange(9), np.arange(9)), truth()[0, 0, :9])


def test_a_truncated_tile_is_damaged(tmp_path: Path):
    store = filled(tmp_path, 4)
    path = chunk(store, "gap", (0, 0))
    path.write_bytes(path.read_bytes()[:100])
    assert store.damaged([(0, 0)]) == [(0, 0)]


def test_a_renamed_store_is_refused(tmp_path: Path):
    store = filled(tmp_path, 4)
    other = {**FIELDS, "images": "xyz"}
    store.path.rename(stores.store_path(tmp_path, other))
    with pytest.raises(StoreError, match="another images than this config's"):
        stores.open(stores.store_path(tmp_path, other), other)
    with pytest.raises(StoreError, match="renamed or edited"):
        stores.open(stores.store_path(tmp_path, other))


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda a: a["fields"].update(images="xyz"), "another images"),
        (lambda a: a["fields"].update(extra=1), "another extra"),
        (lambda a: a.update(tile=5), "not laid out as the attributes state"),
        (lambda a: a.update(format=99), "has format 99"),
        (lambda a: a.pop("fields"), "metadata are damaged"),
        (lambda a: a.update(image_index_digest="0"), "image_index"),
    ],
)
def test_an_edited_store_is_refused_by_field(tmp_path: Path, edit, words: str):
    store = filled(tmp_path, 4)
    path = store.path / "zarr.json"
    tree = json.loads(path.read_text())
    edit(tree["attributes"])
    path.write_text(json.dumps(tree))
    with pytest.raises(StoreError, match=words):
        stores.open(store.path, FIELDS)


def test_what_is_not_a_store_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="not a Gram store"):
        stores.open(tmp_path, FIELDS)
    store = filled(tmp_path, 4)
    (store.path / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="not a Gram store"):
        stores.open(store.path, FIELDS)


def test_creating_a_store_that_is_there_opens_it_with_its_own_tile_size(tmp_path: Path):
    store = filled(tmp_path, 4)
    again = stores.create(store.path, FIELDS, 7, np.arange(ROWS))
    assert again.shape.tile == 4
    assert again.has((0, 0))
    assert not list(tmp_path.glob(".*partial"))


def test_a_claimed_tile_is_nobody_elses_and_leftovers_go(tmp_path: Path):
    store = filled(tmp_path, 4, leave_out=((1, 0),))
    leftover = chunk(store, "gap", (1, 0)).with_name("0.1234.partial")
    leftover.write_bytes(b"half")
    lock = store.claim((1, 0))
    assert lock is not None
    assert not leftover.exists()
    assert stores.open(store.path).claim((1, 0)) is None
    lock.release()
    again = stores.open(store.path).claim((1, 0))
    assert again is not None
    again.release()


def test_a_full_disk_is_said_before_the_start_and_during_a_write(tmp_path: Path, monkeypatch):
    store = filled(tmp_path, 4, leave_out=((1, 1),))
    with pytest.raises(NtkError, match=r"tiles need .* MB and the disk has"):
        stores.check_space(store.path, 10**18)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", full)
    with pytest.raises(NtkError, match=r"cannot write tile \(1, 1\).*No space left.*finished tiles are safe"):
        store.write((1, 1), truth()[(..., *store.shape.bounds((1, 1)))])
    monkeypatch.undo()
    assert store.missing(store.shape.covering(np.arange(ROWS), np.arange(COLUMNS))) == [(1, 1)]


def test_unknown_readouts_and_depths_are_refused(tmp_path: Path):
    store = filled(tmp_path, 4)
    with pytest.raises(ValueError, match="not vanilla at 3"):
        store.read("vanilla", 3, np.arange(2), np.arange(2))
