"""What `cntk` and `ntk` take as images, depths and devices, and the one line for what they do not."""

from functools import partial

import numpy as np
import pytest
import torch

from exact_ntk import kernels
from exact_ntk.kernels import backends, cntk, ntk
from exact_ntk.kernels.inputs import LARGEST_PIXEL
from tests.kernels.peak import peak_bytes
from tests.kernels.test_reference import images

X = images(3, (2, 4, 3))
V = X.flatten(1)


def small(x=X, y=None, **options):
    return cntk(x, y, **{"depths": (3,), "backend": "reference", "dtype": torch.float64, **options})


def test_arrays_and_lists_stand_for_tensors():
    expected, vectors = small(), ntk(V, hidden_layers=1)
    array = X.numpy()
    fixed = array.copy()
    fixed.flags.writeable = False
    backwards = np.ascontiguousarray(array[::-1])[::-1]
    swapped = array.astype(array.dtype.newbyteorder())
    for same in (array, fixed, backwards, swapped, array.tolist(), list(X), np.asfortranarray(array)):
        assert torch.equal(small(same), expected)
        assert torch.equal(small(X, same), small(X, X))
    for same in (V.numpy(), V.tolist(), list(V)):
        assert torch.equal(ntk(same, hidden_layers=1), vectors)
        assert torch.equal(ntk(V, same, hidden_layers=1), vectors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_half_precision_is_exact_in_the_next(dtype):
    x = X.to(dtype)
    assert torch.equal(small(x, dtype=torch.float32), small(x.float(), dtype=torch.float32))
    assert torch.equal(ntk(V.to(dtype), hidden_layers=2), ntk(V.to(dtype).float(), hidden_layers=2))


BAD_IMAGES = {
    "integers": (torch.ones(2, 1, 4, 4, dtype=torch.uint8), r"floating-point tensor \(n1, C, H, W\), not torch.uint8"),
    "booleans": (np.ones((2, 1, 4, 4), bool), "not torch.bool"),
    "complex numbers": (X.to(torch.complex128), "not torch.complex128"),
    "a rank too few": (X[0], r"\(n1, C, H, W\), not torch.float64 \(2, 4, 3\)"),
    "a rank too many": (X[None], r"not torch.float64 \(1, 3, 2, 4, 3\)"),
    "no images": (X[:0], "non-empty"),
    "no pixels": (X[:, :, :0], "non-empty"),
    "an empty list": ([], "non-empty"),
    "NaN": (X / 0 * 0, "NaN"),
    "words": (np.array([["a"]]), "must be a tensor, an array or nested lists of numbers"),
    "a ragged list": ([[1.0], [1.0, 2.0]], "nested lists of numbers"),
    "objects": (np.array([{}]), "nested lists of numbers"),
    "nothing": (None, "nested lists of numbers"),
    "a sparse tensor": (X.to_sparse(), "dense tensor .* not torch.sparse_coo"),
    "no values": (torch.ones(2, 1, 4, 4, device="meta"), "on meta"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_that_cannot_be_meant_are_refused(case: str):
    bad, words = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=words):
        small(bad)
    with pytest.raises(ValueError, match=r"x1 .*n1, d|x1 holds"):
        ntk(bad, hidden_layers=1)
    if bad is not None:
        with pytest.raises(ValueError, match="x2"):
            small(X, bad)
        with pytest.raises(ValueError, match="x2"):
            ntk(V, bad, hidden_layers=1)


BAD_OPTIONS = {
    "depths=4": (dict(depths=4), r"sequence of integers, such as \(3,\), not 4"),
    "depths='34'": (dict(depths="34"), "sequence of integers"),
    "depths of halves": (dict(depths=(3.5,)), "sequence of integers"),
    "no depths": (dict(depths=()), "at least 2"),
    "a word for readouts": (dict(readouts="gap"), r"sequence of names, such as \('gap',\), not 'gap'"),
    "a number for readouts": (dict(readouts=1), "sequence of names"),
    "an unknown readout": (dict(readouts=("pooled",)), "pooled"),
    "device=meta": (dict(device="meta"), "cpu, cuda or cuda:N, not meta"),
    "device=gpu": (dict(device="gpu"), "not 'gpu'"),
    "a GPU that is not there": (dict(device="cuda:99"), "device cuda:99: torch sees"),
    "a word for a dtype": (dict(dtype="float32"), "dtype must be torch.float32 or torch.float64"),
    "half precision": (dict(dtype=torch.float16), "dtype must be torch.float32 or torch.float64"),
    "a word for a flag": (dict(train_first="no"), "train_first must be True, False or None, not 'no'"),
    "a number for a flag": (dict(train_last=1), "train_last must be"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_cannot_be_meant_are_refused(case: str):
    options, words = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=words):
        small(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(hidden_layers=1.5), "hidden_layers"),
        (dict(hidden_layers="2"), "hidden_layers"),
        (dict(hidden_layers=0), "at least 1"),
        (dict(hidden_layers=1, device="meta"), "not meta"),
        (dict(hidden_layers=1, activation=["relu"]), "activation must be"),
        (dict(hidden_layers=1, activation=torch.relu), "activation must be"),
    ],
)
def test_options_of_fully_connected_kernels_too(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        ntk(V, **options)


def test_integers_and_flags_of_any_kind_will_do():
    expected = small(depths=(3, 4), train_first=True, readouts=("gap",))
    for depths in ([3, 4], np.array([3, 4]), torch.tensor([3, 4]), range(3, 5), (d for d in (3, 4))):
        assert torch.equal(small(depths=depths, train_first=np.True_, readouts=["gap"]), expected)
    assert torch.equal(ntk(V, hidden_layers=np.int64(2)), ntk(V, hidden_layers=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_beyond_the_arithmetic_are_refused_and_those_within_are_not(dtype):
    most = LARGEST_PIXEL[dtype]
    largest = float(X.abs().max())
    expected = small(dtype=dtype)
    for scale in (0.9 * most / largest, 2 / most / float(X.flatten(1).abs().amax(1).min())):
        assert torch.allclose(small(X * scale, dtype=dtype) / scale / scale, expected, rtol=1e-5)
    blank = torch.cat([X[:1], 0 * X[:1]])
    assert bool(small(blank, dtype=dtype).isfinite().all())
    for scale in (2 * most, 0.01 / most):
        with pytest.raises(ValueError, match=r"x2: the largest pixel of image 1 is .*: rescale it"):
            small(X, torch.cat([X[:1], X[1:] * scale]), dtype=dtype)


def test_memory_for_one_pair_is_asked_for_first(monkeypatch):
    large = torch.ones(1, 1, 224, 224)
    monkeypatch.setattr(backends, "available_memory", lambda device: 10 * 10**9)
    words = r"one pair of 224 x 224 images takes 120.8 GB with gap readouts in reference-cpu, and 10.0 GB are free"
    with pytest.raises(MemoryError, match=words) as caught:
        cntk(large, depths=(3,), readouts=("gap",))
    assert str(caught.value).endswith("images up to 120 x 120 fit, or vanilla readouts, which take a 50,176th")
    assert kernels.reference.bytes_a_pair("gap", torch.float32, 120, 120) < 10 * 10**9
    assert kernels.reference.bytes_a_pair("gap", torch.float32, 121, 121) > 10 * 10**9
    assert cntk(large, depths=(3,), readouts=("vanilla",)).shape == (1, 1, 1, 1)
    monkeypatch.setattr(backends, "available_memory", lambda device: 1000)
    kernels.require_memory("fused-cpu", torch.device("cpu"), "gap", torch.float32, 32, 32)
    with pytest.raises(MemoryError, match=r"images up to 1 x 1 fit$"):
        cntk(torch.ones(1, 1, 30, 20), depths=(3,), readouts=("vanilla",), backend="reference")


def test_the_memory_said_is_what_a_pair_takes():
    """Counted by torch's profiler."""
    x, y, job = *images(2, (1, 20, 20)).split(1), kernels.Pass("gap", (3, 4), ("gap", "gap-nngp"), True, True)
    for dtype in (torch.float32, torch.float64):
        said = kernels.reference.bytes_a_pair("gap", dtype, 20, 20)
        assert said == pytest.approx(peak_bytes(partial(kernels.reference.cntk_pass, x, y, job, dtype)), rel=0.1)
