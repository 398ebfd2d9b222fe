"""The Gram store: what is written reads back, what is damaged or foreign is refused by name, nothing good is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.errors import Incomplete, NtkError, StoreError
from exact_ntk.files import fingerprint
from exact_ntk.gram import store as stores
from exact_ntk.gram.store import GramStore
from exact_ntk.gram.tiles import Shape

ROWS, COLUMNS = 13, 9
EVERYTHING = np.arange(ROWS), np.arange(COLUMNS)
FIELDS = {"images": "abc", "train_images": COLUMNS, "test_images": ROWS - COLUMNS}
ARRAYS = [("gap", 3), ("gap", 5), ("gap-nngp", 3), ("gap-nngp", 5)]


def truth(array: tuple[str, int]) -> np.ndarray:
    """(rows, columns), symmetric in the first nine rows."""
    k = np.random.default_rng(ARRAYS.index(array)).normal(size=(ROWS, COLUMNS))
    k[:COLUMNS] += k[:COLUMNS].T.copy()
    return k


def values(store: GramStore, tile: tuple[int, int]) -> dict:
    return {array: truth(array)[store.shape.bounds(tile)] for array in ARRAYS}


def filled(folder: Path, side: int, leave_out: tuple = ()) -> GramStore:
    store = stores.make(folder, FIELDS, side, np.arange(ROWS))
    for array in ARRAYS:
        store.add(array)
    for tile in sorted(store.shape.covering(*EVERYTHING)):
        if tile not in leave_out:
            store.write(tile, values(store, tile))
    return store


def again(store: GramStore) -> GramStore:
    return stores.open(store.path, FIELDS)


def chunk(store: GramStore, name: str, tile: tuple[int, int]) -> Path:
    return store.path / name / "c" / str(tile[0]) / str(tile[1])


def flip_byte(path: Path, at: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_value_that_float32_cannot_hold_is_refused(tmp_path: Path):
    store = stores.make(tmp_path, {**FIELDS, "stored": "float32"}, 20, np.arange(ROWS))
    store.add(("gap", 3))
    with pytest.raises(StoreError, match=r"tile \(0, 0\) came out inf for gap at depth 3"):
        store.write((0, 0), {("gap", 3): np.full((ROWS, COLUMNS), 1e39)})
    assert not store.finished(("gap", 3))


@given(
    st.integers(1, 15),
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, COLUMNS - 1), min_size=1, max_size=8),
)
def test_any_selection_reads_back_for_any_side(tmp_path_factory, side, rows, columns):
    store = again(filled(tmp_path_factory.mktemp("store"), side))
    for readout, depth in ARRAYS[1:3]:
        k = store.read(readout, depth, np.array(rows), np.array(columns))
        np.testing.assert_array_equal(k, truth((readout, depth))[np.ix_(rows, columns)])


@pytest.mark.parametrize("side", [1, 2, 4, 5, 20])
def test_each_chunk_is_read_once_and_no_other_array(tmp_path: Path, side: int, monkeypatch):
    store = filled(tmp_path, side)
    reads: list[tuple] = []
    real = GramStore._read_tile

    def counted(self, array, tile):
        reads.append((array, tile))
        return real(self, array, tile)

    monkeypatch.setattr(GramStore, "_read_tile", counted)
    store.read("gap", 5, *EVERYTHING)
    assert sorted(reads) == [(("gap", 5), tile) for tile in sorted(store.shape.covering(*EVERYTHING))]


def test_no_tile_above_the_diagonal_is_needed():
    shape = Shape(ROWS, COLUMNS, 4)
    assert all(i >= j for i, j in shape.covering(*EVERYTHING))
    assert shape.covering(np.array([0]), np.array([8])) == {(2, 0)}
    assert shape.pairs((0, 0)) == 10
    assert shape.pairs((1, 0)) == 16
    assert shape.pairs((3, 2)) == 1


def test_a_missing_tile_is_never_read_as_a_value(tmp_path: Path):
    store = filled(tmp_path, 4, leave_out=((2, 1),))
    needed = store.shape.covering(*EVERYTHING)
    assert needed - store.finished(("gap", 3)) == {(2, 1)}
    assert not store.complete(ARRAYS, needed)
    with pytest.raises(Incomplete, match="1 tiles are missing"):
        store.read("gap", 3, *EVERYTHING)
    assert np.isfinite(store.read("gap", 3, np.arange(4), np.arange(4))).all()


def test_one_array_may_lack_what_another_has(tmp_path: Path):
    store = filled(tmp_path, 4)
    chunk(store, "gap-L5", (1, 0)).unlink()
    assert not store.has(("gap", 5), (1, 0))
    assert store.has(("gap", 3), (1, 0))
    assert not store.complete([("gap", 5)], {(1, 0)})
    np.testing.assert_array_equal(store.read("gap", 3, *EVERYTHING), truth(("gap", 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_before_any_write(tmp_path: Path, value: float):
    store = filled(tmp_path, 4, leave_out=((0, 0),))
    bad = {array: block.copy() for array, block in values(store, (0, 0)).items()}
    bad["gap-nngp", 3][2, 3] = value
    with pytest.raises(StoreError, match=r"tile \(0, 0\) .* gap-nngp at depth 3, images 2 and 3"):
        store.write((0, 0), bad)
    assert not any(store.has(array, (0, 0)) for array in ARRAYS)


def test_a_flipped_byte_is_found_named_and_mended(tmp_path: Path):
    store = filled(tmp_path, 4)
    flip_byte(chunk(store, "gap-L3", (2, 1)))
    with pytest.raises(StoreError, match=r"tile \(2, 1\) of gap-L3 is damaged .* --repair"):
        store.read("gap", 3, *EVERYTHING)
    np.testing.assert_array_equal(store.read("gap", 5, *EVERYTHING), truth(("gap", 5)))
    tiles = {(2, 1), (1, 1)}
    assert store.damaged(dict.fromkeys(ARRAYS, tiles)) == [(("gap", 3), (2, 1))]
    assert not store.discard(("gap", 3), (1, 1))
    assert store.discard(("gap", 3), (2, 1))
    assert not store.has(("gap", 3), (2, 1))
    store.write((2, 1), {("gap", 3): truth(("gap", 3))[store.shape.bounds((2, 1))]})
    np.testing.assert_array_equal(store.read("gap", 3, *EVERYTHING), truth(("gap", 3)))


def test_a_disk_that_fails_is_not_damage(tmp_path: Path, monkeypatch):
    store = filled(tmp_path, 4)

    def fail(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("zarr.storage._local._get", fail)
    with pytest.raises(NtkError, match=r"cannot read tile .*Too many open files"):
        store.damaged({("gap", 3): [(0, 0)]})


def test_a_truncated_tile_is_damaged(tmp_path: Path):
    store = filled(tmp_path, 4)
    path = chunk(store, "gap-L3", (0, 0))
    path.write_bytes(path.read_bytes()[:100])
    assert store.damaged({("gap", 3): [(0, 0)]}) == [(("gap", 3), (0, 0))]


def test_a_renamed_or_copied_store_is_refused(tmp_path: Path):
    store = filled(tmp_path, 4)
    other = {**FIELDS, "images": "xyz"}
    copy = stores.store_path(tmp_path, other, 4)
    shutil.copytree(store.path, copy)
    with pytest.raises(StoreError, match="another images than this config's"):
        stores.make(tmp_path, other, 4, np.arange(ROWS))
    with pytest.raises(StoreError, match="renamed or edited"):
        stores.open(copy)
    shutil.copytree(store.path, stores.store_path(tmp_path, FIELDS, 5))
    with pytest.raises(StoreError, match="renamed or edited"):
        stores.make(tmp_path, FIELDS, 5, np.arange(ROWS))


def test_a_copied_array_is_refused_by_what_it_belongs_to(tmp_path: Path):
    store = filled(tmp_path, 4)
    shutil.copytree(store.path / "gap-L3", store.path / "gap-L7")
    with pytest.raises(StoreError, match=r"gap-L7: belongs to another depth \(3, not 7\)"):
        again(store).read("gap", 7, *EVERYTHING)
    shutil.rmtree(store.path / "gap-L5")
    shutil.copytree(store.path / "gap-nngp-L5", store.path / "gap-L5")
    with pytest.raises(StoreError, match="gap-L5: belongs to another readout"):
        again(store).read("gap", 5, *EVERYTHING)


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda a: a["fields"].update(images="xyz"), "another images"),
        (lambda a: a["fields"].update(extra=1), "another extra"),
        (lambda a: a.update(side=5), "renamed or edited"),
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
        again(store)


def test_what_is_not_a_store_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="not a Gram store"):
        stores.open(tmp_path, FIELDS)
    store = filled(tmp_path, 4)
    (store.path / "gap-L3" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"or its metadata are damaged .* delete its zarr\.json"):
        again(store).read("gap", 3, *EVERYTHING)
    (store.path / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="not a Gram store"):
        again(store)


@pytest.mark.parametrize("lost", ["zarr.json", "gap-L3/zarr.json", "image_index", "image_index/zarr.json"])
def test_lost_metadata_are_written_anew_at_no_tiles_cost(tmp_path: Path, lost: str):
    store = filled(tmp_path, 4)
    before = {p: p.stat().st_mtime_ns for p in store.path.rglob("c/*/*")}
    gone = store.path / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    mended = stores.make(tmp_path, FIELDS, 4, np.arange(ROWS))
    for readout, depth in ARRAYS:
        np.testing.assert_array_equal(mended.read(readout, depth, *EVERYTHING), truth((readout, depth)))
    assert {p: p.stat().st_mtime_ns for p in before if "image_index" not in p.parts}.items() <= before.items()
    again(store)


def test_making_what_is_there_opens_it(tmp_path: Path):
    filled(tmp_path, 4)
    store = stores.make(tmp_path, FIELDS, 4, np.arange(ROWS))
    store.add(("gap", 3))
    assert store.arrays() == sorted(ARRAYS)
    assert store.has(("gap", 3), (0, 0))
    assert not list(tmp_path.rglob(".*partial"))
    stores.make(tmp_path, FIELDS, 7, np.arange(ROWS))
    assert list(stores.sides_in(tmp_path).values()) == [[7, 4]]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("what", ["create_group", "create_array"])
def test_what_killed_makers_leave_goes_with_the_next(tmp_path: Path, what: str, monkeypatch):
    """A store's and an array's: rmtree is kept from tidying up, as by kill -9."""

    def killed(*_, **__):
        raise KilledError

    make_it = getattr(zarr, what)
    with monkeypatch.context() as patch:
        patch.setattr(zarr, what, lambda *a, **k: (make_it(*a, **k), killed()))
        patch.setattr("exact_ntk.gram.store.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KilledError):
            filled(tmp_path, 4)
    assert list(tmp_path.glob("**/.*.partial"))
    store = filled(tmp_path, 4)
    assert not list(tmp_path.glob("**/.*.partial"))
    assert store.read("gap", 3, [0], [0]) == truth(("gap", 3))[0, 0]


def test_stores_of_an_earlier_format_are_known(tmp_path: Path):
    filled(tmp_path, 4)
    old = tmp_path / f"gram-{fingerprint(FIELDS)}"
    old.mkdir()
    assert stores.other_formats(tmp_path) == [old]
    assert list(stores.sides_in(tmp_path).values()) == [[4]]


def test_a_claimed_tile_is_nobody_elses_and_leftovers_go_under_the_lock(tmp_path: Path):
    store = filled(tmp_path, 4, leave_out=((1, 0),))
    leftovers = [chunk(store, name, (1, 0)).with_name("0.1234.partial") for name in ("gap-L3", "gap-nngp-L5")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    lock = store.claim((1, 0))
    assert lock is not None
    assert not any(leftover.exists() for leftover in leftovers)
    leftovers[0].write_bytes(b"of the holder at work")
    assert again(store).claim((1, 0)) is None
    assert leftovers[0].exists()
    lock.release()
    other = again(store).claim((1, 0))
    assert other is not None
    other.release()
    leftovers[0].write_bytes(b"of another process, as far as can be told")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exact_ntk.locks._flock", lambda *_: False)
        store.claim((1, 0)).release()
    assert leftovers[0].exists()


def test_a_lock_file_stays_until_every_array_has_the_tile(tmp_path: Path):
    store = filled(tmp_path, 4, leave_out=((1, 0),))
    path = store.path / ".locks" / "1.0"
    for array, stays in zip(ARRAYS, (True, True, True, False), strict=True):
        lock = store.claim((1, 0))
        store.write((1, 0), {array: truth(array)[store.shape.bounds((1, 0))]})
        lock.release()
        assert path.exists() == stays


def test_a_full_disk_is_said_during_a_write(tmp_path: Path, monkeypatch):
    store = filled(tmp_path, 4, leave_out=((1, 1),))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", full)
    with pytest.raises(NtkError, match=r"cannot write tile \(1, 1\).*No space left.*finished tiles are safe"):
        store.write((1, 1), values(store, (1, 1)))
    monkeypatch.undo()
    assert not any(store.has(array, (1, 1)) for array in ARRAYS)


def test_unknown_readouts_and_depths_are_refused(tmp_path: Path):
    store = filled(tmp_path, 4)
    with pytest.raises(ValueError, match="not vanilla-L3"):
        store.read("vanilla", 3, np.arange(2), np.arange(2))
