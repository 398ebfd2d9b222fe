"""load_folder: every file is taken or named; grey, colour and transparent images, sizes, cameras, broken files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from exact_ntk import load_folder
from exact_ntk.errors import DataError

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, **options) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def colours(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3), np.uint8)


def greys(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def test_a_folder_a_class_in_alphabetical_order(tmp_path: Path):
    last = save(tmp_path / "dog" / "1.PNG", colours(4, 6))
    first = save(tmp_path / "cat" / "a.png", colours(4, 6))
    save(tmp_path / "cat" / "b.JPEG", colours(4, 6))
    for ignored in ("cat/.hidden.png", "cat/notes.txt", "README.md", ".git/config"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_text("not an image")
    images, labels, classes, files = load_folder(tmp_path)
    assert (images.dtype, images.shape, classes) == (np.uint8, (3, 4, 6, 3), ("cat", "dog"))
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 0, 1])
    assert [str(f.relative_to(tmp_path)) for f in files] == ["cat/a.png", "cat/b.JPEG", "dog/1.PNG"]
    np.testing.assert_array_equal(images[[0, 2]], [first, last])


def test_images_alone_have_no_classes(tmp_path: Path):
    pixels = [save(tmp_path / name, greys(3, 3)) for name in ("a.png", "b.png")]
    found = load_folder(str(tmp_path))
    assert (found.labels.tolist(), found.classes) == ([-1, -1], ())
    np.testing.assert_array_equal(found.images[..., 0], pixels)


def test_grey_and_coloured_images_together_are_coloured(tmp_path: Path):
    grey, colour = save(tmp_path / "a.png", greys(4, 4)), save(tmp_path / "b.png", colours(4, 4))
    opaque = np.dstack([colours(4, 4), np.full((4, 4), 255, np.uint8)])
    save(tmp_path / "c.png", opaque)
    save(tmp_path / "d.png", np.dstack([grey, np.full((4, 4), 255, np.uint8)]))
    Image.fromarray(colour).quantize(16).save(tmp_path / "e.png")
    Image.fromarray(grey > 99).save(tmp_path / "f.png")
    images = load_folder(tmp_path).images
    np.testing.assert_array_equal(images[0], np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(images[1:3], [colour, opaque[..., :3]])
    np.testing.assert_array_equal(images[3], images[0])
    assert images[5].max() == 255
    assert load_folder(tmp_path, channels=1).images.shape == (6, 4, 4, 1)
    for name in "bce":
        (tmp_path / f"{name}.png").unlink()
    found = load_folder(tmp_path)
    np.testing.assert_array_equal(found.images[:2, ..., 0], [grey, grey])
    np.testing.assert_array_equal(load_folder(tmp_path, channels=3).images, np.repeat(found.images, 3, -1))


def test_a_size_crops_about_the_centre_and_resizes(tmp_path: Path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 4:20] = 200
    save(tmp_path / "a.png", wide)
    same = save(tmp_path / "b.png", greys(4, 4))
    images = load_folder(tmp_path, size=4).images
    assert images.shape == (2, 4, 4, 1)
    assert (images[0] == 200).all()
    np.testing.assert_array_equal(images[1, ..., 0], same)
    assert load_folder(tmp_path, size=(3, 5)).images.shape == (2, 3, 5, 1)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path):
    stored = greys(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", stored, exif=exif)
    upright = save(tmp_path / "b.png", greys(3, 2))
    np.testing.assert_array_equal(load_folder(tmp_path).images[..., 0], [np.rot90(stored, -1), upright])


def test_of_photographs_turned_in_two_ways_one_size_is_asked_for(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", greys(2, 3))
    save(tmp_path / "b.jpg", greys(2, 3), exif=exif)
    with pytest.raises(DataError, match=r"a\.jpg has 2 x 3 pixels and .*b\.jpg 3 x 2: give a size"):
        load_folder(tmp_path)


def with_its_exif_last(file: Path) -> None:
    """Move the eXIf chunk of a PNG behind its pixels."""
    whole = file.read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + int.from_bytes(whole[start : start + 4]) + 12
    last = len(whole) - 12
    file.write_bytes(whole[:start] + whole[end:last] + whole[start:end] + whole[last:])


def test_no_pixel_is_read_before_all_are_known_to_fit(tmp_path: Path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = save(tmp_path / "a.png", greys(20, 30), exif=exif)
    with_its_exif_last(tmp_path / "a.png")
    np.testing.assert_array_equal(load_folder(tmp_path).images[0, ..., 0], np.rot90(stored, -1))
    decoded = []
    load = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(image) or load(image))
    load_folder(tmp_path)
    assert decoded
    decoded.clear()
    monkeypatch.setattr("exact_ntk.data.folder.available_memory", lambda device: 500)
    with pytest.raises(DataError, match="1 images of 20 x 30 pixels take"):
        load_folder(tmp_path)
    assert not decoded


def transparent(folder: Path) -> None:
    save(folder / "a.png", np.dstack([colours(3, 3), greys(3, 3)]))


def transparent_palette(folder: Path) -> None:
    Image.fromarray(colours(3, 3)).quantize(8).save(folder / "a.png", transparency=0)


def truncated(folder: Path) -> None:
    save(folder / "a.png", colours(30, 30))
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])


def nested(folder: Path) -> None:
    save(folder / "train" / "cat" / "a.png", greys(3, 3))


def unequal(folder: Path) -> None:
    save(folder / "a.png", greys(3, 3))
    save(folder / "b.png", greys(3, 4))


def beside(folder: Path) -> None:
    save(folder / "a.png", greys(3, 3))
    save(folder / "cat" / "a.png", greys(3, 3))


def empty_class(folder: Path) -> None:
    save(folder / "cat" / "a.png", greys(3, 3))
    (folder / "dog").mkdir()


def large(folder: Path) -> None:
    save(folder / "a.png", greys(3, 3))


REFUSED = {
    "nothing": (lambda folder: None, r"holds no PNG or JPEG files, nor folders of them"),
    "an empty class": (empty_class, r"class dog is empty: .*dog holds no PNG"),
    "a folder too deep": (nested, r"train.cat is a folder in a class: .*did you mean .*train\?"),
    "images beside classes": (beside, r"holds images, such as a\.png, beside the folder cat"),
    "two sizes": (unequal, r"a\.png has 3 x 3 pixels and .*b\.png 3 x 4: give a size"),
    "half a file": (truncated, r"a\.png: broken \(.*\): mend it"),
    "a page for an image": (lambda f: (f / "a.jpg").write_text("<html>"), r"a\.jpg: not a PNG or JPEG file, or broken"),
    "no bytes": (lambda f: (f / "a.png").touch(), r"a\.png: not a PNG or JPEG file, or broken"),
    "another format's name": (lambda f: save(f / "a.webp", greys(3, 3)), r"a\.webp: only PNG and JPEG files are read"),
    "another format": (lambda f: save(f / "a.png", colours(3, 3), format="GIF"), r"a\.png: not a PNG or JPEG file"),
    "transparent pixels": (transparent, r"a\.png: is transparent in places"),
    "a transparent palette": (transparent_palette, r"a\.png: is transparent in places"),
    "16 bits": (lambda f: save(f / "a.png", greys(3, 3).astype(np.uint16)), r"a\.png: has more than 8 bits a channel"),
    "ink": (lambda f: Image.new("CMYK", (3, 3)).save(f / "a.jpg"), r"a\.jpg: has CMYK pixels: save it as"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_leaves_doubt_is_refused_by_name(case: str, tmp_path: Path):
    make, words = REFUSED[case]
    make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path, monkeypatch):
    save(tmp_path / "a.png", colours(30, 30))
    monkeypatch.setattr("exact_ntk.data.folder.available_memory", lambda device: 1000)
    with pytest.raises(DataError, match=r"1 images of 30 x 30 pixels take .* are free: give a smaller size"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, size=8).images.shape == (1, 8, 8, 3)


def test_every_cut_of_a_file_is_named(tmp_path: Path):
    save(tmp_path / "a.png", colours(9, 9))
    save(tmp_path / "a.jpg", colours(9, 9))
    for name in ("a.png", "a.jpg"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / "cut").mkdir(exist_ok=True)
        for end in range(0, len(whole) * 2 // 3, 7):
            (tmp_path / "cut" / name).write_bytes(whole[:end])
            with pytest.raises(DataError, match=name):
                load_folder(tmp_path / "cut")
        (tmp_path / "cut" / name).unlink()


@pytest.mark.parametrize("options", [dict(size=0), dict(size="large"), dict(size=(3, 3, 3)), dict(channels=2)])
def test_sizes_and_channels_that_are_none(options: dict, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        load_folder(tmp_path, **options)


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read the folder .*none: No such file"):
        load_folder(tmp_path / "none")


def test_of_many_refused_files_the_first_says_how_many_others(tmp_path: Path):
    for name in ("a", "b", "d"):
        save(tmp_path / f"{name}.png", greys(3, 3).astype(np.uint16))
    save(tmp_path / "c.png", greys(3, 3))
    with pytest.raises(DataError, match=r"a\.png: has more than .* \(2 others refused as well, next .*b\.png\)$"):
        load_folder(tmp_path)
