"""Folders are checked before anything is computed for them."""

import errno
import os
from pathlib import Path

import pytest

from exact_ntk.errors import NtkError
from exact_ntk.files import require_writable, write_text


def test_a_folder_with_room_is_made_and_left_empty(tmp_path: Path):
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_folder_without_room_is_refused(number: int, tmp_path: Path, monkeypatch):
    def full(handle: int) -> None:
        assert os.fstat(handle).st_size > 1_000_000
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NtkError, match=f"cannot write in {tmp_path}: {os.strerror(number)}"):
        require_writable(tmp_path)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NtkError, match=r"cannot write in .*/file"):
        require_writable(tmp_path / "file")


def test_a_file_system_that_knows_neither_modes_nor_syncing_will_do(tmp_path: Path, monkeypatch):
    def unknown(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "fsync", unknown)
    monkeypatch.setattr(Path, "chmod", unknown)
    write_text(tmp_path / "a", "text")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]
    require_writable(tmp_path)


def test_bytes_that_never_reach_the_disk_replace_nothing(tmp_path: Path, monkeypatch):
    def failing(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_text(tmp_path / "a", "before")
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(NtkError, match=r"cannot write .*/a: Input/output error"):
        write_text(tmp_path / "a", "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
