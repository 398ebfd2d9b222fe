"""Reading an npz archive, whose arrays may have other names; what it lacks is told by what it holds."""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from exact_ntk.config import Npz
from exact_ntk.data.arrays import Layout, read_images
from exact_ntk.errors import DataError
from exact_ntk.files import expanded

NEW_IMAGES = ("x", "images")
TRAIN, TEST = ("x_train", "y_train"), ("x_test", "y_test")
MOST_LISTED = 8
IMAGES, LABELS = {"x", "image", "images", "img", "imgs", "data"}, {"y", "label", "labels", "target", "targets"}


def read_npz_images(spec: Npz, tested: bool) -> dict[str, np.ndarray]:
    """The arrays by our names: x_train, y_train, and x_test, y_test where both are there.

    tested: whether they must be. Raises DataError, naming the file and the array.
    """
    path = expanded(spec.path)
    _refuse_other_files(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = spec.keys.model_dump()
            asked = tested or bool(spec.keys.model_fields_set & set(TEST))
            wanted = TRAIN + (TEST if asked or all(names[key] in archive for key in TEST) else ())
            for key in wanted:
                if names[key] not in archive:
                    raise DataError(_lacks(path, key, names[key], archive, wanted))
            return {key: _array(path, archive, names[key]) for key in wanted}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{path}: damaged or not an npz archive ({error})") from error


def read_new_images(path: Path, layout: Layout | None, as_they_are: bool) -> np.ndarray:
    """Images (n, H, W, C) from the array x or images of an npz archive, as `read_images` checks them.

    Raises DataError, naming the file and what it holds.
    """
    _refuse_other_files(path, "IMAGES.npz", "x=...")
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = next((name for name in NEW_IMAGES if name in archive), None)
            if key is None:
                held = ", ".join(_described(path, name) for name in archive.files[:MOST_LISTED]) or "nothing"
                raise DataError(f"{path}: no array x or images; it holds {held}: save one with np.savez(path, x=...)")
            return read_images(str(path), key, _array(path, archive, key), 0, layout, as_they_are)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{path}: damaged or not an npz archive ({error})") from error


def _refuse_other_files(
    path: Path, option: str = "data.path", arrays: str = "x_train=..., y_train=..., x_test=..., y_test=..."
) -> None:
    """Raises DataError where there is no file, a folder, or a file that is no archive of such arrays."""
    if path.is_dir():
        raise DataError(
            f"{option}: {path} is a folder: name an npz file (np.savez saves what exact_ntk.load_folder reads in one)"
        )
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise DataError(f"{option}: no file {path.absolute()}") from None
    except OSError as error:
        raise DataError(f"{option}: cannot read {path}: {error.strerror or error}") from error
    if head.startswith(b"\x93NUMPY"):
        raise DataError(f"{path}: a single array, not an npz archive: save one with np.savez(path, {arrays})")
    if not head.startswith(b"PK"):
        raise DataError(f"{path}: damaged or not an npz archive: save one with np.savez(path, {arrays})")


def _array(path: Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        found = archive[name]
    except ValueError as error:
        if "pickle" not in str(error) and "Object arrays" not in str(error):
            raise
        raise DataError(
            f"{path}: {name} holds pickled objects, which are never loaded: save a plain array, such as "
            f"np.array({name}.tolist())"
        ) from None
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path}: {name} is no array")
    return found


def _lacks(path: Path, key: str, name: str, archive: np.lib.npyio.NpzFile, wanted: tuple[str, ...]) -> str:
    listed = [_described(path, other) for other in archive.files[:MOST_LISTED]]
    more = len(archive.files) - len(listed)
    held = ", ".join(listed) + (f" and {more} more" if more else "") if listed else "nothing"
    if name != key:
        return f"data.keys.{key}: no array {name} in {path}, which holds {held}"
    guesses = {wish: _guess(archive.files, wish) for wish in wanted}
    pairs = ", ".join(f"{wish}: {guess or '...'}" for wish, guess in guesses.items() if guess != wish)
    unless = ", or, without test images, give every column test: undrawn" if key in TEST else ""
    return f"{path}: no array {key}; it holds {held}: say which is which by data.keys: {{{pairs}}}{unless}"


def _described(path: Path, name: str) -> str:
    """An array's name and shape, from its header alone."""
    try:
        with zipfile.ZipFile(path) as whole, whole.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            return f"{name} {shape} {dtype}"
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return name


def _guess(names: list[str], key: str) -> str | None:
    """The one array that its name makes x_train, y_test, ...: train_images, X_train, labels."""
    kind, part = key.split("_")
    found = []
    for name in names:
        words = set(re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()))
        parts = words & {"train", "test", "val", "valid", "validation"}
        if words & (IMAGES if kind == "x" else LABELS) and (parts == {part} or (not parts and part == "train")):
            found.append(name)
    return found[0] if len(found) == 1 else None
