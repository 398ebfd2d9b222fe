"""Images and labels as others store them: taken where there is no doubt, else refused with what mends them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.data.arrays import read_images, read_labels
from exact_ntk.errors import DataError

N = 12


def images(*shape: int, **options) -> np.ndarray:
    return read_images("f", "x", np.zeros(shape, np.uint8), labels=shape[0], **options)


@pytest.mark.parametrize(
    "shape", [(N, 8, 8), (N, 8, 8, 1), (N, 8, 8, 3), (N, 5, 7, 4), (N, 12, 12, 8), (N, 1, 784, 1), (N, 4, 4, 4)]
)
def test_channels_last_is_taken(shape: tuple[int, ...]):
    assert images(*shape).shape == (*shape, 1)[:4]
    assert images(*shape, layout="nhwc").shape == (*shape, 1)[:4]


@pytest.mark.parametrize("shape", [(N, 3, 8, 8), (N, 1, 28, 28), (N, 3, 32, 40), (N, 10, 32, 32), (N, 4, 5, 6)])
def test_channels_first_is_refused_by_its_axes_and_taken_by_name(shape: tuple[int, ...]):
    for layout in (None, "nhwc"):
        with pytest.raises(DataError, match=r"f: x: shape .* read as N x H x W x C is .* set data\.layout: nchw"):
            images(*shape, layout=layout)
    assert images(*shape, layout="nchw").shape == (shape[0], shape[2], shape[3], shape[1])


def test_channels_first_has_the_bytes_of_channels_last():
    x = np.random.default_rng(0).integers(0, 256, (N, 5, 6, 3)).astype(np.uint8)
    read = read_images("f", "x", x.transpose(0, 3, 1, 2), N, "nchw")
    np.testing.assert_array_equal(read, x)
    assert read.flags.c_contiguous


def test_channels_last_under_nchw_is_refused_too():
    with pytest.raises(DataError, match=r"N x C x H x W is 8 x 3 pixels of 8 channels: .* set data\.layout: nhwc"):
        images(N, 8, 8, 3, layout="nchw")


@pytest.mark.parametrize("shape", [(N, 3, 4, 4), (N, 1, 3, 3), (N, 1, 4, 4)])
def test_tiny_images_that_may_be_either_are_asked_about(shape: tuple[int, ...]):
    with pytest.raises(DataError, match=r"say which by data\.layout: nhwc, or nchw"):
        images(*shape)
    assert images(*shape, layout="nhwc").shape == shape
    assert images(*shape, layout="nchw").shape == (shape[0], *shape[2:], shape[1])


def test_many_channels_are_taken_by_name():
    with pytest.raises(DataError, match=r"100 channels, but channels are .* set data\.layout: nhwc"):
        images(N, 9, 9, 100)
    assert images(N, 9, 9, 100, layout="nhwc").shape == (N, 9, 9, 100)
    assert images(N, 100, 9, 9, layout="nchw").shape == (N, 9, 9, 100)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((N, 28, 28, 28), r"volumes, N x D x H x W \(12, 28, 28, 28\).* x\[:, 14\]"),
        ((N, 28, 28, 28, 1), r"volumes, N x D x H x W x C .* x\[:, 14\]"),
        ((N, 784), r"flat ones of shape \(12, 784\): save x\.reshape\(-1, 28, 28\)"),
        ((N, 3072), r"x\.reshape\(-1, 32, 32, 3\).* x\.reshape\(-1, 3, 32, 32\) and set data\.layout: nchw"),
        ((N, 100_003), r"x\.reshape\(-1, H, W, C\)"),
        ((N, 3, 1024), r"flat images of 3 channels: save x\.reshape\(-1, 3, 32, 32\) and set data\.layout: nchw"),
        ((N, 1024, 3), r"flat images of 3 channels: save x\.reshape\(-1, 32, 32, 3\)"),
        (
            (N, 1, 784),
            r"flat images of 1 channel: save x\.reshape\(-1, 1, 28, 28\), or, .* 1 x 784 pixels, x\[\.\.\., N",
        ),
        ((N,), "not an array of shape"),
        ((2, 2, 2, 2, 2, 2), "not an array of shape"),
        ((N, 0, 8), "holds no images"),
    ],
)
def test_what_is_no_image_is_refused_with_what_makes_it_one(shape: tuple[int, ...], words: str):
    with pytest.raises(DataError, match=words):
        images(*shape)


@pytest.mark.parametrize("shape", [(32, 32, 3, 73), (28, 28, 73)])
def test_images_along_the_last_axis_are_found_by_their_labels(shape: tuple[int, ...]):
    with pytest.raises(DataError, match=r"73 images lie along the last axis .* np\.moveaxis\(x, -1, 0\)"):
        read_images("f", "x", np.zeros(shape, np.uint8), labels=73)


def pixels(low: float, high: float, dtype: type = np.float64) -> np.ndarray:
    x = np.linspace(low, high, N * 16).reshape(N, 4, 4)
    x.flat[0], x.flat[-1] = low, high
    return x.astype(dtype)


@pytest.mark.parametrize(
    "x",
    [
        pixels(0, 1.0000001, np.float32),
        pixels(-1e-9, 1),
        pixels(0, 1 + 2**-10, np.float16),
        pixels(-0.0, 1),
    ],
)
def test_a_hair_beyond_the_bounds_is_taken_as_it_is(x: np.ndarray):
    np.testing.assert_array_equal(read_images("f", "x", x, N)[..., 0], x)


@pytest.mark.parametrize(
    "x, words",
    [
        (pixels(-0.2, 0.2), r"save \(x \+ 1\) / 2, or data\.preprocess: none"),
        (pixels(0, 1.2), r"save x / 1\.2, or"),
        (pixels(0, 1.00001), r"not in \[0\.0, 1\.00001\] \(image 11 holds 1\.00001\): save np\.clip\(x, 0, 1\)"),
        (pixels(-0.03, 1), r"\(image 0 holds -0\.03\): save np\.clip\(x, 0, 1\)"),
        (pixels(-1, 0.5), r"\(image 0 holds -1\.0\): save \(x \+ 1\) / 2, or data\.preprocess: none"),
        (pixels(-1, 1, np.float32), r"save \(x \+ 1\) / 2"),
        (pixels(0, 255), r"save x / 255"),
        (pixels(0, 250, np.float32), r"save x / 255"),
        (pixels(0, 60000), r"save x / 65535"),
        (pixels(0, 16), r"save x / 16"),
        (pixels(-2.1, 2.6), r"standardised or whitened, data\.preprocess: none takes images as they are"),
        (pixels(0, 255).astype(np.int64), r"not int64: it lies in \[0, 255\]: save x\.astype\(np\.uint8\)"),
        (pixels(0, 4095).astype(np.uint16), r"save \(x / 4095\)\.astype\(np\.float32\)"),
        (pixels(-3, 3).astype(np.int8), r"save x\.astype\(np\.float32\) and set data\.preprocess: none"),
        (pixels(0, 1) > 0.5, r"not bool: save x\.astype\(np\.float32\)"),
        (pixels(0, 1).astype(complex), "save pixels as numbers"),
    ],
)
def test_another_scale_is_refused_with_its_value_and_what_mends_it(x: np.ndarray, words: str):
    with pytest.raises(DataError, match=words):
        read_images("f", "x", x, N)


def test_as_they_are_any_scale_is_taken_that_float32_holds():
    x = pixels(-2.1, 260)
    np.testing.assert_array_equal(read_images("f", "x", x, N, as_they_are=True)[..., 0], x)
    for scale in (1e30, 1e-30):
        with pytest.raises(DataError, match="too far from 1 for float32"):
            read_images("f", "x", x * scale, N, as_they_are=True)
    x[3, 2, 2] = np.inf
    with pytest.raises(DataError, match="image 3 holds NaN or infinite"):
        read_images("f", "x", x, N, as_they_are=True)


CLASSES = np.array([2, 0, 1, 1])


@pytest.mark.parametrize(
    "y",
    [
        CLASSES.astype(np.uint8),
        CLASSES.astype(float),
        CLASSES.astype(np.float16)[:, None],
        CLASSES[None],
        np.eye(3, dtype=int)[CLASSES],
        np.eye(3, dtype=bool)[CLASSES],
        np.eye(3)[CLASSES] - 0.1,
        np.eye(3, dtype=np.float32)[CLASSES] * 10 - 1 / 3,
    ],
)
def test_labels_without_doubt_are_classes(y: np.ndarray):
    found = read_labels("f", "y", y, 4)
    assert found.tolist() == CLASSES.tolist()
    assert found.dtype == np.int64


def test_names_stay_names_and_bytes_become_them():
    assert read_labels("f", "y", np.array(["eel", "cat"]), 2).tolist() == ["eel", "cat"]
    assert read_labels("f", "y", np.array([b"eel", b"cat"]), 2).tolist() == ["eel", "cat"]
    latin = np.array([b"caf\xe9", b"caf\xe8"])  # no UTF-8, and two classes nevertheless
    assert len(set(read_labels("f", "y", latin, 2))) == 2
    assert read_labels("f", "y", np.array([True, False]), 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    "y, words",
    [
        (np.array([0, 1, 1.5, 2]), r"image 2 has 1\.5: save whole numbers, such as y\.round\(\)\.astype\(int\)"),
        (np.array([0, np.nan, 1, 2]), "image 1 has nan"),
        (np.array([0, 1, np.inf, 2]), "image 2 has inf"),
        (np.array([0, 1, 1e300, 2]), "image 2 has 1e"),
        (np.array([[0, 1], [1, 1], [1, 0], [0, 1]]), r"row 1 is \[1, 1\]: save y\.argmax\(1\) if the largest"),
        (np.array([[0.2, 0.8], [1, 0], [1, 0], [0, 1]]), r"row 0 is \[0\.2, 0\.8\]: save y\.argmax\(1\)"),
        (np.zeros((4, 9)), r"row 0 is \[0\.0, .*, \.\.\.\]"),
        (np.array([["a", "b"]] * 4), "one class an image, not <U1"),
        (np.zeros((4, 2, 2)), "one class an image"),
        (np.zeros(3), "holds 3 labels for 4 images"),
        (np.zeros((4,), "datetime64[s]"), "one class an image"),
        (np.array(3), "one class an image"),
    ],
)
def test_labels_in_doubt_are_refused_with_what_mends_them(y: np.ndarray, words: str):
    with pytest.raises(DataError, match=f"f: y.*{words}"):
        read_labels("f", "y", y, 4)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.sampled_from([(0, 1), (-1, 1), (-0.25, 0.75)]))
def test_one_hot_rows_say_what_their_classes_do(classes, values):
    low, high = values
    rows = np.where(np.eye(5, dtype=bool)[classes], high, low)
    assert read_labels("f", "y", rows, len(classes)).tolist() == classes
