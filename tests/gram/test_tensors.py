"""gram_store: a store of tensors, filled and resumed without a config, and read in blocks; refusals."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk.errors import NtkError, StoreError
from exact_ntk.gram import StoredKernels, compute, gram_store
from exact_ntk.gram.tiles import array_name
from exact_ntk.kernels import cntk
from tests.conftest import digit_arrays
from tests.gram.filling import chunks

DIGITS = digit_arrays(24, 10, side=5)
TRAIN, TEST = (np.moveaxis(DIGITS[f"x_{part}"] / np.float32(255), -1, 1) for part in ("train", "test"))
ASKED = dict(depths=(3, 4), readouts=("vanilla", "gap", "gap-nngp"), tile=7)
ARRAYS = [(readout, depth) for readout in ASKED["readouts"] for depth in ASKED["depths"]]


def everything(found: StoredKernels) -> list[np.ndarray]:
    return [found.matrix(*array) for array in ARRAYS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[np.ndarray]:
    return everything(gram_store(tmp_path_factory.mktemp("whole"), TRAIN, TEST, **ASKED))


def test_it_holds_what_cntk_gives(whole, tmp_path: Path):
    for (readout, depth), k in zip(ARRAYS, whole, strict=True):
        expected = cntk(np.concatenate([TRAIN, TEST]), TRAIN, depths=(depth,), readouts=(readout,))[0, 0].numpy()
        expected[:24] = cntk(TRAIN, depths=(depth,), readouts=(readout,))[0, 0]
        np.testing.assert_array_equal(k, expected)
    tensors = torch.from_numpy(TRAIN).double() / 3
    exact = dict(depths=(3,), readouts=("gap",), dtype=torch.float64)
    found = gram_store(tmp_path, tensors, **exact).matrix("gap", 3)
    np.testing.assert_allclose(found, cntk(tensors, **exact)[0, 0], rtol=1e-13)


def test_a_store_begun_with_other_ends_serves_only_what_does_not_depend_on_them(tmp_path: Path):
    asked = dict(depths=(3,), readouts=("gap-nngp", "gap"), tile=7)
    begun = gram_store(tmp_path, TRAIN, **asked, train_first=True, train_last=True)
    for array, store in begun.stores.items():  # as if killed before its last tile
        (store.path / array_name(array) / "c" / "3" / "3").unlink()
    found = gram_store(tmp_path, TRAIN, **asked)
    np.testing.assert_array_equal(found.matrix("gap", 3), cntk(TRAIN, depths=(3,), readouts=("gap",))[0, 0])


@pytest.mark.parametrize("rows", [None, 1, 5, 100])
def test_blocks_of_rows_are_the_matrix(whole, rows: int | None, tmp_path_factory, tmp_path: Path):
    found = gram_store(tmp_path, TRAIN, TEST, **ASKED)
    blocks = list(found.row_blocks("gap", 4, rows))
    assert [row for at, _ in blocks for row in range(at.start, at.stop)] == list(range(34))
    assert max(len(block) for _, block in blocks) <= (rows or 34)
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole[ARRAYS.index(("gap", 4))])


def test_without_a_block_size_memory_decides(tmp_path: Path, monkeypatch):
    found = gram_store(tmp_path, TRAIN, **{**ASKED, "readouts": ("vanilla",)})
    monkeypatch.setattr("exact_ntk.gram.tensors.BLOCK_BYTES", 8 * 24 * 15)
    assert [at for at, _ in found.row_blocks("vanilla", 3)] == [slice(0, 14), slice(14, 24)]


def test_more_depths_and_readouts_are_added_and_nothing_is_computed_twice(whole, tmp_path: Path, monkeypatch):
    gram_store(tmp_path, TRAIN, TEST, depths=(3,), readouts=("gap",), tile=7)
    before = chunks(tmp_path)
    found = gram_store(tmp_path, TRAIN, TEST, **ASKED)
    assert all(np.array_equal(*pair) for pair in zip(everything(found), whole, strict=True))
    assert before.items() <= chunks(tmp_path).items()
    monkeypatch.setattr(compute, "cntk_pass", None)
    again = gram_store(str(tmp_path), torch.from_numpy(TRAIN), torch.from_numpy(TEST), **{**ASKED, "tile": "auto"})
    assert all(np.array_equal(*pair) for pair in zip(everything(again), whole, strict=True))


KILLED = """
import os, signal, sys
import numpy as np
from exact_ntk.gram import gram_store
from exact_ntk.gram.store import GramStore
from tests.gram.test_tensors import ASKED, TEST, TRAIN

write, left = GramStore.write, [4]

def dying(self, *tile):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *tile)

GramStore.write = dying
gram_store(sys.argv[1], TRAIN, TEST, **ASKED)
"""


def test_killed_and_called_again_it_goes_on_to_the_same_bits(whole, tmp_path: Path):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    before = chunks(tmp_path)
    assert before
    found = gram_store(tmp_path, TRAIN, TEST, **ASKED)
    assert all(np.array_equal(*pair) for pair in zip(everything(found), whole, strict=True))
    assert before.items() <= chunks(tmp_path).items()
    assert len(chunks(tmp_path)) > len(before)


def test_a_damaged_tile_is_computed_anew_where_that_is_asked_for(whole, tmp_path: Path):
    gram_store(tmp_path, TRAIN, TEST, **ASKED)
    victim = next(iter(sorted(tmp_path.glob("gram-*/gap-L4/c/1/0"))))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=r"tile \(1, 0\) of gap-L4 is damaged .*gram_store\(..., repair=True\)"):
        gram_store(tmp_path, TRAIN, TEST, **ASKED).matrix("gap", 4)
    found = gram_store(tmp_path, TRAIN, TEST, **ASKED, repair=True)
    assert all(np.array_equal(*pair) for pair in zip(everything(found), whole, strict=True))


def test_the_diagonal_is_there_when_asked_for(tmp_path: Path):
    asked = {**ASKED, "readouts": ("gap", "gap-nngp")}
    with pytest.raises(ValueError, match="the diagonal of gap-L3 is not there: call gram_store with diagonal=True"):
        gram_store(tmp_path, TRAIN, TEST, **asked).diagonal("gap", 3)
    before = chunks(tmp_path)
    found = gram_store(tmp_path, TRAIN, TEST, **asked, diagonal=True)
    assert before.items() <= chunks(tmp_path).items()
    expected = cntk(np.concatenate([TRAIN, TEST]), depths=(4,), readouts=("gap-nngp",), diagonal=True)[0, 0]
    np.testing.assert_array_equal(found.diagonal("gap-nngp", 4), expected)


def test_values_are_kept_in_float32_where_asked(whole, tmp_path: Path):
    found = gram_store(tmp_path, TRAIN, TEST, **ASKED, store=torch.float32)
    for k, exact in zip(everything(found), whole, strict=True):
        np.testing.assert_array_equal(k, exact.astype(np.float32))
        assert k.dtype == np.float64


REFUSED = {
    "an unknown readout": (dict(readouts=("max",)), "readouts must be distinct names"),
    "a name for names": (dict(readouts="gap"), "must be a sequence of names"),
    "depth 1": (dict(depths=(1,)), "at least 2"),
    "nothing trained": (dict(depths=(2,), readouts=("gap",)), "trains nothing"),
    "test images of another size": (dict(x_test=TEST[..., 1:]), "must hold images of one shape"),
    "integers": (dict(x_train=DIGITS["x_train"]), "x_train must be a floating-point"),
    "a device that is not there": (dict(device="cuda:99"), "torch sees"),
    "half precision": (dict(dtype=torch.float16), "dtype should be 'float32' or 'float64', not torch.float16"),
    "half precision on disk": (dict(store=torch.float16), "store should be"),
    "no tile": (dict(tile=0), "tile should be 'auto' or an integer from 1 to 4096, not 0"),
    "an unknown backend": (dict(backend="jax"), "backend should be .*, not 'jax'"),
    "extreme images": (dict(x_train=TRAIN * np.float32(1e37)), "x: the largest pixel of image 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_one_line_and_leaves_no_folder(case: str, tmp_path: Path):
    changed, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        gram_store(tmp_path / "new", **{"x_train": TRAIN, "x_test": TEST, **ASKED, **changed})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_folder_is_of_one_set_of_images(tmp_path: Path):
    found = gram_store(tmp_path, TRAIN, depths=(3,), readouts=("vanilla",))
    before = chunks(tmp_path)
    for x_train, x_test in ((TRAIN[::-1].copy(), None), (TRAIN, TEST), (TRAIN[:20], None)):
        with pytest.raises(
            StoreError, match=r"other images \(24 training and 0 test images of H x W x C \(5, 5, 1\)\)"
        ):
            gram_store(tmp_path, x_train, x_test, depths=(3,), readouts=("vanilla",))
    assert chunks(tmp_path) == before
    with pytest.raises(ValueError, match="gap-L3 was not asked for: call gram_store for it; here are vanilla-L3"):
        found.matrix("gap", 3)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        next(found.row_blocks("vanilla", 3, 0))


def test_a_file_for_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NtkError, match=r"cannot write in .*file"):
        gram_store(tmp_path / "file", TRAIN, depths=(3,))
